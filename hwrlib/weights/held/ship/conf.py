"""What the 6-gram's confidence expects and what is right, on lines that calibration did not see: IAM's from core1.sh's predictions."""
import os
import pandas as pd
from hwrlib.data import load_lines
from hwrlib.images import ImageError, prepare_pixels
from hwrlib.metrics import per_line
from hwrlib.recognizer import Recognizer, mean_confidence
iam = pd.read_csv("/work/plan/language.csv", keep_default_na=False)[1::2]; written = iam.prediction.astype(str).str.len()
print("iam-line", len(iam), f"expects {(iam.confidence * written).sum() / written.sum():.1%}, right {1 - iam.errors.sum() / iam.characters.sum():.1%}", flush=True)
reader = Recognizer.from_pretrained(precision=os.environ.get("PRECISION", "bf16"), decoder="language")
rows, texts, pixels = load_lines("validation", "/work/shared/hooker/data"), [], []
for k in range(2, len(rows), 8):
    try: pixels.append(prepare_pixels(rows[k]["image"], width_divisor=reader.model.width_divisor)); texts.append(rows[k]["text"])
    except ImageError: pass
readings = reader.read_prepared(pixels); table = per_line(texts, [r.text for r in readings])
print("hooker", len(texts), f"expects {mean_confidence(readings):.1%}, right {1 - table.errors.sum() / table.characters.sum():.1%}", flush=True)
