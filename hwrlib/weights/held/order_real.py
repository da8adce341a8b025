import sys; sys.path.insert(0,"/work/main"); import torch; torch.set_num_threads(1)
import inspect, glob, os, pickle, numpy as np, cv2
import hwrlib.page.baselines as B
from hwrlib.images import load_page
src = inspect.getsource(B.in_reading_order)
def make(R):
    s = src.replace("to_left & (share @ same_row @ share)", f"to_left & ((share.astype(int) @ same_row @ share) >= {R})")
    ns = dict(B.__dict__); exec(s, ns); return ns["in_reading_order"]
f=[make(r) for r in (1,2,3,4,5)]
keep={}
for p in sorted(glob.glob("/work/shared/real/images/*")):
    page=load_page(p); ls=B.find_baselines(page); keep[p]=ls
    o=[[next(i for i,l in enumerate(ls) if l is x) for x in g(ls)] for g in f]
    print(os.path.basename(p), len(ls), [sum(a!=b for a,b in zip(o[0],x)) for x in o], flush=True)
pickle.dump(keep,open("/work/plan/order/real.pkl","wb"))
