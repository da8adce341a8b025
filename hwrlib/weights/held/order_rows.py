import sys; sys.path.insert(0,"/work/main"); sys.path.insert(0,"/work/plan/order")
import io, contextlib
with contextlib.redirect_stdout(io.StringIO()):
    from an import df, lines
import numpy as np
rows=[]
for _,r in df.iterrows():
    if not len(r.lines): continue
    ls=lines(r.lines); h=ls[0].x_height; T=[l["text"] for l in r.lines]
    for i in range(len(ls)):
        for j in range(len(ls)):
            if ls[i].xs[-1]<=ls[j].xs[0]+h and i!=j:
                dy=(np.median(ls[j].ys)-np.median(ls[i].ys))/h
                if abs(dy)<1.5: rows.append((dy, i-j, (ls[j].xs[0]-ls[i].xs[-1])/h, T[i-1] if i else "^", T[i], T[j], T[j+1] if j+1<len(T) else "$"))
rows.sort(key=lambda x:x[0])
d=np.array([r[0] for r in rows]); s=np.array([r[1]<0 for r in rows])
for a in np.arange(-1.5,1.5,.25):
    m=(d>=a)&(d<a+.25); print(round(a,2), m.sum(), "left first in the transcript", round(s[m].mean(),2))
for r in rows[::12]: print([round(x,1) if isinstance(x,float) else x for x in r])
