import sys; sys.path.insert(0,"/work/main")
import pandas as pd, numpy as np, itertools
from hwrlib.page.baselines import Baseline, in_reading_order
df = pd.read_parquet("/work/shared/hooker/data/pages.parquet", columns=["page","split","lines"])
df = df[df.split=="train"]
def lines(row):
    out=[]
    for k,l in enumerate(row):
        b = np.array([list(p) for p in l["baseline"]], float); o=np.array([list(p) for p in l["outline"]], float)
        b = b[np.argsort(b[:,0])]
        xs = np.arange(b[0,0], max(b[-1,0], b[0,0]+2)); ys=np.interp(xs,b[:,0],b[:,1])
        out.append(Baseline(xs,ys,0.0,1.0))
    # x-height: from line spacing? use a third of the median outline height
        
    hs=[np.ptp(np.array([list(p) for p in l["outline"]],float)[:,1]) for l in row]
    h=np.median(hs)/4.5
    return [x._replace(x_height=h) for x in out]
bad=0; same=0
for _,r in df.iterrows():
    ls=lines(r.lines)
    if not ls: continue
    order=in_reading_order(ls); idx=[next(i for i,l in enumerate(ls) if l is o) for o in order]
    h=ls[0].x_height
    wrong=[k for k in range(len(idx)-1) if idx[k]>idx[k+1]]
    top=sorted(range(len(ls)), key=lambda i: np.median(ls[i].ys))
    wt=sum(top[k]>top[k+1] for k in range(len(ls)-1))
    if wrong:
        bad+=1
        print(r.page, len(ls), "ours:", len(wrong), "by height:", wt, [(idx[k],idx[k+1]) for k in wrong][:6])
print(bad)
