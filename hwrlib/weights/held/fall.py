"""One fall to zero from the held run: fall.py MINUTES OUTPUT HELD_FOLDER SEED; HELD_FOLDER has config.json, model.safetensors and state.pt."""
import pickle, sys, os
from pathlib import Path
import numpy as np, torch
sys.path.insert(0, "/work/train/clone")
from hwrlib import training
from hwrlib.alphabet import IAM
from hwrlib.augment import augment
from hwrlib.batches import AugmentedLines, PreparedLine
from hwrlib.model import CRNN
from hwrlib.settings import Settings
minutes, output, init, seed = float(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
resume = "--resume" in sys.argv
D = Path("/work/train/data")
def load(name):
    return [PreparedLine(p, t, IAM.encode(f" {t.strip()} ")) for p, t in pickle.load(open(D / f"{name}.pkl", "rb"))]
class Papered(AugmentedLines):
    def __getitem__(self, index):
        line = self.lines[index]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        pixels = augment(line.pixels, rng, 0.9 - 0.3 * t._done(), self.width_divisor)
        left, right = rng.integers(6, 30), rng.integers(10, 36)
        return PreparedLine(np.pad(pixels, ((0, 0), (left, right)), constant_values=255), line.text, line.labels)
training.AugmentedLines = Papered
training.rate = lambda step, done, settings: settings.learning_rate * (1 - done)
lines = load("iam") * 5 + load("strokes")[::2] + load("hooker_train") + load("words")[::2] + load("caps")[::2] + load("beyond")[::2]
lines = [l for l in lines if l.pixels.shape[1] < 1300]
val = load("iam_validation")[::8]
print(len(lines), "lines", flush=True)
model = CRNN.from_pretrained(init)
settings = Settings(epochs=1000, minutes=minutes, batch_size=4, learning_rate=6e-4, warmup=0, schedule="hold", weight_decay=0.01, average=0.995, auxiliary=0.2, strength=0.9, seed=seed, precision="bf16")
t = training.Trainer(model, lines, val, output, settings, resume)
if not resume:
    held = torch.load(Path(init) / "state.pt", weights_only=True, map_location="cpu")["parts"]
    for name in ("trainee", "averaged", "optimizer"):
        t.parts[name].load_state_dict(held[name])
    print("from the held state", flush=True)
t.run(bar=False)
