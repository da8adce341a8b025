"""Corrected lines kept in a folder that a training reads: images beside metadata.jsonl (chapters 7 and 8)."""

import io
import json
import secrets
import time
import zipfile
from pathlib import Path

from filelock import FileLock
from PIL import Image

from hwrlib.files import METADATA, DataError, read_metadata, write_whole
from hwrlib.images import load_page, prepare_pixels
from hwrlib.recognizer import Picture

ROWS, TABLE = METADATA  # JSON Lines, where a text stays what it is, and CSV, which turns "NA" and "007" into no text


def save_line(folder: str | Path, image: Picture, text: str) -> Path:
    """Add one line and its right text to a folder of lines, and return the path of its image.

    The folder is an imagefolder of Hugging Face `datasets`: PNG images, and ``metadata.jsonl`` with ``file_name`` and
    ``text``. :func:`hwrlib.load_lines` reads it. A ValueError refuses an empty text, one of several lines or with what
    cannot be printed, and an image that :func:`hwrlib.prepare` would not take; a DataError says that the folder has a
    ``metadata.csv``, or a ``metadata.jsonl`` of another kind, which is left as it is.
    """
    if len(text.strip().splitlines()) != 1:
        raise ValueError(f"the text {text!r} is empty or more than one line; write what this one line says")
    text = " ".join(text.split())
    if not text.isprintable():
        raise ValueError(f"the text {text!r} has a character that cannot be printed; take it out")
    prepare_pixels(pixels := load_page(image))  # a training would refuse the image much later
    path = Path(folder) / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(6)}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    row = json.dumps({"file_name": path.name, "text": text}, ensure_ascii=False)
    with FileLock(path.with_name(".lock")):
        rows = _rows(path.parent)
        try:
            Image.fromarray(pixels).save(path, optimize=True)
            write_whole(path.with_name(ROWS), lambda new: new.write_bytes(b"".join([*rows, f"{row}\n".encode()])))
        except OSError:  # a full disk
            path.unlink(missing_ok=True)
            raise
    return path


def count_lines(folder: str | Path) -> int:
    """How many lines are kept in a folder; 0 where there is none."""
    metadata = Path(folder) / ROWS
    return len(read_metadata(metadata)) if metadata.exists() else 0


def remove_line(path: Path) -> None:
    """Take a line back that :func:`save_line` has kept: its row first, then its image."""
    with FileLock(path.with_name(".lock")):
        left = [row for row in _rows(path.parent) if not row.strip() or json.loads(row)["file_name"] != path.name]
        write_whole(path.with_name(ROWS), lambda new: new.write_bytes(b"".join(left)))
    path.unlink(missing_ok=True)


def zip_lines(folder: str | Path) -> bytes:
    """The kept lines as one zip file: ``metadata.jsonl`` and the images that it names, all from this folder."""
    if not count_lines(folder):
        raise FileNotFoundError(f"{folder}: no line has been kept here yet")
    folder, packed = Path(folder), io.BytesIO()
    with FileLock(folder / ".lock"), zipfile.ZipFile(packed, "w") as archive:
        for path in dict.fromkeys([folder / ROWS, *(path for path, _ in read_metadata(folder / ROWS))]):
            archive.write(path, path.relative_to(folder))
    return packed.getvalue()


def _rows(folder: Path) -> list[bytes]:
    """The rows as they stand, the last ended; what cannot be read is for a person to mend, not for us to add to."""
    if (folder / TABLE).exists():
        raise DataError(f"{folder}: its rows are in {TABLE}, which is left as it is; keep lines in another folder")
    rows = (folder / ROWS).read_bytes().splitlines(keepends=True) if count_lines(folder) else []
    return [*rows, b"\n"] if rows and not rows[-1].endswith(b"\n") else rows
