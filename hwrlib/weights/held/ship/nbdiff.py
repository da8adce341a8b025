"""Text outputs that changed against HEAD: nbdiff.py NUMBER ..."""
import sys, json, glob, subprocess, difflib
def texts(nb):
    out = []
    for k, cell in enumerate(nb["cells"]):
        for o in cell.get("outputs", []):
            t = o.get("text") or o.get("data", {}).get("text/plain", [])
            out += [f"[{k}] {line}" for line in ("".join(t)).splitlines()]
    return out
for number in sys.argv[1:]:
    (path,) = glob.glob(f"/work/main/notebooks/{int(number):02d}_*.ipynb")
    old = json.loads(subprocess.check_output(["git", "-C", "/work/main", "show", f"HEAD:notebooks/{path.rsplit('/', 1)[1]}"]))
    print("=====", path); print("\n".join(l for l in difflib.unified_diff(texts(old), texts(json.load(open(path))), lineterm="", n=0) if not l.startswith(("---", "+++", "@@"))))
