import sys; sys.argv=["x"]
sys.path.insert(0,"/work/train/held")
import build as B, tempfile
from pathlib import Path
s=B.samples.read_sentences()
ws=sorted({w.strip(".,;:!?'\"()") for t in s["validation"] for w in t.split()}); ws=[w for w in ws if w.isalpha() and w.islower() and w.isascii()]
folder=tempfile.mkdtemp(); fonts=B.samples.fetch_fonts(Path(folder)); fonts={n:fonts[n] for n in B.samples.FONTS["validation"].split()}
B.save("caps_validation", B.fonts_lines((101,150,"caps",fonts,ws)))
import pickle, numpy as np
lines=[B.PreparedLine(p,t,B.IAM.encode(t)) for p,t in pickle.load(open(B.OUT/"iam_validation.pkl","rb"))]
rng=np.random.default_rng(3); out=[]
for k in rng.permutation(len(lines)):
    got=B.cut_words(lines[k],B.IAM)
    if len(got)<2: continue
    w=got[int(rng.integers(len(got)))]; q=B.tight(w.pixels,rng)
    if q is None or q.shape[1]//4-1<len(w.labels)+4 or q.shape[1]>900: continue
    out.append(B.PreparedLine(q,w.text,w.labels))
    if len(out)>=200: break
B.save("words_validation",out)
