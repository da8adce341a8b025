"""Fit each decoder's confidence to what comes true on validation lines, and write it into config.json (chapter 5)."""

import argparse
import json
from pathlib import Path

import numpy as np

from hwrlib import WEIGHTS
from hwrlib.cpu import PRECISIONS
from hwrlib.data import load_lines
from hwrlib.files import write_whole
from hwrlib.images import ImageError, prepare_pixels
from hwrlib.metrics import per_line
from hwrlib.model import CRNN
from hwrlib.recognizer import Recognizer, log_odds


def calibrate(confidences: np.ndarray, shares: np.ndarray) -> list[float]:
    """Offset and slope of :func:`hwrlib.recognizer.calibrated`, fitted to lines: Platt scaling (Platt, 1999).

    Arguments:
        confidences: (N,) 0 to 1, as the decoder gave them.
        shares: (N,) 0 to 1, of the characters read right: 1 - CER of each line, at least 0.
    """
    inputs = np.stack([np.ones(len(confidences)), log_odds(confidences)], axis=1)
    fit = np.array([0.0, 1.0])
    for _ in range(30):  # Newton's method
        expected = 1 / (1 + np.exp(-inputs @ fit))
        curvature = inputs.T * (expected * (1 - expected)) @ inputs + 1e-6 * np.eye(2)
        fit += np.linalg.solve(curvature, inputs.T @ (shares - expected))
    if not np.abs(fit).max() <= 100:
        raise ValueError(f"{len(shares)} lines: too few, or read too much alike, to calibrate; give more")
    return [round(float(value), 4) for value in fit]


def main(arguments: list[str] | None = None) -> None:
    """Read the lines with each decoder, fit, and write once all are fitted."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.calibration", description=__doc__)
    parser.add_argument("data", nargs="+", help='whose validation lines to read: "iam", "sample", or paths')
    parser.add_argument("--most", type=int, default=300, help="lines of each, evenly (default: %(default)s)")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of weights (default: the embedded)")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: what is fast here")
    options = parser.parse_args(arguments)
    model = CRNN.from_pretrained(options.weights)
    texts, pixels = [], []
    for data in options.data:
        lines = load_lines("validation", data)
        for row in lines.select(range(0, len(lines), -(-len(lines) // options.most))):
            try:
                pixels.append(prepare_pixels(row["image"], width_divisor=model.width_divisor))
                texts.append(row["text"])
            except ImageError as error:
                print(f"left out: {row['origin']}: {error}")
    model.calibration, fits = {}, {}  # confidences are then those of the decoders
    for decoder in ("greedy", "beam", "language"):
        readings = Recognizer(model, options.precision, decoder).read_prepared(pixels)
        table = per_line(texts, [reading.text for reading in readings])
        shares = (1 - table.errors / table.characters).clip(lower=0).to_numpy()
        fits[decoder] = calibrate(np.array([reading.confidence for reading in readings]), shares)
        print(decoder, *fits[decoder], flush=True)
    config = json.loads((options.weights / "config.json").read_text(encoding="utf-8")) | {"calibration": fits}
    write_whole(options.weights / "config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))


if __name__ == "__main__":
    main()
