"""Rows and names of a data set checked, a folder for one run, whole files, faults said (chapters 1, 4, 8, 9)."""

# Apart from hwrlib.data, since `datasets` takes 0.6 s to import, which a reading or the app need not wait for.
import contextlib
import csv
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from safetensors import SafetensorError

FAILURES = (ValueError, OSError, RuntimeError, MemoryError)  # what a user can meet; any other is a fault of ours
METADATA = ("metadata.jsonl", "metadata.csv")  # beside the images of a folder, as `datasets` has it


class DataError(ValueError):
    """A data set that cannot be used; the message names the row and says why."""


class BadRows(DataError):
    """Rows that cannot be used, all of them named; who loads lines with ``skip_bad`` goes on without them."""


def refuse_rows(reasons: list[str], skip_bad: bool) -> None:
    """Refuse rows that cannot be used, all in one error; or only say on standard error that they are left out."""
    if reasons and not skip_bad:
        raise BadRows("\n".join([*reasons, "mend such rows, or take them out of the data set"]))
    for reason in reasons:
        print(f"left out: {reason}", file=sys.stderr)


def read_metadata(path: Path) -> list[tuple[Path, str]]:
    """The image and the text of each row of a ``metadata.jsonl`` or ``metadata.csv``, the texts as they are written.

    A DataError names the first row, counted from 0, that is not JSON or CSV, is not in UTF-8 or UTF-16, lacks
    ``file_name`` or ``text``, names a file outside the folder, or gives a file another text than a row before it.
    """
    content, rows, seen = path.read_bytes(), [], {}
    utf16 = path.suffix == ".csv" and content.startswith((b"\xff\xfe", b"\xfe\xff"))  # as Excel saves "Unicode text"
    try:
        content = content.decode("utf-16" if utf16 else "utf-8-sig", "surrogateescape")
        if path.suffix == ".csv":
            header = re.match(r"[^\r\n]*", content)[0]
            delimiter = next((mark for mark in ";\t" if mark in header), ",")  # Excel's, in some countries
            found = csv.DictReader(io.StringIO(content, newline=""), strict=True, delimiter=delimiter)
        else:
            found = map(json.loads, filter(str.strip, content.split("\n")))
        for row in found:
            row = row if isinstance(row, dict) else {}
            name, text = row.get("file_name"), row.get("text")
            if None in row or not (isinstance(name, str) and isinstance(text, str)):
                wanted = "a file_name and a text, in double quotes where it has a comma"
                raise DataError(f"it must have {wanted}, but is {str(row)[:100]}")
            if re.search("[\ud800-\udfff]", name + text):  # half a character of JSON, or a byte that is none
                raise DataError("it is not UTF-8: save the file as UTF-8")
            image = inside(path.parent, name)
            before, other = seen.setdefault(image, (len(rows), text))
            if text != other:
                raise DataError(f"{name} has another text in row {before} ({other!r}, here {text!r}): drop one of them")
            rows.append((image, text))
    except (ValueError, csv.Error, RecursionError) as error:
        raise DataError(f"{path}, row {len(rows)}: {error}") from error
    return rows


def inside(folder: str | Path, name: str) -> Path:
    """The path of a file named with "/" or the backslash of Windows in a folder; refused where it leads out of it."""
    plain = name.replace("\\", "/")
    foreign = "\0" in name or PureWindowsPath(name).anchor or ".." in PurePosixPath(plain).parts
    # realpath follows links, and raises nothing where they lead in a circle.
    if foreign or not Path(os.path.realpath(Path(folder) / plain)).is_relative_to(os.path.realpath(folder)):
        raise DataError(f"the file name {name!r} leads out of {folder}: give one of a file in that folder")
    return Path(folder) / plain


def complain(error: Exception | str, name: str = "") -> None:
    """Say on standard error what is wrong, and with what: in one line, or in one for each bad row of a data set."""
    text = str(error).replace(name, printable(name)) or type(error).__name__
    lines = text.splitlines() if isinstance(error, ValueError) else [text]
    text = "\n".join(printable(" ".join(line.split())) for line in lines)
    print(f"hwrlib: {text if printable(name) in text else f'{printable(name)}: {text}'}", file=sys.stderr)


def printable(text: str) -> str:
    """The text with its tabs, line breaks and the like spelt out, so that it takes one line and one column."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def one_run(folder: Path) -> Iterator[None]:
    """Keep a folder for one run at a time; a RuntimeError where another has it."""
    import filelock  # here, since it is slow to import

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise RuntimeError(f"{folder}: another run is using it; stop it, or give another folder") from error


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file or folder beside ``path``, then put it in place: whoever looks finds the old or the new, no half.

    A folder that is there gets the new files one by one: of a run's weights only one file differs between two writings.
    An OSError says that it could not be written, for a full disk, say; what was there before is kept.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        write(new)
        if path.is_dir():
            for file in sorted(new.iterdir()):
                os.replace(file, path / file.name)
            new.rmdir()
        else:
            os.replace(new, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # so torch and safetensors report a full disk
        shutil.rmtree(new, ignore_errors=True) if new.is_dir() else new.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written ({error}); is the disk full? What was there is kept.") from error
