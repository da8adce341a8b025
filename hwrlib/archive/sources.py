"""Where pages come from: images, folders, TIFF and PDF files of many pages, data sets of images (chapter 9)."""

import hashlib
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from hwrlib.image_files import MOST_PAGES, ImageError, check_size, load_pages, read_file
from hwrlib.metadata import DataError

DPI = 200  # at which the pages of a PDF are rendered; a page is so many pixels an inch where a PDF is written
ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
ENDINGS |= {".heic", ".heif"} if importlib.util.find_spec("pillow_heif") else set()
ENDINGS |= {".pdf"} if importlib.util.find_spec("pypdfium2") else set()


class Item(NamedTuple):
    """A file of one page or of many, or one row group of a data set: what a worker takes at a time.

    Arguments:
        name: what its pages are called: the file's path from the source on.
        path: where it lies.
        row_group: of a parquet file with an ``image`` column; else None.
    """

    name: str
    path: str
    row_group: int | None = None


class Page(NamedTuple):
    """A page that came out of an item.

    Arguments:
        name: of the item, with #2 for its second page.
        sha256: of the file's bytes, hexadecimal; empty where it could not be read.
        pixels: uint8 (H, W), or what is wrong with it.
    """

    name: str
    sha256: str
    pixels: np.ndarray | Exception


def find_files(name: str) -> list[str]:
    """The images and PDF files of a folder and of what is under it; a file, or "-", is itself.

    Raises:
        FileNotFoundError: none in the folder.
    """
    if not Path(name).is_dir():
        return [name]
    found = sorted(path for path in Path(name).rglob("*") if path.suffix.lower() in ENDINGS)
    if not found:
        raise FileNotFoundError(f"{name}: no image in this folder ({', '.join(sorted(ENDINGS))})")
    return [str(path) for path in found]


def find_items(source: str | Path) -> list[Item]:
    """All items of an archive.

    Chapter 9: notebooks/09_read_an_archive.ipynb.

    Arguments:
        source: a folder of images and PDF files, or of parquet files with an ``image`` column (the Hub's layout); one
            such file; or a ``.txt`` file that lists files, one a line.

    Raises:
        FileNotFoundError: no such file, or a folder without any.
        DataError: a parquet file without images, or a file that is listed twice.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix == ".txt":
        listed = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        twice = sorted({line for line in listed if listed.count(line) > 1}) if len(set(listed)) < len(listed) else []
        if twice or not listed:
            raise DataError(f"{path}: {f'{twice[0]} is listed twice' if twice else 'no file is listed in it'}")
        return [Item(line, line) for line in listed]
    home = path if path.is_dir() else path.parent
    tables = sorted(home.rglob("*.parquet")) if path.is_dir() else [path] * (path.suffix == ".parquet")
    if tables:
        return [item for table in tables for item in _row_groups(table, str(table.relative_to(home)))]
    return [Item(str(Path(file).relative_to(home)), file) for file in find_files(str(path))]


def open_item(item: Item) -> Iterator[Page]:
    """The pages of an item, one at a time; one that cannot be had comes as its error."""
    try:
        contents = [(item.name, read_file(Path(item.path)))] if item.row_group is None else _images(item)
        for name, data in contents:
            sha256 = hashlib.sha256(data).hexdigest()
            for number, pixels in enumerate(iter_pages(data, name), start=1):
                yield Page(name if number == 1 else f"{name}#{number}", sha256, pixels)
    except (OSError, ValueError) as error:
        yield Page(item.name, "", error)


def iter_pages(image: str | bytes, name: str) -> Iterator[np.ndarray | Exception]:
    """The pages of a file as :func:`hwrlib.image_files.load_page` gives one; one that cannot be had comes as its error.

    Arguments:
        image: a path or the bytes of an image, of a TIFF of several pages, or of a PDF, which ``pypdfium2`` renders.
        name: what an error calls it.
    """
    try:
        data = image if isinstance(image, bytes) else read_file(Path(image))
        yield from _pdf_pages(data, name) if data[:1024].lstrip().startswith(b"%PDF") else load_pages(data)
    except (OSError, ValueError, MemoryError) as error:  # of the file, or of a TIFF, whose next pages cannot be found
        text = str(error).removeprefix("the bytes")
        yield ImageError(text if text.startswith(name) else f"{name}: {text.lstrip(': ')}")


def _pdf_pages(data: bytes, name: str) -> Iterator[np.ndarray | Exception]:
    if not importlib.util.find_spec("pypdfium2"):
        raise ImageError(f"{name}: this is a PDF: pip install pypdfium2 to read it, or save its pages as PNG or JPEG")
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
        count = len(document)
    except pypdfium2.PdfiumError as error:
        raise ImageError(
            f"{name} cannot be opened ({error}): it is damaged or locked; save it without a password"
        ) from error
    if not 0 < count <= MOST_PAGES:
        raise ImageError(f"{name} has {count:,} pages; cut it up into files of 1 to {MOST_PAGES:,}")
    for number in range(count):
        try:
            yield _render(document[number], f"{name}, page {number + 1},")
        except (pypdfium2.PdfiumError, ValueError, MemoryError) as error:
            yield ImageError(f"{name}, page {number + 1}, cannot be rendered: {error or type(error).__name__}")


def _render(page, name: str) -> np.ndarray:
    """The grey levels of a PDF's page, its size and that of its pictures checked before anything is drawn."""
    from pypdfium2.raw import FPDF_PAGEOBJ_IMAGE

    check_size(*(math.ceil(min(side, 1e9) * DPI / 72) for side in page.get_size()), name)
    for picture in page.get_objects(filter=[FPDF_PAGEOBJ_IMAGE]):
        check_size(*picture.get_px_size(), f"a picture of {name}")
    return page.render(scale=DPI / 72, grayscale=True).to_numpy().copy()  # the bitmap owns its memory


def _row_groups(table: Path, name: str) -> list[Item]:
    schema = pq.read_schema(table)
    if "image" not in schema.names:
        raise DataError(f"{table} has no column image, but {', '.join(schema.names)}; give a data set of images")
    return [Item(name, str(table), group) for group in range(pq.read_metadata(table).num_row_groups)]


def _images(item: Item) -> Iterator[tuple[str, bytes]]:
    """The name, with the row of its file from 0, and the bytes of each image of a row group."""
    file = pq.ParquetFile(item.path)
    row = sum(file.metadata.row_group(group).num_rows for group in range(item.row_group))
    for batch in file.iter_batches(1, row_groups=[item.row_group], columns=["image"]):
        (image,) = batch["image"].to_pylist()
        data = image.get("bytes") if isinstance(image, dict) else image
        yield f"{item.name}/{row}", data or b""
        row += 1
