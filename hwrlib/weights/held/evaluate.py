import sys, pickle, torch, os, time, numpy as np
sys.path.insert(0, "/work/main"); torch.set_num_threads(1)
from hwrlib.model import CRNN
from hwrlib.recognizer import Recognizer
from hwrlib.scripts.average import average
from hwrlib.metrics import cer, wer
pad = int(os.environ.get("PAD", 0))
for src in sys.argv[2:]:
    ms=[CRNN.from_pretrained("runs/"+s) for s in src.split("+")]; m = ms[0] if len(ms)==1 else average(ms)
    rec=Recognizer(m,os.environ.get("PRECISION","bf16"),"greedy"); row=[]; t=time.time()
    for name,every in [x.split(":") for x in sys.argv[1].split(",")]:
        if not os.path.exists(f"data/{name}_validation.pkl"): continue
        lines=pickle.load(open(f"data/{name}_validation.pkl","rb"))[::int(every)]
        texts=[r.text.strip() for r in rec.read_prepared([np.pad(p,((0,0),(pad,pad)),constant_values=255) if pad else p for p,_ in lines])]
        row.append(f"{name} {100*cer([t for _,t in lines],texts):.2f}/{100*wer([t for _,t in lines],texts):.1f}")
    print(src,pad," ".join(row),f"({time.time()-t:.0f} s)",flush=True)
