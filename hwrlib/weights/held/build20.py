import sys; sys.path.insert(0,"/work/train/held"); sys.argv=["build.py","none"]
import pickle, cv2
from pathlib import Path
src=open("/work/train/held/build.py").read().replace("DIV = 2.5","DIV = 2.0").replace('Path("/work/train/data")','Path("/work/train/data20")')
src=src[:src.index("if __name__")] if "if __name__" in src else src
ns={"__name__":"b"}
try: exec(compile(src,"b","exec"),ns)
except SystemExit: pass
ns["iam"](); ns["hooker"]()
for name in ("strokes","words","caps","beyond","photo","caps_validation","words_validation","photo_validation","small_validation"):
    lines=pickle.load(open(f"/work/train/data/{name}.pkl","rb"))
    pickle.dump([(cv2.resize(p,(round(p.shape[1]*1.25),128),interpolation=cv2.INTER_CUBIC),t) for p,t in lines],open(f"/work/train/data20/{name}.pkl","wb")); print(name,len(lines),flush=True)
