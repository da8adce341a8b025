"""Run chapters in place on the sample: exec_nb.py NUMBER ... No widget is kept, and the notebook's own metadata stays."""
import os, sys, json, glob, time
import nbformat
from nbclient import NotebookClient
os.environ.update(HWR_DATA="sample", MPLBACKEND="agg"); os.environ.pop("HWR_CHARTS", None)
os.chdir("/work/main/notebooks")
for number in sys.argv[1:]:
    (path,) = glob.glob(f"{int(number):02d}_*.ipynb"); began = time.time()
    nb = nbformat.read(path, 4); metadata = json.loads(json.dumps(nb.metadata))
    NotebookClient(nb, timeout=1800, kernel_name="python3", record_timing=False, coalesce_streams=True).execute()
    nb.metadata = nbformat.from_dict(metadata)
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            for kind in [k for k in output.get("data", {}) if "widget" in k]:
                del output["data"][kind]
                if "image/png" not in output["data"]:
                    output["data"].clear()
            for kind in [k for k in output.get("metadata", {}) if "widget" in k]:
                del output["metadata"][kind]
        if cell.cell_type == "code":  # a widget whose only other form is its name is dropped
            cell.outputs = [o for o in cell.outputs if not (o.output_type in ("display_data", "execute_result") and not o.data)]
    text = nbformat.writes(nb) + "\n"
    open(path, "w").write(text); print(path, len(text.encode()), f"{time.time() - began:.0f} s", flush=True)
