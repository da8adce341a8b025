import json, glob
class NB:
    def __init__(self, n):
        (self.p,)=glob.glob(f"/work/main/notebooks/{n:02d}_*.ipynb"); self.raw=open(self.p,encoding="utf8").read(); self.nb=json.loads(self.raw)
    def src(self,i): return "".join(self.nb["cells"][i]["source"])
    def sub(self,i,old,new,count=1):
        s=self.src(i); assert s.count(old)==count, (self.p,i,s.count(old),old[:80])
        self.put(i,s.replace(old,new))
    def put(self,i,s): self.nb["cells"][i]["source"]=s.splitlines(keepends=True)
    def save(self):
        out=json.dumps(self.nb,ensure_ascii=False,indent=1)+"\n"
        open(self.p,"w",encoding="utf8").write(out)
