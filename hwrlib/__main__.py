"""Read handwriting, train the network that reads it, and measure how well it does."""

import argparse
import dataclasses
import datetime
import functools
import hashlib
import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from huggingface_hub import hf_hub_download

from hwrlib.app.server import serve
from hwrlib.archive.bulk import read_archive, show_progress
from hwrlib.archive.formats import FORMATS, ReadPage, write_page
from hwrlib.archive.sources import find_files, find_items, iter_pages
from hwrlib.batches import cut_words, prepare_lines, rehearse
from hwrlib.data import EXAMPLE, DataError, load_lines, load_strokes, training_lines
from hwrlib.image_files import MOST_BYTES, ImageError, load_page
from hwrlib.metrics import per_line, report
from hwrlib.model import CRNN, export_onnx
from hwrlib.recognizer import WEIGHTS, Recognizer, load_recognizer
from hwrlib.settings import PRESETS, parse_setting
from hwrlib.training import Trainer, new_model


def main(arguments: list[str] | None = None) -> int:
    """Run one command of the command line; 0 where it did what it was asked, 1 with a message where it could not."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except BrokenPipeError:  # whoever read the output has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        _complain(error)
        return 1


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
            failures.append(_complain(error, name))
            continue
        sys.stdout.buffer.write(shown)
        sys.stdout.flush()
    return int(bool(failures))


def archive(options: argparse.Namespace) -> int:
    """Read an archive into parquet files and others; go on where a run was cut off."""
    make = functools.partial(load_recognizer, options.weights, options.decoder, options.precision)
    model = f"{_version(options.weights)}-{options.decoder}"
    items = find_items(options.source)
    arguments = (items, options.output, make, model, options.format, options.workers, options.address)
    rows = show_progress(read_archive(*arguments), len(items))
    broken = [row for row in rows if row.get("error")]
    for row in broken:
        _complain(row["error"], row["path"])
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
    Trainer(model, lines, prepare(held_out), options.output, settings, options.resume, _show).run()
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Print CER and WER with 95 % intervals, and write the report and the predictions where asked."""
    rows, recognizer, prepared, failures = load_lines(options.split, options.data), _recognizer(options), {}, []
    for number in range(len(rows)):
        try:
            prepared[number] = recognizer.prepare(rows[number]["image"])
        except ValueError as error:
            failures.append(_complain(error, f"{options.data}, row {number}"))
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
        about |= {"date": datetime.date.today().isoformat(), "weights": _version(options.weights)}
        options.report.write_text(json.dumps(about | scores, indent=1) + "\n")
    if options.predictions:
        table["confidence"] = [reading.confidence for reading in readings]
        table.insert(0, "id", rows["line_id"][:] if "line_id" in rows.column_names else table["line"].astype(str))
        write = table.to_parquet if options.predictions.suffix == ".parquet" else table.to_csv
        write(options.predictions, index=False)
    return int(bool(failures))


def app(options: argparse.Namespace) -> int:
    """Open the app in the browser until Ctrl-C; each visitor has an own kernel and an own folder of kept lines."""
    if not importlib.util.find_spec("voila"):
        raise RuntimeError('the app needs Voila: pip install "voila>=0.5.5"')

    here = Path(__file__).resolve().parent
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here.parent), *filter(None, paths)])
    os.environ["HWR_LINES"], weights = str(options.lines.resolve()), Path(options.weights)
    os.environ["HWR_WEIGHTS"] = str(weights.resolve() if weights.exists() else weights)
    arguments = [str(here / "app" / "app.ipynb"), f"--port={options.port}", f"--Voila.ip={options.host}"]
    culling = {"idle_timeout": 3600, "interval": 300, "connected": True}  # a forgotten page keeps no place
    arguments += [f"--MappingKernelManager.cull_{name}={value}" for name, value in culling.items()]
    arguments += [] if options.browser else ["--no-browser"]
    if options.host not in ("127.0.0.1", "localhost", "::1"):
        token = secrets.token_hex(24)
        arguments += [f"--token={token}"]
        address = f"http://{options.host}:{options.port}/?token={token}"
        print(f"Open this address; without its token nobody gets in: {address}", flush=True)
    serve(arguments, options.visitors)
    return 0


def _complain(error: Exception | str, name: str = "") -> str:
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


def _version(weights: str | Path) -> str:
    """Eight hexadecimal digits that tell these weights from others."""
    file = Path(weights) / "model.safetensors"
    file = file if file.exists() else Path(hf_hub_download(str(weights), file.name))
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8]


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


def _setting(text: str) -> tuple[str, object]:
    try:
        return parse_setting(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error  # the one whose text argparse shows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hwrlib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="read | train | evaluate | app | archive | export")

    def add(command, about: str):
        added = commands.add_parser(command.__name__, help=about, description=about)
        added.set_defaults(command=command)
        return added.add_argument

    one = add(read, "Read images of handwritten lines or pages and print their text, line by line.")
    one("images", nargs="*", metavar="IMAGE", help='files (images, TIFF, PDF), folders, or "-" for standard input')
    one("--as", dest="kind", choices=["line", "page"], help="what each image is (default: decided by its look)")
    one("--format", choices=list(FORMATS), default="text", help="format of the output (default: %(default)s)")
    one("--output", type=Path, metavar="FOLDER", help="write one file for each page here, and print their names")

    two = add(train, "Train the network, or go on with a training; stop it with Ctrl-C at any time.")
    two("--output", type=Path, required=True, help="folder of the run, for its weights (best/), history and state")
    two("--data", default="iam", help='"iam" (from the Hugging Face Hub), "sample", or a folder')
    two("--repeat", type=int, default=1, metavar="N", help="use each line of --data N times in an epoch")
    two("--strokes", type=Path, help="parquet of pen strokes, rendered as more lines")
    two("--extra", action="append", default=[], metavar="DATA", help="more lines to train on; may be repeated")
    two("--replay", metavar="DATA", help="mix in as many lines of this data set, against forgetting (chapter 8)")
    two("--words", action="store_true", help="train on the words that can be cut from the lines")
    two("--preset", choices=sorted(PRESETS), default="recipe")
    two("--set", action="append", type=_setting, default=[], metavar="NAME=VALUE", help="change one of its settings")
    two("--width-divisor", type=float, help="divide the lines' width by this, 1 to 8 (default: 1, or as in --init)")
    two("--init", help="weights to start from: a folder or a name on the Hub")
    two("--resume", action="store_true", help="go on with the run in --output")

    three = add(evaluate, "Measure CER and WER on the lines of a data set.")
    three("--data", default="iam", help='"iam" (from the Hugging Face Hub), "sample", or a folder')
    three("--split", default="validation")
    three("--report", type=Path, metavar="FILE", help="write counts, rates and confusions (JSON, no text)")
    three("--predictions", type=Path, metavar="FILE", help="write each line's reading (.csv or .parquet)")

    four = add(app, "Open the app in the browser: a drawing pad, pictures, corrections.")
    four("--port", type=int, default=8866)
    four("--host", default="127.0.0.1", help="0.0.0.0 for all; beyond this machine a token is asked for")
    four("--visitors", type=int, default=8, metavar="N", help="at once; each takes about 0.5 GB of memory (default: 8)")
    four("--lines", type=Path, default=Path("my_lines"), metavar="FOLDER", help="for kept lines (default: my_lines)")
    four("--weights", default=WEIGHTS, help="a folder or a name on the Hub (default: the embedded)")
    four("--no-browser", dest="browser", action="store_false", help="do not open the browser")

    five = add(archive, "Read many pages on many cores or machines (Ray Data); run it again to go on after a stop.")
    five("source", help="a folder of images and PDF files or of a data set (parquet), one such file, or a .txt list")
    five("output", type=Path, help="folder of the result: parquet files with one row for each page")
    five("--format", action="append", choices=list(FORMATS), default=[], help="also write this format; may be repeated")
    five("--workers", type=int, metavar="N", help="processes that read (default: one for each GPU, else for each CPU)")
    five("--address", help='address of a Ray cluster, or "auto" (default: this machine alone)')

    six = add(export, "Write the network as an ONNX file: log-probabilities for one line of any width.")
    six("output", type=Path, metavar="MODEL.onnx")
    six("--weights", default=WEIGHTS, help="a folder or a name on the Hub (default: the embedded)")

    for command, decoder in ((one, "language"), (three, "greedy"), (five, "language")):
        command("--weights", default=WEIGHTS, help="a folder or a name on the Hub (default: the embedded)")
        command("--decoder", choices=["greedy", "beam", "language"], default=decoder, help="default: %(default)s")
        command("--precision", choices=["no", "bf16", "fp16"], help="default: what is fast on this machine")
    return parser


if __name__ == "__main__":
    sys.exit(main())
