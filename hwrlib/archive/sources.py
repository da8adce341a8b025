"""Where pages come from: images, folders, TIFF and PDF files of many pages, data sets of images (chapter 9)."""

import dataclasses
import hashlib
import importlib.util
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from hwrlib.archive import FORMATS
from hwrlib.ctc import Reading
from hwrlib.files import DataError, complain
from hwrlib.images import MOST_PAGES, ImageError, check_size, load_pages, read_file, resolution

DPI = 200  # dots an inch at which the pages of a PDF are drawn, unless a picture in them is finer
DRAWN_SIDE = 10_000  # px, of a page that is drawn finer: A3 at 600 dpi
CAMERA_DPI = 73  # of a picture: cameras write 72 where they know none
ENDINGS = {".pdf", ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
ENDINGS |= {".heic", ".heif"} if importlib.util.find_spec("pillow_heif") else set()
OWN_ENDING = re.compile(rf"(-\d+)?({'|'.join(map(re.escape, FORMATS.values()))})$")  # after its page's file name


class Item(NamedTuple):
    """A file of one page or of many, or one row group of a data set: what a worker takes at a time."""

    name: str  # what its pages are called: the file's path from the source on; of a file in a list, its absolute path
    path: str
    row_group: int | None = None  # of a parquet file with an image column


@dataclasses.dataclass(frozen=True)
class Page:
    """A page, and what was read on it."""

    name: str  # of its file; scan.tif#2 is the second page of one
    pixels: np.ndarray | Exception  # uint8 (H, W), or what is wrong with it
    sha256: str = ""  # of the file's bytes, hexadecimal; empty where they could not be read
    readings: Sequence[Reading] = ()
    dpi: float | None = None  # dots an inch, where they are known


def readable_name(path: str | Path) -> str:
    r"""The name of a file as text that can be written everywhere: a byte that is no UTF-8 is spelt out, as ``\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find_files(name: str, output: str | Path | None = None, endings: set[str] = ENDINGS) -> list[str]:
    """The images and PDF files of a folder and of what is under it, linked folders too; a file, or "-", is itself.

    What an archive's reading has written, to ``output`` or beside its page, is no page. Other kinds of files are named;
    a FileNotFoundError says that there is none.
    """
    if not Path(name).is_dir():
        return [name]
    found, others = [], Counter()
    seen = {os.path.realpath(output)} - {os.path.realpath(name)} if output else set()
    for folder, folders, files in os.walk(name, onerror=complain, followlinks=True):
        folders[:] = sorted(inner for inner in folders if not inner.startswith(".") and inner != "__MACOSX")
        results = {file for file in files if re.fullmatch(r"pages-\d+\.parquet", file)}
        real = os.path.realpath(folder)
        if results and folder != name and real not in seen:
            complain("left out, for it holds the result of an archive (pages-*.parquet)", folder)
            seen.add(real)
        if real in seen:  # the output, another's, or where a link has led to before
            folders.clear()
            continue
        seen.add(real)
        kinds = {file: Path(file).suffix.lower() for file in {*files} - results if not file.startswith(".")}
        pages = {readable_name(file) for file, kind in kinds.items() if kind in endings}
        given = {file for file in kinds if not (OWN_ENDING.search(file) and OWN_ENDING.sub("", file) in pages)}
        found += [os.path.join(folder, file) for file in given if kinds[file] in endings]
        others.update(kinds[file] or "none" for file in given if kinds[file] not in endings)
    if not found:
        raise FileNotFoundError(f"{name}: no image in this folder ({', '.join(sorted(endings))})")
    if others:
        kinds = ", ".join(f"{count} of {ending}" for ending, count in sorted(others.items()))
        complain(f"files whose kind is not read: {kinds}", name)
    return sorted(found)


def find_items(source: str | Path, output: str | Path | None = None) -> list[Item]:
    """All items of an archive; what was written to ``output`` before is none.

    Arguments:
        source: a folder of images, PDF files and parquet files with an ``image`` column (the Hub's layout); one such
            file; or a ``.txt`` file that lists files, one a line. A DataError names a parquet file without images and
            a file that is listed twice.
    """
    path, items = Path(os.path.abspath(source)), []  # a worker of a cluster may stand in another folder
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix == ".txt":
        lines = path.read_text("utf-8-sig", "surrogateescape").splitlines()
        listed = [os.path.abspath(line) for line in lines if line.strip()]
        twice = [file for file, count in Counter(listed).items() if count > 1]
        if twice or not listed:
            raise DataError(f"{path}: {f'{twice[0]} is listed twice' if twice else 'no file is listed in it'}")
        return [Item(readable_name(file), file) for file in listed]
    for file in find_files(str(path), output, ENDINGS | {".parquet"}):
        name = readable_name(os.path.relpath(file, path if path.is_dir() else path.parent))
        try:
            table = pq.ParquetFile(file) if file.endswith(".parquet") else None
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read as parquet: {error}; fetch it again") from error
        if table and "image" not in (columns := table.schema_arrow.names):
            raise DataError(f"{file} has no column image, but {', '.join(columns)}; give a data set of images")
        items += [Item(name, file, group) for group in (range(table.num_row_groups) if table else [None])]
    return items


def open_item(item: Item) -> Iterator[Page]:
    """The pages of an item, one at a time; one that cannot be had comes as its error."""
    if item.row_group is None:
        yield from iter_pages(item.path, item.name)
        return
    try:
        file = pq.ParquetFile(item.path)
        first = sum(file.metadata.row_group(group).num_rows for group in range(item.row_group))
        batches = file.iter_batches(1, row_groups=[item.row_group], columns=["image"])
        for row, batch in enumerate(batches, start=first):
            (image,) = batch["image"].to_pylist()
            data = image.get("bytes") if isinstance(image, dict) else image
            # A text would be the path of any file of this machine.
            yield from iter_pages(data if isinstance(data, bytes) else b"", f"{item.name}/{row}")
    except (OSError, ValueError) as error:
        yield Page(item.name, error)


def iter_pages(image: str | bytes, name: str) -> Iterator[Page]:
    """The pages of an image, a TIFF or a PDF, a path or bytes, all called by a name; what fails comes as its error."""
    number, sha256 = 0, ""
    try:
        data = image if isinstance(image, bytes) else read_file(Path(image))
        sha256 = hashlib.sha256(data).hexdigest()
        finer = max(resolution(data) or [0])  # to which the coarser direction is stretched
        pictures = ((pixels, finer if finer > CAMERA_DPI else None) for pixels in load_pages(data, name))
        found = _pdf_pages(data, name) if b"%PDF-" in data[:1024] else pictures
        for number, (pixels, dpi) in enumerate(found, start=1):
            yield Page(f"{name}#{number}" if number > 1 else name, pixels, sha256, dpi=dpi)
    except (OSError, ValueError, MemoryError) as error:  # of the file, or of a TIFF, whose next pages cannot be found
        text = str(error) or type(error).__name__
        error = ImageError(text if name in text else f"{name}: {text}")
        yield Page(f"{name}#{number + 1}" if number else name, error, sha256)


def _pdf_pages(data: bytes, name: str) -> Iterator[tuple[np.ndarray | Exception, float | None]]:
    if not importlib.util.find_spec("pypdfium2"):
        raise ImageError(f"{name}: this is a PDF: pip install pypdfium2 to read it, or save its pages as PNG or JPEG")
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
        document.init_forms()  # else fields that are filled in, and signatures, are not drawn
        count = len(document)
    except pypdfium2.PdfiumError as error:
        raise ImageError(f"{name} cannot be opened ({error}): it is damaged, or save it without a password") from error
    if not 0 < count <= MOST_PAGES:
        raise ImageError(f"{name} has {count:,} pages; cut it up into files of 1 to {MOST_PAGES:,}")
    for number in range(count):
        called = f"{name}, page {number + 1},"
        try:
            page = document[number]
            dpi = _dots_an_inch(page, called)
            yield page.render(scale=dpi / 72, grayscale=True).to_numpy().copy(), dpi  # the bitmap owns its memory
        except (pypdfium2.PdfiumError, ValueError, MemoryError) as error:
            yield ImageError(f"{called} cannot be rendered: {error or type(error).__name__}"), None


def _dots_an_inch(page, name: str) -> float:
    """To draw a PDF's page at: as its finest pictures that fill a tenth of it, at least ``DPI``; all sizes checked."""
    from pypdfium2.raw import FPDF_PAGEOBJ_IMAGE

    width, height = page.get_size()
    check_size(*(math.ceil(min(side, 1e9) * DPI / 72) for side in (width, height)), name)
    pictures, filled = [], 0.0
    for picture in page.get_objects(filter=[FPDF_PAGEOBJ_IMAGE]):
        check_size(*picture.get_px_size(), f"a picture of {name}")
        left, bottom, right, top = picture.get_bounds()
        area = max((right - left) * (top - bottom), 1e-6)
        pictures.append((72 * math.sqrt(math.prod(picture.get_px_size()) / area), area))
    for dpi, area in sorted(pictures, reverse=True):
        filled += area
        if filled >= 0.1 * width * height:
            return max(DPI, min(dpi, 72 * DRAWN_SIDE / max(width, height)))
    return DPI
