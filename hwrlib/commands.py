"""The commands of the command line, each with the options that ``python -m hwrlib`` has read."""

import argparse
import dataclasses
import datetime
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from hwrlib.archive.bulk import read_archive, show_progress
from hwrlib.archive.formats import FORMATS, ReadPage, write_page
from hwrlib.archive.sources import find_files, find_items, iter_pages
from hwrlib.batches import cut_words, prepare_lines, rehearse
from hwrlib.data import EXAMPLE, DataError, load_lines, load_strokes, training_lines
from hwrlib.image_files import MOST_BYTES, ImageError, load_page
from hwrlib.metrics import per_line, report
from hwrlib.model import CRNN, export_onnx
from hwrlib.recognizer import Recognizer, load_recognizer
from hwrlib.settings import PRESETS
from hwrlib.training import Trainer, new_model
from hwrlib.weights import version


def read(options: argparse.Namespace) -> int:
    """Print the text of lines and pages, line by line; go on after one that cannot be read, and say so at the end."""
    files, recognizer, failures = _files(options), _recognizer(options), []
    several = len(options.images) > 1 or any(Path(given).is_dir() for given in options.images)
    named = several and options.format == "text"
    for name, label, page in _pages(files):
        try:
            if isinstance(page, Exception):
                raise page
            readings = recognizer.read_page(page, options.kind)
            if not readings:
                raise ImageError("no writing was found")
            if options.output:
                shown = f"{write_page(ReadPage(label, page, readings), options.format, options.output)}\n".encode()
            elif named:
                shown = "".join(f"{name}\t{reading.text}\n" for reading in readings).encode()
            else:
                shown = FORMATS[options.format].write(ReadPage(name, page, readings))
        except (ValueError, RuntimeError, MemoryError, OSError) as error:
            failures.append(complain(error, name))
            continue
        sys.stdout.buffer.write(shown)
        sys.stdout.flush()
    return int(bool(failures))


def archive(options: argparse.Namespace) -> int:
    """Read an archive into parquet files and others; go on where a run was cut off."""
    make = functools.partial(load_recognizer, options.weights, options.decoder, options.precision)
    model = f"{version(options.weights)}-{options.decoder}"
    items = find_items(options.source)
    arguments = (items, options.output, make, model, options.format, options.workers, options.address)
    rows = show_progress(read_archive(*arguments), len(items))
    broken = [row for row in rows if row.get("error")]
    for row in broken:
        complain(row["error"], row["path"])
    return int(bool(broken))


def export(options: argparse.Namespace) -> int:
    """Write the network as an ONNX file."""
    export_onnx(CRNN.from_pretrained(options.weights), options.output)
    return 0


def train(options: argparse.Namespace) -> int:
    """Train a network; the folder then holds its weights and history."""
    if Path(options.data).is_file():
        raise DataError(f"{options.data} is one file: training needs a folder of lines")
    settings = dataclasses.replace(PRESETS[options.preset], **dict(options.set))
    start = CRNN.from_pretrained(options.init) if options.init else new_model(settings)
    width_divisor = start.width_divisor if options.width_divisor is None else options.width_divisor
    model = CRNN(start.alphabet, width_divisor, start.calibration)
    model.load_state_dict(start.state_dict())
    prepare = functools.partial(prepare_lines, alphabet=model.alphabet, width_divisor=width_divisor)
    rows, held_out = training_lines(options.data)
    print(f"{len(rows)} lines to train on, {len(held_out)} held out to validate", file=sys.stderr)
    lines = prepare(rows) * options.repeat
    if options.strokes:
        lines += prepare(load_strokes(options.strokes, model.alphabet, settings.seed))
    for source in options.extra:
        lines += prepare(load_lines("train", source))
    if options.words:
        lines = [word for line in lines for word in cut_words(line, model.alphabet)]
    general = []
    if options.replay:
        others = load_lines("train", options.replay).shuffle(seed=settings.seed)
        general = prepare(others.select(range(min(len(others), len(lines) + 32))))  # no more than can be drawn
    if options.replay or options.preset == "personal":
        lines = rehearse(lines, general, seed=settings.seed)
    trainer = Trainer(model, lines, prepare(held_out), options.output, settings, options.resume, _show)
    trainer.run()
    trainer.accelerator.end_training()  # a process of several that ends without it may abort
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Print CER and WER with 95 % intervals, and write the report and the predictions where asked."""
    rows, recognizer, prepared, failures = load_lines(options.split, options.data), _recognizer(options), {}, []
    for number in range(len(rows)):
        try:
            prepared[number] = recognizer.prepare(rows[number]["image"])
        except ValueError as error:
            failures.append(complain(error, f"{options.data}, row {number}"))
    rows = rows.remove_columns("image").select(list(prepared))
    readings = recognizer.read_prepared(list(prepared.values()), progress=sys.stderr.isatty())
    table = per_line(rows["text"][:], [reading.text for reading in readings])
    groups = {"all": table}
    if "scan" in rows.column_names:
        groups |= dict(iter(table.assign(scan=rows["scan"][:]).groupby("scan")))
    scores = {name: report(list(group.reference), list(group.prediction)) for name, group in groups.items()}
    for name, result in scores.items():
        closed = result["without_spaces_before_punctuation"]
        print(f"{name}: {result['lines']} lines: {_rate(result, 'cer')}, {_rate(result, 'wer')}")
        print(f"  without spaces before punctuation: {_rate(closed, 'cer')}, {_rate(closed, 'wer')}")
    if options.report:
        about = {"data": str(options.data), "split": options.split, "decoder": options.decoder}
        about |= {"date": datetime.date.today().isoformat(), "weights": version(options.weights)}
        options.report.write_text(json.dumps(about | scores, indent=1) + "\n")
    if options.predictions:
        table["confidence"] = [reading.confidence for reading in readings]
        table.insert(0, "id", rows["line_id"][:] if "line_id" in rows.column_names else table["line"].astype(str))
        write = table.to_parquet if options.predictions.suffix == ".parquet" else table.to_csv
        write(options.predictions, index=False)
    return int(bool(failures))


def complain(error: Exception | str, name: str = "") -> str:
    """Say in one line on standard error what is wrong, and with what."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if name in text else f"{name}: {text}"
    print(f"hwrlib: {text}", file=sys.stderr)
    return text


def _show(history: pd.DataFrame) -> None:
    print(history.tail(1).to_string(index=False, header=len(history) == 1), flush=True)


def _rate(result: dict, name: str) -> str:
    return f"{name.upper()} {result[name]['rate']:.2%} ({result[name]['low']:.2%} to {result[name]['high']:.2%})"


def _recognizer(options: argparse.Namespace) -> Recognizer:
    return load_recognizer(options.weights, options.decoder, options.precision)


def _files(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Each file to be read, and what it is called in --output: its path in the folder given, or its own name."""
    found = [
        (file, str(Path(file).relative_to(given)) if Path(given).is_dir() else Path(file).name)
        for given in options.images
        for file in find_files(given)
    ]
    labels = [label for _, label in found]
    if options.output and (twice := {label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"{options.output} would get two files called {min(twice)}: read their folders one by one")
    if len(found) > 1 and not options.output and options.format not in ("text", "json"):
        raise ValueError(f"{len(found)} pages as {options.format} need a folder: give --output")
    return found


def _pages(files: list[tuple[str, str]]) -> Iterator[tuple[str, str, np.ndarray | Exception]]:
    """Each page's name, name in --output, and pixels or error, FILE#2 being the second of a file of many."""
    if not files:
        print(f"No image given: this is line {EXAMPLE} of the embedded sample (synthetic).", file=sys.stderr)
        yield "sample", "sample", load_page(load_lines("validation", "sample")[EXAMPLE - 1]["image"])
    for name, label in files:
        image = sys.stdin.buffer.read(MOST_BYTES) if name == "-" else name
        for number, page in enumerate(iter_pages(image, name), start=1):
            which = f"#{number}" if number > 1 else ""
            yield name + which, label + which, page
