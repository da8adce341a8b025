import sys, pickle, numpy as np, torch
sys.path.insert(0, "/work/main"); torch.set_num_threads(1)
from hwrlib.ctc import greedy
from hwrlib.alphabet import IAM
from hwrlib.metrics import cer, per_line
pre=sys.argv[1]
def load(n): return pickle.load(open(f"/work/plan/tta/{pre}_{n}.pkl","rb"))
names=["plain"]+sys.argv[2:]; V={n:load(n) for n in names}
texts=[t.strip() for t in V["plain"][0]]
R={n:[greedy(torch.from_numpy(a)[None],[len(a)],IAM)[0].text.strip() for a in V[n][1]] for n in names}
E={n:np.asarray(per_line(texts,R[n])["errors"]) for n in names}; L=np.array([len(t) for t in texts])
pitch=np.array([len(a)/max(1,len(r)) for a,r in zip(V["plain"][1],R["plain"])])
print({n:round(100*E[n].sum()/L.sum(),2) for n in names})
q=np.quantile(pitch,np.linspace(0,1,9))
for a,b in zip(q[:-1],q[1:]):
    m=(pitch>=a)&(pitch<=b); print(f"{a:.2f}-{b:.2f}", m.sum(), {n:round(100*E[n][m].sum()/L[m].sum(),2) for n in names})
