"""Teach the network one hand: own lines held out, general lines mixed in, and what it brings, recorded (chapter 8)."""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from hwrlib.batches import PreparedLine, prepare_lines, rehearse
from hwrlib.data import DataError, hold_out, load_lines
from hwrlib.metrics import cer
from hwrlib.model import CRNN
from hwrlib.recognizer import WEIGHTS, Recognizer
from hwrlib.settings import PRESETS
from hwrlib.training import Trainer
from hwrlib.weights import version

WRITERS = ("202", "289")  # the two with the most lines among IAM's validation lines: 53 and 50
GIVEN, OTHERS = (5, 10, 20, 40), 100  # lines of a writer given to learn from; lines of all other writers that are read
EPOCHS = 3  # of a recorded run: few, so that all of them take minutes
RUN = ["writer", "own_lines", "frozen", "replay"]  # what tells one run from another
COLUMNS = [*RUN, "cer_own", "cer_others", "best_epoch", "minutes", "precision", "weights"]


def learning_curve(data: str | Path, out: Path, weights: str | Path = WEIGHTS, precision: str | None = None) -> None:
    """Fine-tune to two writers whom the network has never seen, and write the CER on them and on everyone else.

    Each gives 0 to 40 lines, of which a fifth is held out to choose the best epoch; their other lines only measure.
    A row is written after each run; a second call goes on with what is missing.

    Arguments:
        data: the IAM lines in the Hub's layout, with the column ``writer``; the network learnt from its "train" alone.
        out: the table (.csv): no line and no transcript.
        weights: the folder to start from.
        precision: see :class:`hwrlib.Recognizer`.

    Raises:
        DataError: no column ``writer``, too few lines of a writer, or a table of other weights.
    """
    made_with = version(weights)
    rows = pd.read_csv(out, dtype={"writer": str, "weights": str}).to_dict("records") if out.exists() else []
    if {row["weights"] for row in rows} - {made_with}:
        raise DataError(f"{out} was made with other weights than {weights}: delete it, or give another name")
    precision = precision or Recognizer.from_pretrained(weights).precision  # measured once, the same for all
    done = {tuple(row[name] for name in RUN) for row in rows}
    lines, start = load_lines("validation", data), CRNN.from_pretrained(weights)
    if "writer" not in lines.column_names:
        raise DataError(f"{data}: no column writer; it has {', '.join(lines.column_names)}")
    order = np.random.default_rng(0).permutation(len(lines))
    writers = np.array(lines["writer"])[order]
    general = prepare_lines(load_lines("train", data), start.alphabet, start.width_divisor)
    others = lines.select(order[~np.isin(writers, WRITERS)][:OTHERS])
    variants = [(0, False, False)]
    variants += [(n, frozen, True) for n in GIVEN for frozen in (False, True)] + [(GIVEN[-1], False, False)]
    for writer in WRITERS:
        own = lines.select(order[writers == writer])
        if len(own) <= GIVEN[-1]:
            raise DataError(f"{data}: {len(own)} lines of writer {writer}, but more than {GIVEN[-1]} are needed")
        offered, measured = own.select(range(GIVEN[-1])), own.select(range(GIVEN[-1], len(own)))
        for given, frozen, replay in variants:
            run = (writer, given, frozen, replay)
            if run in done:
                continue
            best, found = weights, {"best_epoch": 0, "minutes": 0.0}
            with tempfile.TemporaryDirectory() as folder:
                if given:
                    some, best = offered.select(range(given)), Path(folder) / "best"
                    found = _teach(weights, some, general if replay else [], folder, frozen, precision)
                reader = Recognizer.from_pretrained(best, precision)
            rates = [
                cer(some["text"], [r.text for r in reader.read_lines(some["image"])]) for some in (measured, others)
            ]
            row = dict(zip(RUN, run, strict=True)) | {"cer_own": round(rates[0], 4), "cer_others": round(rates[1], 4)}
            rows.append(row | found | {"precision": precision, "weights": made_with})
            pd.DataFrame(rows, columns=COLUMNS).to_csv(out, index=False)
            print(rows[-1], flush=True)


def _teach(
    weights: str | Path,
    own: datasets.Dataset,
    general: list[PreparedLine],
    folder: str | Path,
    frozen: bool,
    precision: str,
) -> dict:
    """Fine-tune in a folder; the best epoch and the minutes that it took."""
    model = CRNN.from_pretrained(weights)
    settings = dataclasses.replace(PRESETS["personal"], epochs=EPOCHS, frozen=frozen, precision=precision)
    learnt, held_out = (prepare_lines(rows, model.alphabet, model.width_divisor) for rows in hold_out(own))
    trainer = Trainer(model, rehearse(learnt, general, seed=settings.seed), held_out, folder, settings)
    began = time.monotonic()
    trainer.run(bar=False)
    best = int(np.argmin([row["cer"] for row in trainer.history]))
    return {"best_epoch": best, "minutes": round((time.monotonic() - began) / 60, 2)}


def main(arguments: list[str] | None = None) -> None:
    """Record what own lines bring."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.personal", description=__doc__)
    parser.add_argument("data", help="folder of the IAM lines, with the column writer")
    parser.add_argument("out", type=Path, help="the table to write, such as notebooks/recorded/personal.csv")
    parser.add_argument("--weights", default=WEIGHTS)
    parser.add_argument("--precision", choices=["no", "bf16", "fp16"])
    options = parser.parse_args(arguments)
    learning_curve(options.data, options.out, options.weights, options.precision)


if __name__ == "__main__":
    main()
