"""Lines and transcripts from the Hub, parquet files and folders, checked as they are loaded (chapters 1, 2, 8)."""

import io
import os
import re
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from hwrlib import SAMPLE
from hwrlib.alphabet import Alphabet
from hwrlib.image_files import FORMATS, ImageError, open_image
from hwrlib.metadata import METADATA, DataError, read_metadata
from hwrlib.strokes import render_strokes

HUB = "Teklia/IAM-line"
EXAMPLE = 58  # the validation line of the sample that a reader meets first: every decoder reads it right

# The texts of the LOB corpus (Johansson et al., 1978) that IAM's validation and test lines were copied from, as line
# ids begin. Pen-stroke forms marked z cut the same texts anew (62 of our 467 validation lines), so they stay out.
HELD_OUT = r"(c0[46]|d0[13-7]|e0[16]|f0[47]|g0[12347]|h01|m0[12346]|n0[12346]|p0[1236])-\d+z-"

ABBREVIATION = (  # before its last point
    r"Mr|Mrs|Dr|Esq|Jr|Rev|Prof|Capt|Col|Gen"
    r"|Co|Ltd|No|Fig|St|ft|lb|etc"
    r"|[ap]\.m|i\.e|e\.g|[A-Z]|(?:[A-Z]\.)+[A-Z]"  # p.m., J., U.S.
)


class LineImage(datasets.Image):
    """A column that :mod:`hwrlib.images` decodes; `datasets` would try every format that Pillow knows."""

    def decode_example(self, value: dict | Image.Image, token_per_repo_id: dict | None = None) -> Image.Image:
        """The PIL image of {"bytes", "path"}; now and then `datasets` has one already."""
        return open_image(*_file(value)) if isinstance(value, dict) else value


def load_lines(split: str = "train", source: str | Path = "iam") -> datasets.Dataset:
    """Load the lines of one split: a data set with the columns ``image`` (PIL images) and ``text``.

    Other columns of text or numbers come with them. Chapter 1: notebooks/01_explore_the_lines.ipynb.

    Arguments:
        split: "train", "validation" or "test"; any split name where the source is a path.
        source: "iam" (``Teklia/IAM-line`` from the Hugging Face Hub), "sample" (the embedded, synthetic lines), or
            a path: a parquet file, a folder of parquet files named after their splits (the Hub's layout), or a folder
            of images with ``metadata.jsonl`` or ``metadata.csv`` (``file_name``, ``text``): one folder per split, or
            one for all, which is then "train".

    Raises:
        FileNotFoundError: no such path, or nothing of that split in it.
        DataError: a missing column, an empty transcript, a missing or unreadable image, or one outside the folder; the
            row is named.

    >>> lines = load_lines("validation", "sample")
    >>> sorted({"image", "text"} & set(lines.column_names))
    ['image', 'text']
    """
    if source == "iam":
        return _checked(datasets.load_dataset(HUB, split=split), HUB)
    path = SAMPLE if source == "sample" else Path(source)
    if not path.exists():
        raise FileNotFoundError(f'{path}: no such file or folder; a source is "iam", "sample" or a path')
    found = [f for place in (path, path / "data") for f in sorted(place.glob(f"{split}*.parquet"))]
    files = [path] if path.suffix == ".parquet" else found
    if files:
        return _checked(_from_parquet(files, "image"), files[0] if len(files) == 1 else path)
    folders = (path / split, path) if split == "train" else (path / split,)  # without folders per split, all is "train"
    found = [folder / name for folder in folders for name in METADATA if (folder / name).exists()]
    if not found:
        raise FileNotFoundError(f"{path}: found neither {split}*.parquet nor {' or '.join(METADATA)} for {split!r}")
    if len(found) > 1 and found[0].parent == found[1].parent:
        raise DataError(f"{found[0].parent} has both {' and '.join(METADATA)}; put all rows into one of them")
    rows = read_metadata(found[0])
    images = [{"path": str(image), "bytes": None} for image, _ in rows]
    lines = datasets.Dataset.from_dict({"image": images, "text": [text for _, text in rows]})
    return _checked(lines, found[0], embedded=False)


def hold_out(lines: datasets.Dataset, every: int = 5) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split lines into those to learn from and those held out: every fifth, and at least one.

    Chapter 8: notebooks/08_teach_it_your_hand.ipynb.

    Arguments:
        lines: two or more rows.
        every: hold out one of so many.

    Raises:
        DataError: fewer than two lines.

    >>> kept, held_out = hold_out(datasets.Dataset.from_dict({"text": list("abcdefg")}))
    >>> kept["text"][:], held_out["text"][:]
    (['a', 'b', 'c', 'd', 'f', 'g'], ['e'])
    """
    if len(lines) < 2:
        raise DataError(f"{len(lines)} line: one to learn from and one to check with is the least; correct some more")
    held = np.arange(len(lines)) % every == min(every, len(lines)) - 1
    return lines.select(np.flatnonzero(~held)), lines.select(np.flatnonzero(held))


def training_lines(source: str | Path) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The lines to train on and those to validate on, of any source of :func:`load_lines`.

    Without a split for validation, as in the folder of one's own lines from chapter 7, :func:`hold_out` makes one.
    Chapter 8: notebooks/08_teach_it_your_hand.ipynb.
    """
    lines = load_lines("train", source)
    try:
        return lines, load_lines("validation", source)
    except FileNotFoundError:
        return hold_out(lines)


def load_strokes(path: str | Path, alphabet: Alphabet, seed: int = 0) -> datasets.Dataset:
    """Pen strokes rendered as lines; characters outside the alphabet are dropped.

    Arguments:
        path: a parquet file with the columns ``strokes``, as for :func:`hwrlib.strokes.render_strokes`, and ``text``.
            Where there is a ``line_id``, forms that share their text with IAM's validation or test lines stay out.
        alphabet: of the network that is to learn from them.
        seed: decides, with the row, the pen of each line.

    Raises:
        DataError: a missing column, or strokes that cannot be drawn; the row is named.
    """
    table = _from_parquet([Path(path)], "strokes")
    if "line_id" in table.column_names:
        table = table.filter(lambda line_id: not re.match(HELD_OUT, line_id), input_columns="line_id")

    def render(strokes: list[list[float]], text: str, row: int) -> dict:
        try:
            line = render_strokes(strokes, np.random.default_rng((seed, row)))
            return {"image": Image.fromarray(line), "text": alphabet.drop(spaced(text))}
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}, row {row}: {error}") from error

    lines = table.map(render, with_indices=True, input_columns=["strokes", "text"], remove_columns=table.column_names)
    return lines.cast_column("image", LineImage())


def spaced(text: str) -> str:
    r"""The text with punctuation set apart as IAM's transcripts set it: "word ." and "( word )", but "Mr." and "2,000".

    >>> spaced('He (Mr. Fox) said: "It is 2,000, isn\'t it?"')
    'He ( Mr. Fox ) said : " It is 2,000 , isn\'t it ? "'
    """
    text = re.sub(r"(\w) ?' ?(s|ve|re|ll|d|m)\b", r"\1'\2", text.replace(",,", '"'))
    text = re.sub(r'([!"();?])', r" \1 ", text)
    text = re.sub(r"(?<!\d)([,:])|([,:])(?!\d)", r" \1\2 ", text)
    text = re.sub(r"(^|\s)'(?=\w)", r"\1 ' ", text)
    text = re.sub(rf"(?<![\w.])({ABBREVIATION}) \.(?=\s)", r"\1.", text)  # "Mr ." of some writers
    text = re.sub(rf"\b(?<!\.)(?!(?:{ABBREVIATION})\.)([\w'-]+)\.(?=\s|$)", r"\1 .", text)
    return re.sub(r"\s+", " ", text).strip()


def _from_parquet(files: list[Path], content: str) -> datasets.Dataset:
    """The rows of parquet files that have the columns ``text`` and what it is the text of."""
    try:
        rows = datasets.Dataset.from_parquet([str(file) for file in files])
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(f"{', '.join(map(str, files))} cannot be read as parquet: {error}; fetch it again") from error
    missing = [name for name in (content, "text") if name not in rows.column_names]
    if missing:
        raise DataError(f"{files[0]}: no column {' and '.join(missing)}; it has {', '.join(rows.column_names)}")
    return rows


def _checked(lines: datasets.Dataset, source: str | Path, embedded: bool = True) -> datasets.Dataset:
    """Refuse empty transcripts and files that are no images, before anybody waits for a training to meet them.

    Images that are ``embedded`` in the data set are never taken from a file of this machine that a row names.
    """
    if not len(lines):
        raise DataError(f"{source}: it holds no line")
    # Any other column of images, sounds or videos would be decoded by `datasets`.
    columns = [c for c, kind in lines.features.items() if c == "image" or isinstance(kind, datasets.Value)]
    try:
        lines = lines.select_columns(columns).cast_column("image", datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(f"{source}: the column image holds no images ({error})") from error
    for row, line in enumerate(lines):
        text, image = line["text"], line["image"]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{source}, row {row}: the transcript is empty; write what the image says or drop the row")
        if not image or (embedded and image["bytes"] is None):
            raise DataError(f"{source}, row {row} ({text!r}): it has no image")
        try:
            _check_header(*_file(image))
        except (OSError, ImageError) as error:
            raise DataError(f"{source}, row {row} ({text!r}): the image cannot be read: {error}") from error
    return lines.cast_column("image", LineImage())


def _file(image: dict) -> tuple[bytes, str]:
    """The bytes of a row's image and what a message calls it."""
    if image["bytes"] is not None:
        return image["bytes"], image["path"] or "the image"
    if not os.path.isfile(image["path"]):  # a pipe would be read for ever
        raise FileNotFoundError(f"{image['path']}: no such file")
    return Path(image["path"]).read_bytes(), image["path"]


def _check_header(data: bytes, name: str) -> None:
    try:
        Image.open(io.BytesIO(data), formats=FORMATS).close()  # to decode them all would take forty times as long
    except Exception:  # noqa: BLE001 - each decoder has its own; open_image says what is wrong, and knows HEIC
        open_image(data, name)
