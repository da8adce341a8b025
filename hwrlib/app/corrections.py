"""Corrected lines kept in a folder that a training reads: images beside metadata.jsonl (chapters 7 and 8)."""

import contextlib
import io
import json
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from hwrlib.image_files import load_page
from hwrlib.images import prepare_pixels
from hwrlib.metadata import METADATA, DataError, inside, read_metadata

ROWS, TABLE = METADATA  # JSON Lines, where a text stays what it is, and CSV, which turns "NA" and "007" into no text


def keep(folder: str | Path, image: str | Path | bytes | np.ndarray | Image.Image, text: str) -> Path:
    """Add one line and its right text to a folder of lines, and return the path of its image.

    The folder follows the imagefolder convention of Hugging Face `datasets`: PNG images beside ``metadata.jsonl``
    (``file_name``, ``text``), so that :func:`hwrlib.load_lines` and ``load_dataset("imagefolder")`` read it. Nothing is
    ever overwritten or torn: the image is on disk before its row, and the rows are replaced as a whole, by one process
    at a time. Chapter 7: notebooks/07_read_your_handwriting.ipynb.

    Arguments:
        folder: made where it is missing; may hold lines already.
        image: of one line, anything that :func:`hwrlib.prepare` takes; kept in grey, in its own size.
        text: what the line says; spaces are tidied.

    Raises:
        ValueError: an empty text, more than one line of it, or a character that cannot be printed.
        DataError: a folder with a ``metadata.csv``, or a ``metadata.jsonl`` of another kind, which is left as it is.
        ImageError: what :func:`hwrlib.prepare` would not take.

    >>> import tempfile
    >>> line = np.full((64, 400), 255, np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = keep(folder, line, 'She said "no", and left.')
    ...     print((Path(folder) / "metadata.jsonl").read_text().replace(path.name, "NAME.png"), end="")
    {"file_name": "NAME.png", "text": "She said \\"no\\", and left."}
    """
    text = _tidied(text)
    prepare_pixels(image)  # a training would refuse the image much later
    png = io.BytesIO()
    Image.fromarray(load_page(image)).save(png, "PNG", optimize=True)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(6)}.png"
    try:
        _write(path, png.getvalue())
        _append(folder, json.dumps({"file_name": path.name, "text": text}, ensure_ascii=False))
    except (OSError, ValueError):
        path.unlink(missing_ok=True)
        raise
    return path


def count(folder: str | Path) -> int:
    """How many lines are kept in a folder; 0 where there is none.

    Raises:
        DataError: rows that cannot be read.
    """
    metadata = inside(folder, ROWS)
    return len(read_metadata(metadata)) if metadata.exists() else 0


def forget(path: Path) -> None:
    """Take a line back that :func:`keep` has kept: its row first, then its image.

    Raises:
        DataError: no row names this image, or the rows cannot be read.
    """
    with _rows(path.parent) as (rows, replace):
        left = [row for row in rows.splitlines(keepends=True) if row.strip() and _name(row) != path.name]
        if len(left) == len([row for row in rows.splitlines() if row.strip()]):
            raise DataError(f"{path}: no row of {ROWS} names it any more")
        replace(b"".join(left))
    path.unlink(missing_ok=True)


def as_zip(folder: str | Path) -> bytes:
    """The kept lines as one zip file: metadata.jsonl and the images that it names.

    Raises:
        FileNotFoundError: nothing was kept in this folder, or an image is gone.
        DataError: a row that cannot be read, or that names a file outside the folder.
    """
    metadata = inside(folder, ROWS)
    if not metadata.exists():
        raise FileNotFoundError(f"{folder}: no line has been kept here yet")
    content, packed = metadata.read_bytes(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in dict.fromkeys(path for path, _ in read_metadata(metadata)):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such image; put it back, or take its row out of {ROWS}")
            archive.write(path, path.relative_to(folder))
        archive.writestr(ROWS, content)
    return packed.getvalue()


def _tidied(text: str) -> str:
    if len(text.strip().splitlines()) > 1:
        raise ValueError(f"the text {text!r} has more than one line; keep each with its own image")
    text = " ".join(text.split())
    if not text:
        raise ValueError("the text is empty; write what the line says")
    if not text.isprintable():
        raise ValueError(f"the text {text!r} has a character that cannot be printed; take it out")
    return text


def _append(folder: Path, row: str) -> None:
    """Put a row below those of the folder."""
    with _rows(folder) as (rows, replace):
        end = b"" if not rows or rows.endswith(b"\n") else b"\n"
        replace(rows + end + row.encode() + b"\n")


@contextlib.contextmanager
def _rows(folder: Path) -> Iterator[tuple[bytes, Callable[[bytes], None]]]:
    """The rows of the folder, checked, and a function that replaces them as a whole, while no other process does."""
    path, new = folder / ROWS, folder / f".{ROWS}.new"

    def replace(rows: bytes) -> None:
        new.unlink(missing_ok=True)  # of a crash
        _write(new, rows)
        os.replace(new, path)

    with FileLock(folder / f".{ROWS}.lock"):
        if (folder / TABLE).exists():
            raise DataError(f"{folder}: its rows are in {TABLE}, which is left as it is; keep lines in another folder")
        rows = path.read_bytes() if path.exists() else b""
        if rows:
            read_metadata(path)  # what cannot be read is for a person to mend, not for a program to add to
        yield rows, replace


def _name(row: bytes) -> str:
    return json.loads(row.removeprefix(b"\xef\xbb\xbf"))["file_name"]


def _write(path: Path, content: bytes) -> None:
    """Write a file that does not exist yet, and wait until it is on the disk."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
