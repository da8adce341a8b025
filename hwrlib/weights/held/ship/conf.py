"""What the 6-gram's confidence expects and what is right, on lines that calibration did not see."""
import os
from hwrlib.data import load_lines
from hwrlib.images import ImageError, prepare_pixels
from hwrlib.metrics import per_line
from hwrlib.recognizer import Recognizer, mean_confidence
reader = Recognizer.from_pretrained(precision=os.environ.get("PRECISION", "bf16"), decoder="language")
for name, first, step in (("iam-line", 1, 2), ("hooker", 2, 8)):
    rows, texts, pixels = load_lines("validation", f"/work/shared/{name}/data"), [], []
    for k in range(first, len(rows), step):
        try: pixels.append(prepare_pixels(rows[k]["image"], width_divisor=reader.model.width_divisor)); texts.append(rows[k]["text"])
        except ImageError: pass
    readings = reader.read_prepared(pixels); table = per_line(texts, [r.text for r in readings])
    print(name, len(texts), f"expects {mean_confidence(readings):.1%}, right {1 - table.errors.sum() / table.characters.sum():.1%}", flush=True)
