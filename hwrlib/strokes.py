"""Pen strokes rendered as lines: training data, and what a drawing pad sends (chapters 2 and 7)."""

from collections.abc import Sequence

import cv2
import numpy as np

from hwrlib.augment import PAPER, smooth_field
from hwrlib.images import HEIGHT

FARTHEST = 100_000  # coordinates beyond this are no handwriting


def render_strokes(strokes: Sequence, rng: np.random.Generator) -> np.ndarray:
    """Draw pen strokes as a line of ink on paper, uint8 (128, W), cropped as tightly as the lines of IAM.

    Pen width, pressure, tremor and ink vary from line to line; a line that climbs or falls is levelled first, and a
    single "I" is a line as wide as high. Strokes are pen-down, in writing order, each flat x0, y0, x1, y1, ... in any
    unit, y downwards. Liwicki & Bunke (2005).
    """
    if strokes is None or len(strokes) == 0:
        raise ValueError("there are no strokes to draw: give a list of them, each flat, x0, y0, x1, y1, ...")
    strokes = [np.array(stroke, dtype=np.float64) for stroke in strokes]
    for k, flat in enumerate(strokes):
        if flat.ndim != 1 or flat.size == 0 or flat.size % 2 or not (np.abs(flat) < FARTHEST).all():  # NaN, too
            raise ValueError(f"stroke {k} must be flat, x0, y0, x1, y1, ..., not empty, and within {FARTHEST:,}")
    strokes = [flat.reshape(-1, 2) for flat in strokes]
    x, y = (np.vstack(strokes) - np.vstack(strokes).mean(0)).T
    if np.ptp(x) >= 3 * np.ptp(y) and x.any():  # long enough to tell the slope of a line that drifts from its letters'
        slope = float(np.clip((x @ y) / (x @ x), -0.12, 0.12))
        strokes = [stroke - [0, slope] * stroke[:, :1] for stroke in strokes]
    points = np.vstack(strokes)
    low, span = points.min(0), np.ptp(points, axis=0)
    pen = rng.uniform(2.4, 5)  # px
    margin = pen / 2 + HEIGHT * rng.uniform(0.01, 0.03)
    inner = HEIGHT - 2 * margin
    # A dash has no height to scale by: its length, 32 heights at most, bounds the scale; a dot keeps its size.
    scale = min(inner / max(span[1], 1e-6), 32 * inner / max(span[0], 1e-6)) if span.any() else 1.0
    width = max(1, int(np.ceil(span[0] * scale + 2 * margin)))
    offset = np.array([margin, (HEIGHT - span[1] * scale) / 2])
    fine = 3  # drawn three times as large and reduced: OpenCV's pen widths are whole pixels
    canvas = np.zeros((HEIGHT * fine, width * fine), np.uint8)
    tremor, shift = rng.uniform(0, 0.006) * HEIGHT, 4
    for stroke in strokes:
        path = (stroke - low) * scale + offset + tremor * _wander(len(stroke), rng)
        widths = np.maximum(2, fine * pen * (1 + 0.3 * _wander(len(stroke), rng)[:, 0])).round().astype(int)
        path = (path * fine * 2**shift).round().astype(int).tolist()
        for begin, end, thickness in zip(path, [*path[1:], path[-1]], widths.tolist(), strict=True):
            cv2.line(canvas, begin, end, PAPER, thickness, cv2.LINE_AA, shift)
    ink = cv2.resize(canvas, (width, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32)
    ink *= rng.uniform(0.8, 1) * (1 - rng.uniform(0, 0.4) * smooth_field(ink.shape, rng, pitch=12))
    line = (PAPER - ink).astype(np.uint8)
    return np.pad(line, ((0, 0), (0, max(0, HEIGHT - width))), constant_values=PAPER)


def _wander(count: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random offsets (count, 2), about -1 to 1, along a stroke."""
    steps = rng.standard_normal((count // 5 + 2, 2)).clip(-1.5, 1.5)
    at = np.linspace(0, len(steps) - 1, count)
    return np.stack([np.interp(at, np.arange(len(steps)), steps[:, axis]) for axis in (0, 1)], axis=1)
