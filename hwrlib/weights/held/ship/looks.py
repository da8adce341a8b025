"""The beams of each view, their texts ranked by one view or by all: looks.py NAME VIEW ..."""
import sys, pickle, numpy as np, torch, difflib, time
sys.path.insert(0, "/work/main"); torch.set_num_threads(1)
from hwrlib.beam import PrefixBeam, Fusion
from hwrlib.ctc import text_log_probabilities
from hwrlib.language import CharNgram
from hwrlib.alphabet import IAM
from hwrlib.metrics import cer, wer
SET = sys.argv[1]; names = sys.argv[2:]
V = {n: pickle.load(open(f"/work/plan/tta/{SET}_{n}.pkl","rb")) for n in names}
texts = [t.strip() for t in V["plain"][0]]
lang = CharNgram.load(); beam = PrefixBeam(lang); fusion = Fusion(IAM, lang)
import os
f = f"/work/plan/tta/{SET}_beams.pkl"
C = pickle.load(open(f,"rb")) if os.path.exists(f) else {}
for n in names:
    if n not in C: C[n] = [beam.candidates(a[None], [len(a)], IAM)[0] for a in V[n][1]]
pickle.dump(C, open(f,"wb"))
def of(out): return f"{100*cer(texts, out):.2f} / {100*wer(texts, out):.2f}"
W = {}
def score(k, ts, vs):
    new = [t for t in ts if (k, t) not in W]
    if new:
        enc = [IAM.encode(t) for t in new]
        each = np.array([text_log_probabilities(V[n][1][k], enc) for n in names])
        for j, t in enumerate(new): W[k, t] = dict(zip(names, each[:, j])), fusion.log_weight(t)
    return np.array([np.mean([W[k, t][0][v] for v in vs]) + W[k, t][1] for t in ts])
def segs(a, b):
    for tag, i, j, x, y in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag != "equal": yield i, j, b[x:y]
def climb(k, pool, vs, rounds=4):
    s = score(k, pool, vs); best, top = pool[int(np.argmax(s))], s.max()
    for _ in range(rounds):
        moves = {best[:i] + r + best[j:] for other in pool if other != best for i, j, r in segs(best, other)} - {best}
        if not moves: break
        moves = sorted(moves); m = score(k, moves, vs)
        if m.max() <= top: break
        best, top = moves[int(np.argmax(m))], m.max()
    return best
t0 = time.time()
plain = [[c.text for c in cs] for cs in C["plain"]]
union = [list(dict.fromkeys(c.text for n in names for c in C[n][k])) for k in range(len(texts))]
print("plain", of([p[0].strip() for p in plain]))
print("plain16, exact plain", of([p[int(np.argmax(score(k,p,["plain"])))].strip() for k,p in enumerate(plain)]))
print("plain16, views", of([p[int(np.argmax(score(k,p,names)))].strip() for k,p in enumerate(plain)]), time.time()-t0, flush=True)
print("union, views", of([p[int(np.argmax(score(k,p,names)))].strip() for k,p in enumerate(union)]), time.time()-t0, flush=True)
print("climb plain16", of([climb(k,p,names).strip() for k,p in enumerate(plain)]), time.time()-t0, flush=True)
print("climb union", of([climb(k,p,names).strip() for k,p in enumerate(union)]), time.time()-t0, flush=True)
print("climb union plain only", of([climb(k,p,["plain"]).strip() for k,p in enumerate(union)]), time.time()-t0, flush=True)
