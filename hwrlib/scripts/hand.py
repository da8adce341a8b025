"""Teach the weights one archive's hand from 0 to all of its lines, and record what is gained and lost (chapter 8)."""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from hwrlib import WEIGHTS
from hwrlib.batches import PreparedLine, prepare_lines
from hwrlib.cpu import PRECISIONS, best_precision
from hwrlib.data import load_lines
from hwrlib.files import DataError
from hwrlib.metrics import score
from hwrlib.model import CRNN, weights_version
from hwrlib.recognizer import Recognizer
from hwrlib.settings import PRESETS
from hwrlib.training import Trainer

LEARNT, SEEDS = (10, 30, 100, 300, 1000), (0, 1, 2)  # lines that are learnt from
VISITS, MOST = 1000, 10  # a run sees about so many lines, each of them at least once and at most so often
READ = 3  # every third validation line is read


def prepare(source: str, split: str, start: CRNN) -> list[PreparedLine]:
    """The prepared lines of a split; characters that the network cannot write are left out of the texts."""
    rows = load_lines(split, source)
    texts = [" ".join(start.alphabet.drop(text).split()) for text in rows["text"][:]]
    rows = rows.remove_columns("text").add_column("text", texts)
    return prepare_lines(rows, start.alphabet, start.width_divisor, skip_bad=True)


def teach(weights: str, some: list[PreparedLine], seed: int, precision: str) -> tuple[CRNN, float]:
    """The weights after learning some lines, and the minutes that it took."""
    model = CRNN.from_pretrained(weights)
    if not some:
        return model, 0.0
    epochs = int(np.clip(VISITS // len(some), 1, MOST))
    settings = replace(PRESETS["personal"], epochs=epochs, patience=None, seed=seed, precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, some, some[:1], folder, settings)  # its own validation is of no interest
        model = trainer.run(bar=False)
    if len(trainer.history) < epochs:
        raise SystemExit("stopped; the same command goes on with this run")
    return model, trainer.history[-1]["minutes"]


def main(arguments: list[str] | None = None) -> None:
    """Add to a table each run that it lacks: the first seed from 0 to all lines, then the others."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.hand", description=__doc__)
    parser.add_argument("table", type=Path, help="such as notebooks/recorded/hand.csv; a second call goes on with it")
    parser.add_argument("own", help="folder of the hand's lines")
    parser.add_argument("other", help="folder of other lines, such as IAM's, of which nothing is to be lost")
    parser.add_argument("--weights", default=WEIGHTS, help="the weights to start from (default: the embedded)")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: what is fast here")
    options = parser.parse_args(arguments)
    options.precision = options.precision or best_precision()
    alike = {"precision": options.precision, "weights": weights_version(options.weights)}
    rows = pd.read_csv(options.table, dtype={"weights": str}).to_dict("records") if options.table.exists() else []
    if any(not alike.items() <= row.items() for row in rows):
        raise DataError(f"{options.table} has rows of other weights or another precision than {alike}; name another")
    start = CRNN.from_pretrained(options.weights)
    own = prepare(options.own, "train", start)
    kept = {"own": options.own, "other": options.other}
    kept = {name: prepare(source, "validation", start)[::READ] for name, source in kept.items()}
    counts = [count for count in LEARNT if count < len(own)]
    runs = [(0, 0), *((count, 0) for count in counts), (len(own), 0)]
    runs += [(count, seed) for seed in SEEDS[1:] for count in counts]
    for count, seed in runs:
        if any((row["lines"], row["seed"]) == (count, seed) for row in rows):
            continue
        some = [own[k] for k in np.random.default_rng(seed).permutation(len(own))[:count]]
        model, minutes = teach(options.weights, some, seed, options.precision)
        reader, row = Recognizer(model, options.precision), {"lines": count, "seed": seed, "minutes": minutes}
        for name, lines in kept.items():
            texts = [reading.text for reading in reader.read_prepared([line.pixels for line in lines])]
            found = score([line.text for line in lines], texts)["cer"]
            row |= {f"{name}_{part}": round(value, 4) for part, value in found.items()}
        rows.append(row | alike)
        pd.DataFrame(rows).to_csv(options.table, index=False)
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
