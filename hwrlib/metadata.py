"""The metadata file of a folder of images: which file has which text (chapter 8)."""

import csv
import io
import json
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

METADATA = ("metadata.jsonl", "metadata.csv")  # beside the images of a folder, as `datasets` has it


class DataError(ValueError):
    """A data set that cannot be used; the message names the row and says why."""


def read_metadata(path: Path) -> list[tuple[Path, str]]:
    """The image and the text of each row of a ``metadata.jsonl`` or ``metadata.csv``, the texts as they are written.

    Raises:
        DataError: a row, named from 0, that is not UTF-8, not of the format, without ``file_name`` or ``text``, or that
            names a file outside the folder.
    """
    content, rows = path.read_bytes().decode("utf-8-sig", "surrogateescape"), []
    try:
        if path.suffix == ".csv":
            found = csv.DictReader(io.StringIO(content, newline=""), strict=True)
        else:
            found = map(json.loads, filter(str.strip, content.split("\n")))
        for row in found:
            fields = [row.get(name) for name in ("file_name", "text")] if isinstance(row, dict) else [None]
            if not all(isinstance(field, str) for field in fields):
                raise DataError(f"no text in its columns file_name and text; it is {str(row)[:100]}")
            if None in row:
                raise DataError("more fields than columns: a text with a comma needs double quotes around it")
            if re.search("[\ud800-\udfff]", "".join(fields)):  # half a character of JSON, or a byte that is none
                raise DataError("it is not UTF-8: save the file as UTF-8")
            rows.append((inside(path.parent, fields[0]), fields[1]))
    except (ValueError, csv.Error, RecursionError) as error:
        raise DataError(f"{path}, row {len(rows)}: {error}") from error
    return rows


def inside(folder: str | Path, name: str) -> Path:
    """The path of a file that is named in a folder, refused where it leads out of it.

    Arguments:
        folder: where the name was found, in a metadata file or an archive, say.
        name: relative to the folder, with "/" between folders.

    Raises:
        DataError: an absolute path, a drive, a backslash, "..", or a link to another place.

    >>> inside("lines", "../secret.png")
    Traceback (most recent call last):
    hwrlib.metadata.DataError: the file name '../secret.png' leads out of lines: give one of a file in that folder
    """
    path = Path(folder) / name
    foreign = set("\\\0") & set(name) or PureWindowsPath(name).anchor or ".." in PurePosixPath(name).parts
    # realpath follows links, and raises nothing where they lead in a circle.
    if foreign or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise DataError(f"the file name {name!r} leads out of {folder}: give one of a file in that folder")
    return path
