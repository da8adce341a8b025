"""More of IAM, other hands and photographed lines; SHARE of IAM's lines are put together anew from runs of words of the same hand. 12 % of all lines are seen as on a small photo. The rate is held for 35 % of the time, then falls to zero; the distortions fall from 0.8 to LAST: tune10.py MINUTES OUTPUT INIT SEED PARTS LAST SHARE RATE [--resume]."""
import functools, pickle, sys
from pathlib import Path
import cv2, numpy as np, torch
cv2.setNumThreads(1); FAR = 0.12
sys.path.insert(0, "/work/train/clone")
from hwrlib import training
from hwrlib.alphabet import IAM
from hwrlib.augment import augment
from hwrlib.batches import AugmentedLines, PreparedLine
from hwrlib.model import CRNN
from hwrlib.settings import Settings
sys.path[:0] = ["/work/train", "/work/train/held"]; import recompose
able = Path("/proc/cpuinfo").read_text()
if "amx_bf16" in able:
    import fast; fast.patch(CRNN)
elif "avx512f" not in able:  # float32, products in whole numbers
    import avx2; avx2.patch(CRNN)
elif "avx512_fp16" in able:  # tiles, their products in float16: an Intel CPU without AMX is slow in bfloat16
    import fasthalf; fasthalf.patch(CRNN)
else:  # tiles in bfloat16: twice as fast there
    import fast16; fast16.patch(CRNN)
torch.optim.AdamW = functools.partial(torch.optim.AdamW, fused=True)
minutes, output, init, seed = float(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
last, share, peak, resume = float(sys.argv[6]), float(sys.argv[7]), float(sys.argv[8]), "--resume" in sys.argv
torch.set_num_threads(1)
D = Path("/work/train/data20")
def load(name):
    return [PreparedLine(p, t, IAM.encode(t.strip())) for p, t in pickle.load(open(D / f"{name}.pkl", "rb"))]
def far_away(line, rng):
    """The line as on a small photo: an x is 5 to 11.5 px high there; in 128 px it is some 29."""
    times = 29 / rng.uniform(5, 11.5)
    height, width = line.shape
    small = cv2.resize(line, (max(8, round(width * 2.0 / times)), round(height / times)), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.4: small = cv2.imdecode(cv2.imencode(".jpg", small, [1, int(rng.uniform(40, 95))])[1], 0)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
class Falling(AugmentedLines):
    def __getitem__(self, index):
        line = self.lines[index]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        if rng.random() < share:
            line = hands.anew(line, rng) or line
        pixels = augment(line.pixels, rng, 0.8 - (0.8 - last) * t._done(), self.width_divisor)
        return PreparedLine(far_away(pixels, rng) if rng.random() < FAR else pixels, line.text, line.labels)
training.AugmentedLines = Falling
training.rate = lambda step, done, s: s.learning_rate * min(1, (step + 1) / s.warmup, (1 - done) / 0.65)
parts = dict(zip(("iam", "strokes", "hooker_train", "words", "caps", "beyond", "photo"), map(int, sys.argv[5].split(","))))
lines = []
for name, times in parts.items():
    some = load(name); lines += some * times; print(name, len(some), times)
hands = recompose.Hands(lines[:4616])
lines = [l for l in lines if l.pixels.shape[1] < 1625]
val = load("iam_validation")[::8]
print(len(lines), "lines", flush=True)
model = CRNN.from_pretrained(init)
settings = Settings(epochs=1000, minutes=minutes, batch_size=4, learning_rate=peak, warmup=60, schedule="hold", weight_decay=0.01, average=0.997, auxiliary=0.2, strength=0.8, seed=seed, precision="bf16" if "avx512f" in able else "no")
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
