"""Lines and transcripts from the Hub, parquet files and folders, and those held out (chapters 1, 2, 8)."""

import os
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hwrlib import SAMPLE
from hwrlib.files import METADATA, DataError, read_metadata, refuse_rows
from hwrlib.images import load_page

HUB = "Teklia/IAM-line"


class LineImage(datasets.Image):
    """A column that :mod:`hwrlib.images` decodes, grey; `datasets` would try every format that Pillow knows."""

    def decode_example(self, value: dict | Image.Image, token_per_repo_id: dict | None = None) -> Image.Image:
        """The PIL image of {"bytes", "path"}; now and then `datasets` has one already."""
        if isinstance(value, Image.Image):
            return value
        return Image.fromarray(load_page(value["path"] if value["bytes"] is None else value["bytes"], value["path"]))


def load_lines(split: str = "train", source: str | Path = "iam", skip_bad: bool = False) -> datasets.Dataset:
    """The lines of a split: ``image`` (PIL, grey, decoded when asked for), ``text``, ``origin``, other text, numbers.

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
    if re.search("[\ud800-\udfff]", str(path)):  # `datasets` keeps paths as text
        raise DataError(f"{os.fsencode(path)}: this name is not UTF-8: rename the file or folder")
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
    # Any other column of images, sounds or videos would be decoded by `datasets`.
    columns = [c for c, kind in lines.features.items() if c == "image" or isinstance(kind, datasets.Value)]
    missing = [name for name in ("image", "text") if name not in columns]
    if missing or not len(lines):
        raise DataError(f"{source}: no {' and '.join(missing) or 'line'} in it, but {', '.join(lines.column_names)}")
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
