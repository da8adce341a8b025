import sys, pickle, numpy as np, torch, json
sys.path.insert(0, "/work/main"); torch.set_num_threads(1)
from hwrlib.alphabet import IAM
from hwrlib.beam import PrefixBeam
from hwrlib.ctc import text_log_probabilities
from hwrlib.language import CharNgram
from hwrlib.metrics import cer, wer
T="/work/plan/tta/now_%s.pkl"
V={n: pickle.load(open(T%n,"rb")) for n in ("plain","left","right")}
texts=[t.strip() for t in V["plain"][0]]
try: C,S=pickle.load(open("/work/plan/tta/now_beams.pkl","rb"))
except FileNotFoundError:
    beam=PrefixBeam(CharNgram.load(),32); C=[];S=[]
    for k,a in enumerate(V["plain"][1]):
        cs=beam.candidates(a[None],[len(a)],IAM)[0]; C.append([(c.text,c.log_probability,c.weight) for c in cs])
        lab=[IAM.encode(c.text) for c in cs]
        S.append([np.asarray(text_log_probabilities(torch.from_numpy(V[n][1][k]),lab)) for n in V])
    pickle.dump((C,S),open("/work/plan/tta/now_beams.pkl","wb"))
def of(out): return f"{100*cer(texts,out):.2f} / {100*wer(texts,out):.2f}"
third=np.arange(len(texts))%3==0
for m in (0,0.5,1,1.5,2,3,4,6,1e9):
    out=[];n=0
    for cs,s in zip(C,S):
        im=np.array([c[1] for c in cs]); lm=np.array([c[2] for c in cs]); sc=im+lm
        if len(cs)>1 and sc[0]-sc[1]<m:
            n+=1; sc=(im+s[1]+s[2])/3+lm
        out.append(cs[int(np.argmax(sc))][0].strip())
    print(m, f"{n/len(C):.2f}", of(out))
for m in (1,2,1e9):
    out=[]
    for cs,s in zip(C,S):
        im=s[0]; lm=np.array([c[2] for c in cs]); sc=im+lm
        o=np.argsort(-sc); 
        if len(cs)>1 and sc[o[0]]-sc[o[1]]<m: sc=(s[0]+s[1]+s[2])/3+lm
        out.append(cs[int(np.argmax(sc))][0].strip())
    print("all paths", m, of(out))
print()
ids=np.flatnonzero(third); oth=np.flatnonzero(~third)
def sub(out,i): return f"{100*cer([texts[k] for k in i],[out[k] for k in i]):.2f}"
for f in (0.8,0.9,1,1.1,1.2,1.3):
  for words in (-0.5,0,0.5,1):
    out=[]
    for cs,s in zip(C,S):
        im=np.array([c[1] for c in cs]); lm=np.array([c[2] for c in cs]); w=np.array([len(c[0].split()) for c in cs]); sc=im+lm
        if len(cs)>1 and sc[0]-sc[1]<1:
            sc=(im+s[1]+s[2])/3+f*lm+words*w
        out.append(cs[int(np.argmax(sc))][0].strip())
    print(f, words, of(out), sub(out,ids), sub(out,oth))
