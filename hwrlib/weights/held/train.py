"""The held run: shipped weights, one rate, spaces at both ends of every target, paper at both sides."""
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
        pixels = augment(line.pixels, rng, self.strength, self.width_divisor) if self.strength else line.pixels
        left, right = rng.integers(6, 30), rng.integers(10, 36)
        return PreparedLine(np.pad(pixels, ((0, 0), (left, right)), constant_values=255), line.text, line.labels)
training.AugmentedLines = Papered
lines = load("iam") * 3 + load("strokes") + load("hooker_train") + load("words") + load("caps") + load("beyond")
lines = [l for l in lines if l.pixels.shape[1] < 1300]
val = load("iam_validation")[::8]
print(len(lines), "lines", flush=True)
model = CRNN.from_pretrained(init)
settings = Settings(epochs=1000, minutes=minutes, batch_size=4, learning_rate=6e-4, warmup=200, schedule="hold", weight_decay=0.01, average=0.997, auxiliary=0.2, strength=0.9, seed=seed, precision="bf16")
t = training.Trainer(model, lines, val, output, settings, resume)
t.run(bar=False)
