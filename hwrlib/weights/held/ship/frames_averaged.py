"""Greedy, with the frames of several views averaged: far worse, since the frames do not match. frames_averaged.py VIEW ..."""
import sys, pickle, numpy as np, torch
sys.path.insert(0, "/work/main"); torch.set_num_threads(1)
from hwrlib.ctc import greedy
from hwrlib.alphabet import IAM
from hwrlib.metrics import cer, wer
def load(n): return pickle.load(open(f"/work/plan/tta/iam_{n}.pkl","rb"))
V = {n: load(n) for n in sys.argv[1:]}
texts = [t.strip() for t in V["plain"][0]]
def run(arrs):
    return [greedy(torch.from_numpy(a)[None], [len(a)], IAM)[0].text.strip() for a in arrs]
def report(name, arrs):
    r = run(arrs); print(name, f"{100*cer(texts, r):.2f} / {100*wer(texts, r):.2f}", flush=True)
for n in V: report(n, V[n][1])
def mix(names, log, w=None):
    out = []
    for xs in zip(*(V[n][1] for n in names)):
        a = np.stack(xs).astype(float)
        m = a.mean(0) if log else np.log(np.exp(a).mean(0))
        m -= np.log(np.exp(m).sum(-1, keepdims=True)); out.append(m.astype(np.float32))
    return out
names = list(V)
report("all log", mix(names, True)); report("all prob", mix(names, False))
