"""Corrected lines kept in a folder that a training reads: images beside metadata.csv (chapters 7 and 8)."""

import csv
import io
import os
import secrets
import time
import zipfile
from pathlib import Path

from PIL import Image

from hwrlib.images import load_page, prepare_pixels

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

METADATA = "metadata.csv"
COLUMNS = ["file_name", "text"]


def keep(folder: str | Path, image, text: str) -> Path:
    """Add one line and its right text to a folder of lines, and return the path of its image.

    The folder follows the imagefolder convention of Hugging Face `datasets`: PNG images beside ``metadata.csv``
    (``file_name``, ``text``), so that :func:`hwrlib.load_lines` and ``load_dataset("imagefolder")`` read it. Nothing is
    ever overwritten. The image is on disk before its row; rows are written one at a time, also by several processes,
    and a row that a crash tore off goes when the next one comes.
    Chapter 7 teaches it: notebooks/07_read_your_handwriting.ipynb.

    Arguments:
        folder: made where it is missing; may hold lines already.
        image: of one line, anything that :func:`hwrlib.prepare` takes; kept in grey, in its own size.
        text: what the line says; spaces are tidied.

    Raises:
        ValueError: an empty text, more than one line of it or a character that cannot be printed, or a metadata.csv
            without the two columns.
        ImageError: what :func:`hwrlib.prepare` would not take.

    >>> import tempfile
    >>> import numpy as np
    >>> line = np.full((64, 400), 255, np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = keep(folder, line, 'She said "no", and left.')
    ...     print((Path(folder) / "metadata.csv").read_text().replace(path.name, "NAME.png"))
    file_name,text
    "NAME.png","She said ""no"", and left."
    """
    text = _checked(text)
    prepare_pixels(image)  # a training would refuse the image much later
    png = io.BytesIO()
    Image.fromarray(load_page(image)).save(png, "PNG", optimize=True)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(6)}.png"
    with open(path, "xb") as file:
        file.write(png.getvalue())
        file.flush()
        os.fsync(file.fileno())
    try:
        _append(folder / METADATA, {"file_name": path.name, "text": text})
    except (OSError, ValueError):
        path.unlink()
        raise
    return path


def as_zip(folder: str | Path) -> bytes:
    """The kept lines as one zip file: metadata.csv and the images that it names.

    Raises:
        FileNotFoundError: nothing was kept in this folder, or an image is gone.
    """
    folder = Path(folder)
    if not (folder / METADATA).exists():
        raise FileNotFoundError(f"{folder}: no line has been kept here yet")
    content = _whole((folder / METADATA).read_bytes())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for row in csv.DictReader(content.decode("utf-8-sig").splitlines()):
            archive.write(folder / row["file_name"], row["file_name"])
        archive.writestr(METADATA, content)
    return packed.getvalue()


def _checked(text: str) -> str:
    if len(text.strip().splitlines()) > 1:
        raise ValueError(f"the text {text!r} has more than one line; keep each with its own image")
    text = " ".join(text.split())
    if not text:
        raise ValueError("the text is empty; write what the line says")
    if not text.isprintable():
        raise ValueError(f"the text {text!r} has a character that cannot be printed; take it out")
    return text


def _append(path: Path, row: dict) -> None:
    """Write one row, the header before it where there is none, while no other process does."""
    with open(path, "ab+", buffering=0) as file:  # O_APPEND: whatever happens, no row is written over
        _lock(file)
        file.seek(0)
        content = file.read()
        whole = _whole(content)
        if whole != content:
            file.truncate(len(whole))
        columns = next(csv.reader(whole.decode("utf-8-sig").splitlines()), COLUMNS)
        if not set(COLUMNS) <= set(columns):
            raise ValueError(f"{path}: its columns are {', '.join(columns)}; it needs {' and '.join(COLUMNS)}")
        text = io.StringIO()
        if not whole:
            text.write(",".join(COLUMNS) + "\n")
        elif not whole.endswith(b"\n"):
            text.write("\n")
        csv.DictWriter(text, columns, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(row)
        written = text.getvalue().encode()
        if file.write(written) != len(written):  # the next call repairs it
            raise OSError(f"{path}: the disk is full")
        os.fsync(file.fileno())


def _whole(content: bytes) -> bytes:
    """Rows as read, without a last one that a crash tore off; one that only lacks its line end stays."""
    above, _, last = content.rpartition(b"\n")
    if not last:
        return content
    columns, *_ = [*csv.reader(content.decode("utf-8-sig", "replace").splitlines()), COLUMNS]
    try:
        fields = next(csv.reader([last.decode("utf-8-sig")], strict=True))
    except (csv.Error, UnicodeDecodeError):  # a quote or a letter cut in two
        fields = []
    complete = len(fields) == len(columns) and all(fields) and (above or set(COLUMNS) <= set(fields))
    return content if complete else content[: len(content) - len(last)]


def _lock(file) -> None:
    """Wait until no other process writes the file; the lock ends when the file is closed, also by a crash."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX)
    else:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
