"""Lines and transcripts from the Hub, parquet files and folders; files written whole (chapters 1, 2, 8)."""

import csv
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors import SafetensorError

from hwrlib import SAMPLE
from hwrlib.images import load_page

HUB = "Teklia/IAM-line"
METADATA = ("metadata.jsonl", "metadata.csv")  # beside the images of a folder, as `datasets` has it


class DataError(ValueError):
    """A data set that cannot be used; the message names the row and says why."""


class LineImage(datasets.Image):
    """A column that :mod:`hwrlib.images` decodes, grey; `datasets` would try every format that Pillow knows."""

    def decode_example(self, value: dict | Image.Image, token_per_repo_id: dict | None = None) -> Image.Image:
        """The PIL image of {"bytes", "path"}; now and then `datasets` has one already."""
        if isinstance(value, Image.Image):
            return value
        return Image.fromarray(load_page(value["path"] if value["bytes"] is None else value["bytes"], value["path"]))


def load_lines(split: str = "train", source: str | Path = "iam", skip_bad: bool = False) -> datasets.Dataset:
    """Load the lines of one split: ``image`` (PIL, grey, decoded when asked for), ``text``, and its ``origin``.

    Other columns of text or numbers come with them.

    Arguments:
        split: "train", "validation" or "test"; any split name where the source is a path.
        source: "iam" (``Teklia/IAM-line`` from the Hub), "sample" (the embedded, synthetic lines), or a path: a parquet
            file, a folder of parquet files named after their splits, or a folder of images with ``metadata.jsonl`` or
            ``metadata.csv`` (``file_name``, ``text``): one folder per split, or one for all, which is then "train".
        skip_bad: leave out rows without text or image, and say so on standard error.

    Raises:
        FileNotFoundError: no such path, or nothing of that split in it.
        DataError: a missing column, or rows without text or image: all of them are named.
    """
    if source == "iam":
        return _checked(datasets.load_dataset(HUB, split=split), f"{HUB}, {split}", skip_bad)
    path = SAMPLE if source == "sample" else Path(source)
    if not path.exists():
        raise FileNotFoundError(f'{path}: no such file or folder; a source is "iam", "sample" or a path')
    found = [f for place in (path, path / "data") for f in sorted(place.glob(f"{split}*.parquet"))]
    files = [path] if path.suffix == ".parquet" else found
    if files:
        name = ", ".join(map(str, files))
        try:  # without what the schema says of itself: columns of images, but ours, are none then
            table = pa.concat_tables(pq.read_table(file) for file in files).replace_schema_metadata()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{name} cannot be read as parquet: {error}; fetch it again") from error
        return _checked(datasets.Dataset(table), name, skip_bad)
    folders = (path / split, path) if split == "train" else (path / split,)  # without folders per split, all is "train"
    found = [folder / name for folder in folders for name in METADATA if (folder / name).exists()]
    if not found:
        raise FileNotFoundError(f"{path}: found neither {split}*.parquet nor {' or '.join(METADATA)} for {split!r}")
    if len(found) > 1 and found[0].parent == found[1].parent:
        raise DataError(f"{found[0].parent} has both {' and '.join(METADATA)}; put all rows into one of them")
    rows = read_metadata(found[0])
    images = [{"path": str(image), "bytes": None} for image, _ in rows]
    lines = datasets.Dataset.from_dict({"image": images, "text": [text for _, text in rows]})
    return _checked(lines, str(found[0]), skip_bad, embedded=False)


def _checked(lines: datasets.Dataset, source: str, skip_bad: bool, embedded: bool = True) -> datasets.Dataset:
    """Refuse or leave out rows without text or image; no row of a data set that embeds its images names a file."""
    missing = [name for name in ("image", "text") if name not in lines.column_names]
    if missing or not len(lines):
        raise DataError(f"{source}: no {' and '.join(missing) or 'line'} in it, but {', '.join(lines.column_names)}")
    # Any other column of images, sounds or videos would be decoded by `datasets`.
    columns = [c for c, kind in lines.features.items() if c == "image" or isinstance(kind, datasets.Value)]
    try:
        lines = lines.select_columns([c for c in columns if c != "origin"])
        lines = lines.cast_column("image", datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(f"{source}: the column image holds no images ({error})") from error
    bad = {}
    for row, line in enumerate(lines):
        text, image = line["text"], line["image"] or {"bytes": None, "path": ""}
        if not isinstance(text, str) or not text.strip():
            bad[row] = "the transcript is empty"
        elif image["bytes"] is None and (embedded or not os.path.isfile(image["path"])):
            bad[row] = f"the image of {text!r} is missing: {image['path'] or 'no file'}"
    origins = [f"{source}, row {row}" for row in range(len(lines))]
    refuse_rows([f"{origins[row]}: {why}" for row, why in bad.items()], skip_bad)
    lines = lines.add_column("origin", origins).cast_column("image", LineImage())
    return lines.select([row for row in range(len(lines)) if row not in bad]) if bad else lines


def refuse_rows(reasons: list[str], skip_bad: bool) -> None:
    """Refuse rows that cannot be used, all in one DataError; or only say on standard error that they are left out."""
    if reasons and not skip_bad:
        raise DataError("\n".join([*reasons, "mend or drop such rows, or leave them out with --skip-bad-rows"]))
    for reason in reasons:
        print(f"left out: {reason}", file=sys.stderr)


def hold_out(lines: datasets.Dataset, every: int = 5) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split two or more lines into those to learn from and those held out: one of ``every``, and at least one."""
    if len(lines) < 2:
        raise DataError(f"{len(lines)} line: one to learn from and one to check with is the least; correct some more")
    held = np.arange(len(lines)) % every == min(every, len(lines)) - 1
    return lines.select(np.flatnonzero(~held)), lines.select(np.flatnonzero(held))


def training_lines(source: str | Path, skip_bad: bool = False) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The lines to train on and to validate on; :func:`hold_out` makes the latter where a source has no such split."""
    lines = load_lines("train", source, skip_bad)
    try:
        return lines, load_lines("validation", source, skip_bad)
    except FileNotFoundError:
        return hold_out(lines)


def read_metadata(path: Path) -> list[tuple[Path, str]]:
    """The image and the text of each row of a ``metadata.jsonl`` or ``metadata.csv``, the texts as they are written.

    A DataError names the row, from 0, that is not of the format, not in UTF-8 or UTF-16, without ``file_name`` or
    ``text``, that names a file outside the folder, or one that another row has with another text.
    """
    content, rows, seen = path.read_bytes(), [], {}
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # as Excel saves "Unicode text"
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
