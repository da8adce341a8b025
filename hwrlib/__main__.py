"""Read handwriting, train the network that reads it, and measure how well it does."""

# What a command needs is imported when it is called: PyTorch alone takes seconds, and the app's server works without.
import argparse
import dataclasses
import datetime
import functools
import json
import os
import sys
import typing
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hwrlib import SAMPLE, WEIGHTS
from hwrlib.app.server import app
from hwrlib.archive import FORMATS
from hwrlib.files import FAILURES, BadRows, complain, printable
from hwrlib.settings import PRESETS, Settings

BLANK = "no writing was found"


def main(arguments: list[str] | None = None) -> int:
    """Run one command of the command line; 0 where it did what it was asked, 1 with a message where it could not."""
    options = _parser().parse_args(arguments)
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # as a window or a service closes it
    try:
        return options.run(options)
    except BrokenPipeError:  # whoever read the output has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141
    except KeyboardInterrupt:
        return 130
    except FAILURES as error:
        complain(error)
        if isinstance(error, BadRows) and options.run is train:
            complain("--skip-bad-rows trains on the others")
        return 1


def read(options: argparse.Namespace) -> int:
    """Read images of handwritten lines or pages and print their text, line by line; go on after a broken one."""
    from hwrlib.archive.formats import render, write_page
    from hwrlib.archive.sources import iter_pages
    from hwrlib.images import MOST_BYTES
    from hwrlib.recognizer import load_recognizer

    files, failed = _files(options), False
    one_page = not options.output and options.format not in ("text", "json")  # it is one document, which holds no more
    if one_page and len(files) > 1:
        raise ValueError(f"{len(files)} files as {options.format} need a folder: give --output")
    recognizer = load_recognizer(options.weights, options.decoder, options.precision)
    many = len(options.images) > 1 or any(map(os.path.isdir, options.images))
    for file, name in files:
        for number, page in enumerate(iter_pages(sys.stdin.buffer.read(MOST_BYTES) if file == "-" else file, name)):
            try:
                if number and one_page:
                    raise ValueError(f"further pages as {options.format} need a folder: give --output")
                if isinstance(page.pixels, Exception):
                    raise page.pixels
                page = dataclasses.replace(page, readings=recognizer.read_page(page.pixels, options.kind))
                if options.output:
                    shown = f"{printable(str(write_page(page, options.format, options.output)))}\n".encode()
                else:
                    begin = f"{printable(page.name)}\t".encode() if many and options.format == "text" else b""
                    shown = b"".join(begin + row for row in render(page, options.format).splitlines(keepends=True))
            except FAILURES as error:
                failed = True
                complain(error, page.name)
                continue
            if not any(reading.text for reading in page.readings):
                complain(BLANK, page.name)
            if sys.stdout:
                sys.stdout.buffer.write(shown)
                sys.stdout.flush()
    return int(failed)


def _files(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Each file to be read and what it is called: its path, or its place in --output."""
    from hwrlib.archive.sources import find_files, readable_name

    if not sys.stdout and not options.output:
        raise ValueError("there is no standard output to print to: give --output")
    if not sys.stdin and "-" in options.images:
        raise ValueError("there is no standard input to read")
    if not options.images:
        options.images = [str(SAMPLE / "line.png")]
        print(f"No image given: this is the text of {options.images[0]} (synthetic).", file=sys.stderr)
    found, output = [], options.output
    for given in options.images:
        home = given if os.path.isdir(given) else os.path.dirname(given)
        for file in find_files(given, output):
            found.append((file, readable_name(os.path.relpath(file, home) if output else file)))
    ((name, count),) = Counter(name for _, name in found).most_common(1)
    if output and count > 1:
        raise ValueError(f"{output} would get {count} files called {name}: read their folders one by one")
    return found


def archive(options: argparse.Namespace) -> int:
    """Read many pages on many cores or machines (Ray Data); run it again to go on after a stop."""
    from hwrlib.archive.bulk import read_archive, show_progress
    from hwrlib.archive.sources import find_items
    from hwrlib.model import weights_version
    from hwrlib.recognizer import load_recognizer

    items = find_items(options.source, options.output)
    given = {} if options.weights == WEIGHTS else {"weights": options.weights}  # each machine has the embedded ones
    make = functools.partial(load_recognizer, decoder=options.decoder, precision=options.precision, **given)
    model = f"{weights_version(options.weights)}-{options.decoder}"
    rows = read_archive(items, options.output, make, model, options.format, options.workers, options.address)
    noted = [row for row in show_progress(rows, len(items)) if row.get("error") or row.get("text") == ""]
    for row in noted:
        complain(row["error"] or BLANK, row["path"])
    return int(any(row["error"] for row in noted))


def export(options: argparse.Namespace) -> int:
    """Write the network as an ONNX file: log-probabilities for one line of any width."""
    from hwrlib.model import CRNN, export_onnx

    export_onnx(CRNN.from_pretrained(options.weights), options.output)
    return 0


def train(options: argparse.Namespace) -> int:
    """Train the network, or go on with a training; stop it with Ctrl-C at any time."""
    import torch

    from hwrlib.data import load_lines, training_lines
    from hwrlib.model import CRNN
    from hwrlib.training import make_trainer

    if Path(options.data).is_file():
        raise ValueError(f"{options.data} is one file: training needs a folder of lines")
    given = {name: value for name, value in vars(options).items() if hasattr(Settings, name)}
    settings, skip = dataclasses.replace(PRESETS[options.preset], **given), options.skip_bad_rows
    torch.manual_seed(settings.seed)  # decides the first weights
    model = CRNN.from_pretrained(options.init) if options.init else CRNN()
    if options.width_divisor is not None:
        start, model = model, CRNN(model.alphabet, options.width_divisor, model.calibration)
        model.load_state_dict(start.state_dict())
    rows, held_out = training_lines(options.data, skip)
    print(f"{len(rows)} lines to train on, {len(held_out)} held out to validate", file=sys.stderr)
    extra = [load_lines("train", source, skip) for source in options.extra]
    others = load_lines("train", options.replay, skip) if options.replay else None
    more = {"extra": extra, "replay_rows": others, "repeat": options.repeat, "skip_bad": skip, "resume": options.resume}
    more["on_epoch"] = lambda table: print(table.tail(1).to_string(index=False, header=len(table) == 1), flush=True)
    trainer = make_trainer(model, rows, held_out, options.output, settings, **more)
    trainer.run()
    trainer.accelerator.end_training()  # a process of several that ends without it may abort
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Measure CER and WER, with their intervals, on the lines of a data set."""
    from hwrlib.data import load_lines
    from hwrlib.metrics import per_line, report
    from hwrlib.model import weights_version
    from hwrlib.recognizer import load_recognizer

    for file in filter(None, (options.report, options.predictions)):
        file.parent.mkdir(parents=True, exist_ok=True)  # now, since to read takes hours
    rows, prepared = load_lines(options.split, options.data), {}
    recognizer = load_recognizer(options.weights, options.decoder, options.precision)
    for number in range(len(rows)):
        try:
            prepared[number] = recognizer.prepare(rows[number]["image"])
        except ValueError as error:
            complain(error, rows["origin"][number])
    failed, rows = len(prepared) < len(rows), rows.remove_columns("image").select(list(prepared))
    readings = recognizer.read_prepared(list(prepared.values()), progress=sys.stderr.isatty())
    table = per_line(rows["text"][:], [reading.text for reading in readings])
    table["line"] = list(prepared)  # its row in the data set, also where others could not be read
    scans = table.groupby(rows["scan"][:]) if "scan" in rows.column_names else ()
    scores = {name: report(list(part.reference), list(part.prediction)) for name, part in [("all", table), *scans]}
    if options.report:
        about = {"data": str(options.data), "split": options.split, "decoder": options.decoder}
        about |= {"date": datetime.date.today().isoformat(), "weights": weights_version(options.weights)}
        options.report.write_text(json.dumps(about | scores, indent=1) + "\n")
    if options.predictions:
        table["confidence"] = [reading.confidence for reading in readings]
        table.insert(0, "id", rows["line_id"][:] if "line_id" in rows.column_names else table["line"].astype(str))
        write = table.to_parquet if options.predictions.suffix == ".parquet" else table.to_csv
        write(options.predictions, index=False)
    for name, found in scores.items():
        closed = found["without_spaces_before_punctuation"]
        for head, part in ((f"{name}: {found['lines']} lines", found), ("  without spaces before punctuation", closed)):
            cer, wer = ("{rate:.2%} ({low:.2%} to {high:.2%})".format(**part[rate]) for rate in ("cer", "wer"))
            print(f"{head}: CER {cer}, WER {wer}", flush=True)  # last: `head` may have enough
    return int(failed)


def _weights(given: str) -> str:
    """A folder by its absolute path, since workers and the app's kernels may stand in another; a name as it is."""
    return os.path.abspath(given) if os.path.exists(given) else given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hwrlib", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")

    def add(run: Callable):
        command = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        return command.add_argument

    one, two, three, four, five, six = map(add, (read, train, evaluate, app, archive, export))
    one("images", nargs="*", metavar="IMAGE", help='files (images, TIFF, PDF), folders, or "-" for standard input')
    one("--as", dest="kind", choices=["line", "page"], help="what each image is (default: decided by its look)")
    one("--format", choices=FORMATS, default="text", help="format of the output (default: %(default)s)")
    one("--output", type=Path, metavar="FOLDER", help="write one file for each page here, and print their names")
    two("--output", type=Path, required=True, help="folder of the run, for its weights (best/), history and state")
    two("--data", default="iam", help='"iam" (from the Hugging Face Hub), "sample", or a folder')
    two("--repeat", type=int, default=1, metavar="N", help="use each line of --data N times in an epoch")
    two("--extra", action="append", default=[], metavar="DATA", help="more lines to train on; may be repeated")
    two("--replay", metavar="DATA", help="mix in as many lines of this data set, against forgetting (chapter 8)")
    two("--skip-bad-rows", action="store_true", help="leave out the lines that cannot be used, and say which")
    two("--width-divisor", type=float, help="divide the lines' width by this, 1 to 8 (default: 1, or as in --init)")
    two("--init", help="weights to start from: a folder or a name on the Hub")
    two("--resume", action="store_true", help="go on with the run in --output")
    two("--preset", choices=PRESETS, default="recipe", help="the settings, of which each that follows changes one")
    for field in dataclasses.fields(Settings):
        parts = typing.get_args(field.type) or [field.type]  # of "int | None", or the words of a Literal
        words = [word for part in parts for word in typing.get_args(part) or [part] if isinstance(word, str)]
        kind = {"choices": words} if words else {"action": "store_true"} if bool in parts else {"type": parts[0]}
        two(f"--{field.name.replace('_', '-')}", default=argparse.SUPPRESS, help=f"recipe: {field.default}", **kind)
    three("--data", default="iam", help='"iam" (from the Hugging Face Hub), "sample", or a folder')
    three("--split", default="validation")
    three("--report", type=Path, metavar="FILE", help="write counts, rates and confusions (JSON, no text)")
    three("--predictions", type=Path, metavar="FILE", help="write each line's reading (.csv or .parquet)")
    four("--port", type=int, default=8866)
    four("--host", default="127.0.0.1", help="0.0.0.0 for all; beyond this machine a token is asked for")
    four("--visitors", type=int, default=8, metavar="N", help="at once; each takes about 0.5 GB of memory (default: 8)")
    four("--lines", type=Path, default=Path("my_lines"), metavar="FOLDER", help="for kept lines (default: my_lines)")
    four("--no-browser", dest="browser", action="store_false", help="do not open the browser")
    five("source", help="a folder of images and PDF files or of a data set (parquet), one such file, or a .txt list")
    five("output", type=Path, help="folder of the result: parquet files with a row for each page that was read")
    five("--format", action="append", choices=FORMATS, default=[], help="also write this format; may be repeated")
    five("--workers", type=int, metavar="N", help="processes that read (default: one per GPU, else per CPU; 0: no Ray)")
    five("--address", help='address of a Ray cluster, or "auto" (default: this machine alone)')
    six("output", type=Path, metavar="MODEL.onnx")
    for command in (one, three, four, five, six):
        command("--weights", type=_weights, default=WEIGHTS, help="a folder, or a name on the Hub (default: embedded)")
    for command, decoder in ((one, "language"), (three, "greedy"), (five, "language")):
        help = "reranked: a language model of transformers (variable HWR_RERANKER) chooses; default: %(default)s"
        command("--decoder", choices=["greedy", "beam", "language", "reranked"], default=decoder, help=help)
        command("--precision", choices=["fp32", "bf16", "fp16"], help="default: what is fast on this machine")
    return parser


if __name__ == "__main__":
    sys.exit(main())
