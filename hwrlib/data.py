"""Lines and transcripts: loaded from anywhere, prepared once, put together in batches (chapters 1 and 2)."""

import io
import re
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from PIL import Image

from hwrlib.alphabet import Alphabet
from hwrlib.strokes import render_strokes

SAMPLE = Path(__file__).parent / "samples"
HUB = "Teklia/IAM-line"

# The texts of the LOB corpus (Johansson et al., 1978) that IAM's validation and test lines were copied from, as line
# ids begin. Pen-stroke forms marked z cut the same texts anew (62 of our 467 validation lines), so they stay out.
HELD_OUT = r"(c0[46]|d0[13-7]|e0[16]|f0[47]|g0[12347]|h01|m0[12346]|n0[12346]|p0[1236])-\d+z-"


class DataError(ValueError):
    """A data set that cannot be used; the message names the row and says why."""


def load_lines(split: str = "train", source: str | Path = "iam") -> datasets.Dataset:
    """Load the lines of one split: a data set with the columns ``image`` and ``text``.

    Chapter 1 teaches it: notebooks/01_explore_the_lines.ipynb.

    Arguments:
        split: "train", "validation" or "test"; any split name where the source is a path.
        source: "iam" (``Teklia/IAM-line`` from the Hugging Face Hub), "sample" (the embedded, synthetic lines), or
            a path: a parquet file, a folder of parquet files named after their splits (the Hub's layout), or a folder
            of images with ``metadata.csv`` or ``metadata.jsonl`` (``file_name``, ``text``): one folder per split, or
            one for all, which is then "train".

    Raises:
        FileNotFoundError: no such path, or nothing of that split in it.
        DataError: a missing column, an empty transcript, a missing or unreadable image; the row is named.

    >>> lines = load_lines("validation", "sample")
    >>> sorted({"image", "text"} & set(lines.column_names))
    ['image', 'text']
    """
    if source == "iam":
        return datasets.load_dataset(HUB, split=split)
    path = SAMPLE if source == "sample" else Path(source)
    if not path.exists():
        raise FileNotFoundError(f'{path}: no such file or folder; a source is "iam", "sample" or a path')
    files = [path] if path.suffix == ".parquet" else _parquet_files(path, split)
    lines = _from_parquet(files) if files else _from_image_folder(path, split)
    _check_rows(lines, path)
    return lines.cast_column("image", datasets.Image())


def load_strokes(path: str | Path, alphabet: Alphabet, seed: int = 0) -> datasets.Dataset:
    """Pen strokes (columns ``strokes``, ``text``) rendered as lines; characters outside the alphabet are dropped.

    Where there is a ``line_id``, forms that share their text with IAM's validation or test lines stay out.
    """
    table = datasets.Dataset.from_parquet(str(path))
    if "line_id" in table.column_names:
        table = table.filter(lambda line_id: not re.match(HELD_OUT, line_id), input_columns="line_id")
    table = table.select_columns(["strokes", "text"])

    def render(row, index):
        line = render_strokes(row["strokes"], np.random.default_rng((seed, index)))
        return {"image": Image.fromarray(line), "text": alphabet.drop(spaced(row["text"]))}

    features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    return table.map(render, with_indices=True, remove_columns=["strokes"], features=features)


ABBREVIATIONS = r"(?:Mr|Mrs|Dr|Fig|St|Gen|etc|Ltd|No|ft|lb|Co|Esq|Jr|Rev|Prof|Capt|Col|[A-Z]|[ap]\.m|i\.e|e\.g|(?:[A-Z]\.)+[A-Z])"


def spaced(text: str) -> str:
    """The text with punctuation set apart as IAM's transcripts set it: "word ." and "( word )", but "Mr." and "2,000".

    >>> spaced('He (Mr. Fox) said: "It is 2,000, isn\'t it?"')
    'He ( Mr. Fox ) said : " It is 2,000 , isn\'t it ? "'
    """
    text = re.sub(r"(\w) ?' ?(s|ve|re|ll|d|m)\b", r"\1'\2", text.replace(",,", '"'))
    text = re.sub(r'([!"();?])', r" \1 ", text)
    text = re.sub(r"(?<!\d)([,:])|([,:])(?!\d)", r" \1\2 ", text)
    text = re.sub(r"(^|\s)'(?=\w)", r"\1 ' ", text)
    text = re.sub(rf"(?<![\w.])({ABBREVIATIONS}) \.(?=\s)", r"\1.", text)  # "Mr ." of some writers
    text = re.sub(rf"\b(?<!\.)(?!{ABBREVIATIONS}\.)([\w'-]+)\.(?=\s|$)", r"\1 .", text)
    return re.sub(r"\s+", " ", text).strip()


def _parquet_files(folder: Path, split: str) -> list[Path]:
    return [f for place in (folder, folder / "data") for f in sorted(place.glob(f"{split}*.parquet"))]


def _from_parquet(files: list[Path]) -> datasets.Dataset:
    lines = datasets.Dataset.from_parquet([str(f) for f in files])
    _need_columns(lines.column_names, ("image", "text"), files[0])
    return lines.cast_column("image", datasets.Image(decode=False))


def _from_image_folder(path: Path, split: str) -> datasets.Dataset:
    folders = (path / split, path) if split == "train" else (path / split,)  # without folders per split, all is "train"
    places = [f / n for f in folders for n in ("metadata.csv", "metadata.jsonl") if (f / n).exists()]
    if not places:
        raise FileNotFoundError(
            f"{path}: found neither {split}*.parquet nor metadata.csv or metadata.jsonl for the split {split!r}"
        )
    metadata = places[0]
    if metadata.suffix == ".csv":
        table = pd.read_csv(metadata, dtype=str, keep_default_na=False)
    else:
        table = pd.read_json(metadata, lines=True, dtype=False)  # "007" stays a text
    _need_columns(table.columns, ("file_name", "text"), metadata)
    images = [str(metadata.parent / name) for name in table.file_name]
    texts = table.text.astype(object).where(table.text.notna(), None).tolist()  # None: the row is named later
    return datasets.Dataset.from_dict({"image": images, "text": texts}).cast_column(
        "image", datasets.Image(decode=False)
    )


def _need_columns(columns, needed: tuple[str, str], source: Path) -> None:
    missing = [c for c in needed if c not in columns]
    if missing:
        raise DataError(f"{source}: no column {' and '.join(missing)}; it has {', '.join(columns)}")


def _check_rows(lines: datasets.Dataset, source: Path) -> None:
    """Refuse empty transcripts and files that are no images, before anybody waits for a training to meet them."""
    if not len(lines):
        raise DataError(f"{source}: it holds no line")
    for row, line in enumerate(lines):
        text, image = line["text"], line["image"]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{source}, row {row}: the transcript is empty; write what the image says or drop the row")
        if not image or not (image["bytes"] or image["path"]):
            raise DataError(f"{source}, row {row} ({text!r}): it has no image")
        try:
            Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]).close()
        except OSError as error:
            raise DataError(f"{source}, row {row} ({text!r}): the image cannot be read: {error}") from error


def hold_out(lines: datasets.Dataset, every: int = 5) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split lines into those to learn from and those held out: every fifth, and at least one.

    Chapter 8 teaches it: notebooks/08_teach_it_your_hand.ipynb.

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
    """The lines to train on and those to validate on, of any source of :func:`hwrlib.data.load_lines`.

    Without a split for validation, as in the folder of one's own lines from chapter 7, :func:`hold_out` makes one.
    Chapter 8 teaches it: notebooks/08_teach_it_your_hand.ipynb.
    """
    lines = load_lines("train", source)
    try:
        return lines, load_lines("validation", source)
    except FileNotFoundError:
        return hold_out(lines)
