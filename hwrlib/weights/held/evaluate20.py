"""evaluate at a divisor's data: greedy, plain and with DENSE/WIDENED as shipped"""
import sys, pickle, torch, time, numpy as np
sys.path.insert(0,"/work/main"); torch.set_num_threads(1)
from hwrlib.model import CRNN
from hwrlib.recognizer import Recognizer
from hwrlib.scripts.average import average
from hwrlib.metrics import cer, wer
data, spec, *srcs = sys.argv[1:]
for src in srcs:
    ms=[CRNN.from_pretrained("/work/train/runs/"+s) for s in src.split("+")]; m=ms[0] if len(ms)==1 else average(ms)
    rec=Recognizer(m,"fp32","greedy"); row=[]; t=time.time()
    for name,every in [x.split(":") for x in spec.split(",")]:
        lines=pickle.load(open(f"/work/train/{data}/{name}_validation.pkl","rb"))[::int(every)]
        kept=[]
        for p,_ in lines: kept.append(rec.read_prepared([p])[0].text.strip())
        row.append(f"{name} {100*cer([t for _,t in lines],kept):.2f}/{100*wer([t for _,t in lines],kept):.1f}")
    print(data,src,*row,f"({time.time()-t:.0f} s)",flush=True)
