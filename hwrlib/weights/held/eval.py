"""CER/WER of averaged weights of a held run (spaces at both ends stripped, paper at both sides), greedy and 6-gram."""
import pickle, sys, torch, numpy as np
sys.path.insert(0, "/work/train/clone")
from hwrlib import recognizer as R, WEIGHTS
from hwrlib.model import CRNN
from hwrlib.beam import PrefixBeam
from hwrlib.language import Language
from hwrlib.metrics import cer, wer
import os
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
src, which, decoder, both = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] == "both"
every = int(sys.argv[5]) if len(sys.argv) > 5 else 1
if src.endswith(".pt"):
    model = CRNN.from_pretrained(WEIGHTS); s = torch.load(src, weights_only=True, map_location="cpu"); model.load_state_dict(s["parts"]["averaged"])
    print(s["rest"]["progress"])
else: model = CRNN.from_pretrained(src)
lines = pickle.load(open(f"/work/train/data/{which}.pkl", "rb"))[::every]
dec = R.greedy if decoder == "greedy" else PrefixBeam(Language.load(WEIGHTS / "language.npz") if decoder == "language" else None)
rec = R.Recognizer(model, "bf16", dec)
if both:
    lines = [(np.pad(p, ((0,0),(16,0)), constant_values=255), t) for p, t in lines]
texts = [r.text.strip() for r in rec.read_prepared([p for p, _ in lines])]
refs = [t for _, t in lines]
print(src, which, decoder, len(lines), f"CER {cer(refs, texts):.4f} WER {wer(refs, texts):.4f}")
