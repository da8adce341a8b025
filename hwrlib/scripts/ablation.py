"""Train again and again from the same weights, each time with one change: what does it bring? (chapter 4)."""

import argparse
import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import datasets
import numpy as np
import pandas as pd

from hwrlib.alphabet import Alphabet
from hwrlib.batches import PreparedLine, prepare_lines
from hwrlib.data import DataError, load_lines, load_strokes
from hwrlib.metrics import per_line
from hwrlib.model import CRNN
from hwrlib.recognizer import WEIGHTS, Recognizer
from hwrlib.settings import PRESETS
from hwrlib.training import Trainer
from hwrlib.weights import version

# The recipe as it was set for a CPU: the last stage of the shipped weights, whose rate fell for longer.
RECIPE = dataclasses.replace(
    PRESETS["recipe"],
    epochs=1,
    batch_size=4,
    learning_rate=5e-4,
    warmup=50,
    average=0.995,
    auxiliary=0.2,
    strength=0.6,
)
STROKES, NUMBERS = 0.4, 0.08  # of the lines of a run; the others are IAM's
COLUMNS = ["change", "lines", "steps", "minutes", "precision", "cer", "wer", "weights"]


@dataclass(frozen=True)
class Change:
    """What a run does in another way than the recipe.

    Arguments:
        settings: other than the recipe's.
        strokes, numbers: share of the lines that are pen strokes, and lines of numbers.
        spaced: whether the transcripts of pen strokes set punctuation apart as IAM's do.
        occluded: whether augmentation drops blots and masks spans.
    """

    settings: dict = field(default_factory=dict)
    strokes: float = STROKES
    numbers: float = NUMBERS
    spaced: bool = True
    occluded: bool = True


CHANGES = {
    "the recipe": Change(),
    "another seed": Change({"seed": 1}),
    "no pen strokes": Change(strokes=0),
    "no lines of numbers": Change(numbers=0),
    "pen strokes not spaced as IAM's": Change(spaced=False),
    "no augmentation": Change({"strength": 0}),
    "no blots, no masked spans": Change(occluded=False),
    "no auxiliary head": Change({"auxiliary": 0}),
    "rate held to the end": Change({"schedule": "hold"}),
    "no average of the weights": Change({"average": 0}),
    "batches of 8": Change({"batch_size": 8}),
    "a third seed": Change({"seed": 2}),
}


def ablation(
    data: str | Path,
    strokes: str | Path,
    numbers: str | Path,
    out: str | Path,
    runs: str | Path,
    weights: str | Path = WEIGHTS,
    lines: int = 1200,
    precision: str | None = None,
) -> None:
    """Train once with the recipe and once with each of ``CHANGES``, and write the errors on each validation line.

    Every run starts from the same weights and sees the same number of lines once. Two tables are written after each
    run: ``ablation.csv``, a row for each run, and ``ablation_errors.csv``, a row for each validation line: its
    characters, and the wrong ones after each run. A second call goes on with what is missing. Ablation studies:
    Newell, 1975. Chapter 4: notebooks/04_train_on_colab.ipynb.

    Arguments:
        data: folder of the IAM lines in the Hub's layout.
        strokes: parquet file of pen strokes.
        numbers: parquet file of lines of numbers, from ``python -m hwrlib.scripts.samples --numbers``.
        out: folder of the tables: no line and no transcript.
        runs: folder in which each run keeps its state, so that it can be stopped.
        weights: the folder to start from.
        lines: that each run sees.
        precision: of training and reading; None takes what is fast on this machine.

    Raises:
        DataError: too few lines, or tables of other weights, another precision or another number of lines.
    """
    table, errors = Path(out) / "ablation.csv", Path(out) / "ablation_errors.csv"
    made_with = version(weights)
    rows = pd.read_csv(table, dtype={"weights": str}).to_dict("records") if table.exists() else []
    counts = pd.read_csv(errors) if errors.exists() else pd.DataFrame()
    start = CRNN.from_pretrained(weights)
    precision = precision or Recognizer(start).precision  # measured once, the same for all
    alike = {"weights": (made_with,), "precision": (precision,), "lines": (0, lines)}
    for name, values in alike.items():
        if other := {row[name] for row in rows} - set(values):
            raise DataError(
                f"{table}: its column {name} holds {min(other)}, here it is {values[-1]}; give another folder"
            )
    prepare = functools.partial(prepare_lines, alphabet=start.alphabet, width_divisor=start.width_divisor)
    validation = prepare(load_lines("validation", data))
    iam, number_lines = prepare(load_lines("train", data)), prepare(load_lines("train", numbers))
    pens = functools.cache(lambda spaced: prepare(_pen_strokes(strokes, start.alphabet, spaced)))
    for name, change in {"start": None, **CHANGES}.items():
        if name in {row["change"] for row in rows}:
            continue
        model, seen, steps, minutes = CRNN.from_pretrained(weights), 0, 0, 0.0
        if change:
            shares = (pens(change.spaced), change.strokes), (number_lines, change.numbers)
            folder = Path(runs) / re.sub(r"\W+", "_", name)
            settings = dataclasses.replace(RECIPE, **change.settings, precision=precision)
            resume = (folder / "state.pt").exists()
            # Its own validation is cut short: every line is read below.
            trainer = Trainer(model, _mix(iam, shares, lines), validation[:1], folder, settings, resume)
            with contextlib.nullcontext() if change.occluded else mock.patch("hwrlib.augment._occlude"):
                model = trainer.run(bar=False)
            if trainer.progress["epoch"] < 1:
                return  # stopped, and the Trainer has said so
            seen, steps = trainer.progress["lines"], trainer.progress["step"]
            minutes = round(trainer.progress["seconds"] / 60, 1)
        readings = Recognizer(model, precision).read_prepared([line.pixels for line in validation])
        texts = [line.text for line in validation], [reading.text for reading in readings]
        read = per_line(*texts)
        counts = counts.assign(characters=read.characters, **{name: read.errors})
        rates = round(read.errors.sum() / read.characters.sum(), 5), round(read.word_errors.sum() / read.words.sum(), 5)
        rows.append(dict(zip(COLUMNS, [name, seen, steps, minutes, precision, *rates, made_with], strict=True)))
        counts.to_csv(errors, index=False)
        pd.DataFrame(rows, columns=COLUMNS).to_csv(table, index=False)
        print(rows[-1], flush=True)


def _pen_strokes(path: str | Path, alphabet: Alphabet, spaced: bool) -> datasets.Dataset:
    with contextlib.nullcontext() if spaced else mock.patch("hwrlib.data.spaced", str):
        return load_strokes(path, alphabet)


def _mix(iam: list[PreparedLine], shares: Iterable[tuple[list[PreparedLine], float]], lines: int) -> list[PreparedLine]:
    """So many lines: of each other source its share, drawn by chance, and IAM's for the rest."""
    mixed = []
    for source, share in [*shares, (iam, None)]:
        count = lines - len(mixed) if share is None else round(share * lines)
        if count > len(source):
            raise DataError(f"{count} lines of one source are needed, {len(source)} are given: give more of them")
        mixed += [source[k] for k in np.random.default_rng(0).permutation(len(source))[:count]]
    return mixed


def main(arguments: list[str] | None = None) -> None:
    """Record what each change brings."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.ablation", description=__doc__)
    parser.add_argument("data", help="folder of the IAM lines")
    parser.add_argument("strokes", help="parquet file of pen strokes")
    parser.add_argument("numbers", help="parquet file of lines of numbers")
    parser.add_argument("out", type=Path, help="folder of the tables, such as notebooks/recorded")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where the runs keep their states")
    parser.add_argument("--weights", default=WEIGHTS)
    parser.add_argument("--lines", type=int, default=1200)
    parser.add_argument("--precision", choices=["no", "bf16", "fp16"])
    options = parser.parse_args(arguments)
    datasets.disable_caching()  # whose key does not show that one change replaces a function
    ablation(**vars(options))


if __name__ == "__main__":
    main()
