"""Read handwriting, train the network that reads it, and measure how well it does."""

# What a command needs is imported when it is called: PyTorch alone takes seconds, and the app's server works without.
import argparse
import importlib
import os
import sys
from pathlib import Path

from hwrlib import WEIGHTS
from hwrlib.settings import PRESETS, parse_setting

FORMATS = ["text", "json", "alto", "page", "hocr", "pdf"]  # the keys of hwrlib.archive.formats.FORMATS


def main(arguments: list[str] | None = None) -> int:
    """Run one command of the command line; 0 where it did what it was asked, 1 with a message where it could not."""
    options = _parser().parse_args(arguments)
    try:
        module = importlib.import_module("hwrlib.app.server" if options.command == "app" else "hwrlib.commands")
        return getattr(module, options.command)(options)
    except BrokenPipeError:  # whoever read the output has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        importlib.import_module("hwrlib.commands").complain(error)
        return 1


def _setting(text: str) -> tuple[str, object]:
    try:
        return parse_setting(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error  # the one whose text argparse shows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hwrlib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="read | train | evaluate | app | archive | export")

    def add(command: str, about: str):
        added = commands.add_parser(command, help=about, description=about)
        added.set_defaults(command=command)
        return added.add_argument

    one = add("read", "Read images of handwritten lines or pages and print their text, line by line.")
    one("images", nargs="*", metavar="IMAGE", help='files (images, TIFF, PDF), folders, or "-" for standard input')
    one("--as", dest="kind", choices=["line", "page"], help="what each image is (default: decided by its look)")
    one("--format", choices=FORMATS, default="text", help="format of the output (default: %(default)s)")
    one("--output", type=Path, metavar="FOLDER", help="write one file for each page here, and print their names")

    two = add("train", "Train the network, or go on with a training; stop it with Ctrl-C at any time.")
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

    three = add("evaluate", "Measure CER and WER on the lines of a data set.")
    three("--data", default="iam", help='"iam" (from the Hugging Face Hub), "sample", or a folder')
    three("--split", default="validation")
    three("--report", type=Path, metavar="FILE", help="write counts, rates and confusions (JSON, no text)")
    three("--predictions", type=Path, metavar="FILE", help="write each line's reading (.csv or .parquet)")

    four = add("app", "Open the app in the browser: a drawing pad, pictures, corrections.")
    four("--port", type=int, default=8866)
    four("--host", default="127.0.0.1", help="0.0.0.0 for all; beyond this machine a token is asked for")
    four("--visitors", type=int, default=8, metavar="N", help="at once; each takes about 0.5 GB of memory (default: 8)")
    four("--lines", type=Path, default=Path("my_lines"), metavar="FOLDER", help="for kept lines (default: my_lines)")
    four("--weights", default=WEIGHTS, help="a folder or a name on the Hub (default: the embedded)")
    four("--no-browser", dest="browser", action="store_false", help="do not open the browser")

    five = add("archive", "Read many pages on many cores or machines (Ray Data); run it again to go on after a stop.")
    five("source", help="a folder of images and PDF files or of a data set (parquet), one such file, or a .txt list")
    five("output", type=Path, help="folder of the result: parquet files with one row for each page")
    five("--format", action="append", choices=FORMATS, default=[], help="also write this format; may be repeated")
    five("--workers", type=int, metavar="N", help="processes that read (default: one for each GPU, else for each CPU)")
    five("--address", help='address of a Ray cluster, or "auto" (default: this machine alone)')

    six = add("export", "Write the network as an ONNX file: log-probabilities for one line of any width.")
    six("output", type=Path, metavar="MODEL.onnx")
    six("--weights", default=WEIGHTS, help="a folder or a name on the Hub (default: the embedded)")

    for command, decoder in ((one, "language"), (three, "greedy"), (five, "language")):
        command("--weights", default=WEIGHTS, help="a folder or a name on the Hub (default: the embedded)")
        command("--decoder", choices=["greedy", "beam", "language"], default=decoder, help="default: %(default)s")
        command("--precision", choices=["no", "bf16", "fp16"], help="default: what is fast on this machine")
    return parser


if __name__ == "__main__":
    sys.exit(main())
