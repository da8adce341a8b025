"""Read handwriting, train the network that reads it, and measure how well it does."""

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path

from hwrlib.alphabet import IAM
from hwrlib.data import DataError, Lines, load_lines, load_strokes
from hwrlib.decode import greedy, prefix_beam
from hwrlib.images import ImageError
from hwrlib.language import Language
from hwrlib.metrics import per_line, report
from hwrlib.model import CRNN
from hwrlib.personal import mix, training_lines
from hwrlib.presets import PRESETS, Settings
from hwrlib.recognizer import WEIGHTS, Recognizer
from hwrlib.segment import NO_WRITING
from hwrlib.training import Trainer

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
DECODERS = {
    "greedy": lambda: greedy,
    "beam": lambda: prefix_beam,
    "language": lambda: functools.partial(prefix_beam, language=Language.load(WEIGHTS / "language.npz")),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command of the command line; 0 where it did what it was asked, 1 with a message where it could not."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except (ValueError, OSError, RuntimeError) as error:
        print(f"hwrlib: {error}", file=sys.stderr)
        return 1


def read(options) -> int:
    """Print the text of lines and pages, line by line; go on after one that cannot be read, and say so at the end."""
    recognizer = _recognizer(options)
    if not options.images:
        print("No image given: this is line 1 of the embedded sample (synthetic).", file=sys.stderr)
    failed = 0
    for name, image in _images(options.images):
        try:
            readings = recognizer.read_page(image)
            if not readings:
                raise ImageError(f"{name}: {NO_WRITING}")
        except (ValueError, OSError) as error:
            failed += 1
            print(f"hwrlib: {error}", file=sys.stderr)
            continue
        for reading in readings:
            if options.json:
                print(json.dumps({"image": name, **dataclasses.asdict(reading)}))
            else:
                print(reading.text if len(options.images) < 2 else f"{name}\t{reading.text}")
    return int(failed > 0)


def train(options) -> None:
    """Train a network; the folder then holds its weights and history."""
    if Path(options.data).is_file():
        raise DataError(f"{options.data} is one file: training needs a folder of lines")
    settings = dataclasses.replace(PRESETS[options.preset], **dict(options.set))
    start = CRNN.from_pretrained(options.init) if options.init else None
    squeeze = options.squeeze or (start.squeeze if start else 1.0)
    model = CRNN(start.alphabet if start else IAM, squeeze)
    if start:
        model.load_state_dict(start.state_dict())
    prepare = functools.partial(Lines, alphabet=model.alphabet, squeeze=squeeze)
    rows, held_out = training_lines(options.data)
    print(f"{len(rows)} lines to train on, {len(held_out)} held out to validate", file=sys.stderr)
    lines = prepare(rows, strength=settings.strength, seed=settings.seed)
    if options.strokes:
        lines.extend(prepare(load_strokes(options.strokes, model.alphabet, settings.seed)))
    validation = prepare(held_out)

    def show(history):
        print(history.tail(1).to_string(index=False, header=len(history) == 1), flush=True)

    trained = lines.words() if options.words else lines
    if options.replay or options.preset == "personal":
        trained = mix(trained, load_lines("train", options.replay) if options.replay else None, seed=settings.seed)
    Trainer(model, trained, validation, options.output, settings, options.resume, show).run()


def evaluate(options) -> None:
    """Print CER and WER with 95 % intervals, and write the report and the predictions where asked."""
    rows = load_lines(options.split, options.data)
    readings = _recognizer(options).read_lines(rows["image"], progress=sys.stderr.isatty())
    predictions = [reading.text for reading in readings]
    scores = {"all": report(rows["text"], predictions)}
    if "scan" in rows.column_names:
        for scan in sorted(set(rows["scan"])):
            chosen = [k for k, s in enumerate(rows["scan"]) if s == scan]
            scores[scan] = report([rows["text"][k] for k in chosen], [predictions[k] for k in chosen])
    for name, result in scores.items():
        closed = result["without_spaces_before_punctuation"]
        print(f"{name}: {result['lines']} lines: {_rate(result, 'cer')}, {_rate(result, 'wer')}")
        print(f"  without spaces before punctuation: {_rate(closed, 'cer')}, {_rate(closed, 'wer')}")
    if options.report:
        about = {"data": str(options.data), "split": options.split, "decoder": options.decoder}
        options.report.write_text(json.dumps({**about, **scores}, indent=1) + "\n")
    if options.predictions:
        table = per_line(rows["text"], predictions).assign(confidence=[r.confidence for r in readings])
        table.insert(0, "id", rows["line_id"] if "line_id" in rows.column_names else table["line"].astype(str))
        write = table.to_parquet if options.predictions.suffix == ".parquet" else table.to_csv
        write(options.predictions, index=False)


def _rate(result: dict, name: str) -> str:
    return f"{name.upper()} {result[name]['rate']:.2%} ({result[name]['low']:.2%} to {result[name]['high']:.2%})"


def _recognizer(options) -> Recognizer:
    return Recognizer.from_pretrained(options.weights, options.precision, DECODERS[options.decoder]())


def _images(names: list[str]):
    """Each image's name and the image: files, the images of folders, standard input for "-"."""
    if not names:
        yield "sample", load_lines("validation", "sample")[0]["image"]
    for name in names:
        path = Path(name)
        if name == "-":
            yield "-", sys.stdin.buffer.read()
        elif path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS)
            if not found:
                raise FileNotFoundError(f"{path}: no image in this folder ({', '.join(sorted(ENDINGS))})")
            yield from ((str(p), p) for p in found)
        else:
            yield name, path


def _setting(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    if name not in {field.name for field in dataclasses.fields(Settings)}:
        names = ", ".join(field.name for field in dataclasses.fields(Settings))
        raise argparse.ArgumentTypeError(f"{name!r} is no setting; there are {names}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hwrlib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="read | train | evaluate")

    def add(command, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(command.__name__, help=about, description=about)
        added.set_defaults(command=command)
        return added

    one = add(read, "Read images of handwritten lines or pages and print their text, line by line.")
    one.add_argument("images", nargs="*", metavar="IMAGE", help='files, folders, or "-" for standard input')
    one.add_argument("--json", action="store_true", help="one JSON object a line: text, confidence, characters, times")

    two = add(train, "Train the network, or go on with a training; stop it with Ctrl-C at any time.")
    two.add_argument("--output", type=Path, required=True, help="folder of the run: weights (best/), history, state")
    two.add_argument("--data", default="iam", help='"iam" (from the Hugging Face Hub), "sample", or a folder')
    two.add_argument("--strokes", type=Path, help="parquet of pen strokes, rendered as more lines")
    two.add_argument("--replay", metavar="DATA", help="mix in as many lines of this, against forgetting (chapter 8)")
    two.add_argument("--words", action="store_true", help="train on the words that can be cut from the lines")
    two.add_argument("--preset", choices=sorted(PRESETS), default="recipe")
    two.add_argument(
        "--set", action="append", type=_setting, default=[], metavar="NAME=VALUE", help="change a setting of the preset"
    )
    two.add_argument("--squeeze", type=float, help="divide the lines' width by this (default: 1, or that of --init)")
    two.add_argument("--init", help="weights to start from: a folder or a name on the Hub")
    two.add_argument("--resume", action="store_true", help="go on with the run in --output")

    three = add(evaluate, "Measure CER and WER on the lines of a data set.")
    three.add_argument("--data", default="iam", help='"iam" (from the Hugging Face Hub), "sample", or a folder')
    three.add_argument("--split", default="validation")
    three.add_argument("--report", type=Path, metavar="FILE", help="write counts, rates and confusions (JSON, no text)")
    three.add_argument("--predictions", type=Path, metavar="FILE", help="write each line's reading (.csv or .parquet)")

    for command, decoder in ((one, "language"), (three, "greedy")):
        command.add_argument("--weights", default=WEIGHTS, help="a folder or a name on the Hub (default: the embedded)")
        command.add_argument("--decoder", choices=DECODERS, default=decoder, help="default: %(default)s")
        command.add_argument("--precision", choices=["no", "bf16", "fp16"], help="default: what is fast here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
