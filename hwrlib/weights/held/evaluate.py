"""evalmany.py SOURCE...: greedy and 6-gram CER/WER on the kept-aside sets; SOURCE a folder or runs/x/state.pt or a+b (mean)."""
import pickle, sys, torch, numpy as np, os, time
sys.path.insert(0, "/work/main"); torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
from hwrlib import WEIGHTS
from hwrlib.model import CRNN
from hwrlib.recognizer import Recognizer
from hwrlib.scripts.average import average
from hwrlib.metrics import cer, wer
def one(src):
    if src.endswith(".pt"):
        m = CRNN.from_pretrained(WEIGHTS); s = torch.load(src, weights_only=True, map_location="cpu"); m.load_state_dict(s["parts"]["averaged"]); print(s["rest"]["progress"]); return m.eval()
    return CRNN.from_pretrained(WEIGHTS if src == "shipped" else src)
def get(src):
    parts = src.split("+"); return one(src) if len(parts) == 1 else average([one(p) for p in parts])
sets = {"iam": ("iam_validation", int(os.environ.get("IAM", 1))), "hooker": ("hooker_validation", int(os.environ.get("HOOK", 5))), "photo": ("photo_validation", 1), "caps": ("caps_validation", 1), "words": ("words_validation", 1)}
decoders = os.environ.get("DEC", "greedy").split(",")
for src in sys.argv[1:]:
    model = get(src)
    for d in decoders:
        rec, t, row = Recognizer(model, os.environ.get("PREC", "bf16"), d), time.time(), []
        for name, (file, every) in sets.items():
            lines = pickle.load(open(f"/work/train/data/{file}.pkl", "rb"))[::every]
            texts = [r.text for r in rec.read_prepared([p for p, _ in lines])]; refs = [t for _, t in lines]
            row.append(f"{name} {100*cer(refs, texts):.2f}/{100*wer(refs, texts):.1f}")
        print(src, d, " ".join(row), f"({time.time()-t:.0f} s)", flush=True)
