"""More of IAM, other hands and photographed lines: the rate is held for 35 % of the time, then falls to zero: tune6.py MINUTES OUTPUT INIT SEED PARTS [--resume]."""
import functools, pickle, sys
from pathlib import Path
import numpy as np, torch
sys.path.insert(0, "/work/train/clone")
from hwrlib import training
from hwrlib.alphabet import IAM
from hwrlib.augment import augment
from hwrlib.batches import AugmentedLines, PreparedLine
from hwrlib.model import CRNN
from hwrlib.settings import Settings
sys.path.insert(0, "/work/train"); import fast16; fast16.patch(CRNN)
torch.optim.AdamW = functools.partial(torch.optim.AdamW, fused=True)
minutes, output, init, seed = float(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
resume = "--resume" in sys.argv
torch.set_num_threads(1)
D = Path("/work/train/data")
def load(name):
    return [PreparedLine(p, t, IAM.encode(t.strip())) for p, t in pickle.load(open(D / f"{name}.pkl", "rb"))]
class Falling(AugmentedLines):
    def __getitem__(self, index):
        line = self.lines[index]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return PreparedLine(augment(line.pixels, rng, 0.8 - 0.2 * t._done(), self.width_divisor), line.text, line.labels)
training.AugmentedLines = Falling
training.rate = lambda step, done, s: s.learning_rate * min(1, (step + 1) / s.warmup, (1 - done) / 0.65)
parts = dict(zip(("iam", "strokes", "hooker_train", "words", "caps", "beyond", "photo"), map(int, sys.argv[5].split(","))))
lines = []
for name, times in parts.items():
    some = load(name); lines += some * times; print(name, len(some), times)
lines = [l for l in lines if l.pixels.shape[1] < 1300]
val = load("iam_validation")[::8]
print(len(lines), "lines", flush=True)
model = CRNN.from_pretrained(init)
settings = Settings(epochs=1000, minutes=minutes, batch_size=4, learning_rate=6e-4, warmup=60, schedule="hold", weight_decay=0.01, average=0.997, auxiliary=0.2, strength=0.8, seed=seed, precision="bf16")
t = training.Trainer(model, lines, val, output, settings, resume)
EVERY = 4
def seldom(self):
    """The average moves every fourth step, by as much as in four: less to read and write."""
    if self.progress["step"] % EVERY == 0:
        decay = min(self.settings.average, (1 + self.progress["step"]) / (10 + self.progress["step"])) ** EVERY
        with torch.no_grad():
            for mean, value in zip(self.averaged.state_dict().values(), self.model.state_dict().values(), strict=True):
                mean.lerp_(value, 1 - decay) if mean.is_floating_point() else mean.copy_(value)
training.Trainer._update_ema = seldom
t.run(bar=False)
