"""Train from the same weights again and again, one thing changed each time: what does it bring? (chapters 4 and 8)."""

import argparse
import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from hwrlib import WEIGHTS
from hwrlib.augment import vary
from hwrlib.batches import PreparedLine, prepare_lines
from hwrlib.cpu import PRECISIONS, best_precision
from hwrlib.data import hold_out, load_lines
from hwrlib.files import DataError
from hwrlib.metrics import cer, per_line, score
from hwrlib.model import CRNN, weights_version
from hwrlib.recognizer import Recognizer
from hwrlib.settings import PRESETS
from hwrlib.training import Trainer, make_trainer

# The recipe as it was set for a CPU: the last stage of the shipped weights, whose learning rate fell for longer.
RECIPE = {"epochs": 1, "batch_size": 4, "learning_rate": 5e-4, "warmup": 50}
RECIPE |= {"ema_decay": 0.995, "aux_weight": 0.2, "augmentation": 0.6}
SHARES = {"strokes": 0.4, "as_written": 0, "numbers": 0.08}  # of the lines of a run; the others are IAM's
LINES = 1200  # that each run of the ablation sees
CHANGES = {  # other settings or shares; None: the weights as they are
    "start": None,
    "the recipe": {},
    "another seed": {"seed": 1},
    "no pen strokes": {"strokes": 0},
    "no lines of numbers": {"numbers": 0},
    "pen strokes not spaced as IAM's": {"strokes": 0, "as_written": 0.4},
    "no augmentation": {"augmentation": 0},
    "no blots, no masked spans": {"augmentation": 0, "vary": 0.6},
    "no auxiliary head": {"aux_weight": 0},
    "rate held to the end": {"schedule": "hold"},
    "no average of the weights": {"ema_decay": 0},
    "batches of 8": {"batch_size": 8},
    "a third seed": {"seed": 2},
}
WRITERS = ("202", "289")  # the two with the most lines among IAM's validation lines: 53 and 50
GIVEN, OTHERS, EPOCHS = (5, 10, 20, 40), 100, 3  # a writer's lines to learn from, others' that are read; epochs
LEARNT, SEEDS = (10, 30, 100, 300, 1000), (0, 1, 2)  # lines of a hand that are learnt from
VISITS, READ = 1000, 3  # each is seen 10 times, or so many lines in all; every third line that was kept aside is read
Runs = Iterator[tuple[dict, Callable[[], dict | None]]]


def record(table: Path, runs: Runs, alike: dict) -> None:
    """Do each run that a table lacks and add its row; a run that gives none was stopped, and ends it."""
    as_text = {"weights": str, "writer": str}
    rows = pd.read_csv(table, dtype=as_text).to_dict("records") if table.exists() else []
    if any(not alike.items() <= row.items() for row in rows):
        raise DataError(f"{table} has rows of other weights or another precision than {alike}; give another folder")
    for run, work in runs:
        if any(run.items() <= row.items() for row in rows):
            continue
        if not (found := work()):
            return
        rows.append(run | found | alike)
        pd.DataFrame(rows).to_csv(table, index=False)
        print(rows[-1], flush=True)


def ablation(options: argparse.Namespace) -> Runs:
    """A run for each of ``CHANGES``, over as many lines; and each validation line's wrong characters."""
    start, errors = CRNN.from_pretrained(options.weights), options.out / "ablation_errors.csv"
    prepare = functools.partial(prepare_lines, alphabet=start.alphabet, width_divisor=start.width_divisor)
    files = dict(zip(["iam", *SHARES], [options.data, *options.extra], strict=True))
    source = functools.cache(lambda name: prepare(load_lines("train", files[name])))
    validation = prepare(load_lines("validation", options.data))

    def train(name: str, change: dict | None) -> dict | None:
        model, row = CRNN.from_pretrained(options.weights), {"lines": 0, "steps": 0, "minutes": 0.0}
        if change is not None:
            shares, lines = {of: change.get(of, share) for of, share in SHARES.items()}, []
            for of, share in (shares | {"iam": 1 - sum(shares.values())}).items():
                order = np.random.default_rng(0).permutation(len(source(of))) if share else []
                lines += [source(of)[k] for k in order[: round(share * LINES)]]
            if "vary" in change:  # here, since the training hides parts as well
                rng, divisor = np.random.default_rng(0), model.width_divisor
                lines = [replace(line, pixels=vary(line.pixels, rng, change["vary"], divisor)) for line in lines]
            values = {name: value for name, value in change.items() if hasattr(PRESETS["recipe"], name)}
            settings = replace(PRESETS["recipe"], **RECIPE | values, precision=options.precision)
            with tempfile.TemporaryDirectory() as folder:
                trainer = Trainer(model, lines, validation[:1], folder, settings)  # all are read below
                model = trainer.run(bar=False)
            if not trainer.history:
                return None
            row = {key: trainer.history[-1][key] for key in row}
        readings = Recognizer(model, options.precision).read_prepared([line.pixels for line in validation])
        read = per_line([line.text for line in validation], [reading.text for reading in readings])
        counts = pd.read_csv(errors) if errors.exists() else read[["characters"]]
        counts.assign(**{name: read.errors}).to_csv(errors, index=False)
        row["cer"] = round(read.errors.sum() / read.characters.sum(), 5)
        return row | {"wer": round(read.word_errors.sum() / read.words.sum(), 5)}

    return (({"change": name}, functools.partial(train, name, change)) for name, change in CHANGES.items())


def personal(options: argparse.Namespace) -> Runs:
    """Runs that learn 0 to 40 lines of a writer and read that writer's other lines, and lines of everyone else."""
    lines, general = load_lines("validation", options.data), load_lines("train", options.data)
    order = np.random.default_rng(0).permutation(len(lines))
    writers = np.array(lines["writer"])[order]
    others = lines.select(order[~np.isin(writers, WRITERS)][:OTHERS])

    def teach(writer: str, given: int, frozen: bool, replay: bool) -> dict | None:
        own, model = lines.select(order[writers == writer]), CRNN.from_pretrained(options.weights)
        best, minutes = 0, 0.0
        if given:
            settings = replace(PRESETS["personal"], epochs=EPOCHS, frozen=frozen, precision=options.precision)
            with tempfile.TemporaryDirectory() as folder:
                some, mixed = hold_out(own.select(range(given))), general if replay else None
                trainer = make_trainer(model, *some, folder, settings, replay_rows=mixed)
                trainer.run(bar=False)
                if len(trainer.history) <= EPOCHS:
                    return None
                model = CRNN.from_pretrained(Path(folder) / "best")
            best, minutes = np.argmin([row["cer"] for row in trainer.history]), trainer.history[-1]["minutes"]
        reader, rates = Recognizer(model, options.precision), {}
        for name, some in {"cer_own": own.select(range(GIVEN[-1], len(own))), "cer_others": others}.items():
            rates[name] = round(cer(some["text"], [r.text for r in reader.read_lines(some["image"])]), 4)
        return rates | {"best_epoch": int(best), "minutes": minutes}

    variants = [(0, False, False), *((n, frozen, True) for n in GIVEN for frozen in (False, True))]
    runs = [(writer, *variant) for writer in WRITERS for variant in [*variants, (GIVEN[-1], False, False)]]
    names = "writer", "own_lines", "frozen", "replay"
    return ((dict(zip(names, run, strict=True)), functools.partial(teach, *run)) for run in runs)


def hand(options: argparse.Namespace) -> Runs:
    """Runs that learn 0 to all lines of an archive's hand, and read of its validation lines and of IAM's each third."""
    start = CRNN.from_pretrained(options.weights)

    def prepare(source: str, split: str) -> list[PreparedLine]:
        rows = load_lines(split, source)  # of the texts, what the network can write
        texts = [" ".join(start.alphabet.drop(text).split()) for text in rows["text"][:]]
        rows = rows.remove_columns("text").add_column("text", texts)
        return prepare_lines(rows, start.alphabet, start.width_divisor, skip_bad=True)

    own = prepare(options.data, "train")
    read = [prepare(source, "validation")[::READ] for source in (options.data, *options.extra)]
    counts = [count for count in LEARNT if count < len(own)]

    def teach(count: int, seed: int) -> dict | None:
        model, minutes = CRNN.from_pretrained(options.weights), 0.0
        if count:
            some = [own[k] for k in np.random.default_rng(seed).permutation(len(own))[:count]]
            epochs = int(np.clip(VISITS // count, 1, 10))
            settings = replace(PRESETS["personal"], epochs=epochs, patience=None, seed=seed)
            with tempfile.TemporaryDirectory() as folder:
                trainer = Trainer(model, some, some[:1], folder, replace(settings, precision=options.precision))
                model = trainer.run(bar=False)
            if len(trainer.history) < epochs:
                return None
            minutes = trainer.history[-1]["minutes"]
        reader, row = Recognizer(model, options.precision), {"minutes": minutes}
        for name, lines in zip(("own", "iam"), read, strict=True):
            texts = [reading.text for reading in reader.read_prepared([line.pixels for line in lines])]
            found = score([line.text for line in lines], texts)["cer"]
            row |= {f"{name}_{part}": round(value, 4) for part, value in found.items()}
        return row

    runs = [(0, 0), *((count, seed) for seed in SEEDS for count in counts)]
    runs.insert(len(counts) + 1, (len(own), 0))  # the first seed whole, then the others: a table cut short has a curve
    return (({"lines": count, "seed": seed}, functools.partial(teach, count, seed)) for count, seed in runs)


def main(arguments: list[str] | None = None) -> None:
    """Record a kind's table, such as ablation.csv; a second call goes on with what is missing."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.experiments", description=__doc__)
    parser.add_argument("kind", choices=["ablation", "personal", "hand"])
    parser.add_argument("out", type=Path, help="folder of the tables, such as notebooks/recorded")
    parser.add_argument("data", help="folder of the IAM lines (personal: with their writers), for hand of that hand's")
    parser.add_argument(
        "extra", nargs="*", help="ablation: parquet of strokes, strokes --as-written, numbers; hand: IAM"
    )
    parser.add_argument("--weights", default=WEIGHTS, help="the weights to start from (default: the embedded)")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: what is fast here")
    options = parser.parse_args(arguments)
    options.precision = options.precision or best_precision()
    runs = {"ablation": ablation, "personal": personal, "hand": hand}[options.kind](options)
    alike = {"precision": options.precision, "weights": weights_version(options.weights)}
    record(options.out / f"{options.kind}.csv", runs, alike)


if __name__ == "__main__":
    main()
