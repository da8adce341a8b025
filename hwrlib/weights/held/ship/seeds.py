import os, sys, json, glob, re; os.environ.update(HWR_DATA="sample", MPLBACKEND="agg"); os.chdir("/work/main/notebooks")
import nbformat; from nbclient import NotebookClient
nb=nbformat.read(glob.glob("08_*.ipynb")[0],4)
text="".join(nb.cells[57].source); code=text[text.index("rows = []\nfor seed in range(5)"):]; code=code[:code.index("```")].replace('home / "personal_seeds.csv"','"/work/plan/personal_seeds.csv"').replace("            rows.append(found","            print(seed, fixed, who, found.errors_before.sum(), found.errors_after.sum(), found.characters.sum(), run.cer.tolist(), file=open('/work/plan/seeds.log','a'), flush=True)\n            rows.append(found")
keep=[c for c in nb.cells[:33] if c.cell_type=="code"]
nb.cells=keep+[nbformat.v4.new_code_cell(code)]
NotebookClient(nb,timeout=3600,kernel_name="python3").execute(); print("done")
