"""From a stranger's image file to its grey levels: no other way leads in (chapter 2)."""

import contextlib
import functools
import importlib.util
import io
import itertools
import re
import stat
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

LONGEST_SIDE = 32_766  # px: OpenCV's remap takes no more
MOST_PIXELS = 100_000_000  # a sheet of A3 at 600 dpi has 70 million
MOST_BYTES = 500_000_000  # of a file
MOST_PAGES = 1000  # of a TIFF
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")  # "JPEG" opens MPO as well
COUNTED = 20  # pages, for a message: a hostile TIFF can have millions
TILE = {322, 323}  # TIFF: width and height of a tile
NEW_SUBFILE_TYPE = 254  # TIFF: 1 marks a smaller copy of another page, 4 a mask
EPS = rb"%!|\xc5\xd0\xd3\xc6"
FOREIGN = {  # first bytes of what people send and we do not read: how to make an image of it
    rb"%PDF": "a PDF: save the page as PNG or JPEG",
    EPS: "a PostScript program (EPS): export it as PNG",
    rb"(\xef\xbb\xbf)?\s*(?=<[?!s]).*?<svg": "an SVG drawing: export it as PNG",
    rb".{4}ftyp(hei|hev|mif|msf)": "a HEIC photo: install pillow-heif, or export it as JPEG (iPhone: Settings > "
    "Camera > Formats > Most Compatible)",
    rb".{4}ftypavi": "an AVIF image: save it as PNG or JPEG",
}
UPRIGHT = {  # what each EXIF orientation asks for
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image that cannot be prepared; the message names it and says why."""


def open_image(data: bytes, name: str) -> Image.Image:
    """Decode the bytes of an image file: no other way leads from a stranger's file to a picture.

    Arguments:
        data: the file, in one of ``FORMATS`` (HEIF too where `pillow-heif` is installed). No other decoder sees it:
            that of EPS, for one, would run the program that the file is.
        name: what an error message calls it.

    Returns:
        a loaded image, turned as its EXIF orientation says; of an animation the first frame.

    Raises:
        ImageError: whatever is wrong with the file; a TIFF of several pages, too.
    """
    return _decoded(_only_page(_identified(data, name), name), name)


def load_grey(image) -> np.ndarray:
    """Grey levels (H, W), float32 from 0 (black) to 255 (white), of whatever :func:`prepare` takes."""
    return _load(image).astype(np.float32, copy=False)


def load_page(image) -> np.ndarray:
    """The same in a quarter of the memory, for whole pages: uint8 (H, W). A uint8 array (H, W) comes back itself."""
    return _in_bytes(_load(image))


def load_pages(image) -> Iterator[np.ndarray]:
    """Each page of a TIFF of several as :func:`load_page` gives one, in order; the one picture of anything else.

    Raises:
        ImageError: as :func:`prepare`, when the page's turn comes; more than 1,000 pages.
        FileNotFoundError: no such file.
    """
    source, name = _source(image)
    pages = [source] if isinstance(source, np.ndarray) else _pages(source, name)
    for page in pages:
        yield _in_bytes(_grey(page, name))


def name_of(image) -> str:
    """What an error message calls this image."""
    if isinstance(image, str | Path):
        return str(image)
    if isinstance(image, Image.Image):
        return getattr(image, "filename", "") or f"the {image.mode} image"
    return f"the {'bytes' if isinstance(image, bytes | bytearray) else type(image).__name__}"


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Whatever a decoder raises becomes an ImageError that names the file."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # each decoder has its own (struct.error, MemoryError ...): no list of them is whole
        raise ImageError(
            f"{name} cannot be decoded ({type(error).__name__}: {error}): it is cut off, damaged or of an unusual "
            "kind; save it again as PNG or JPEG"
        ) from error


def _load(image) -> np.ndarray:
    """Grey levels 0 to 255 (H, W): uint8 where the image has 8 bits, else float32."""
    source, name = _source(image)
    return _grey(source if isinstance(source, np.ndarray) else _only_page(source, name), name)


def _in_bytes(grey: np.ndarray) -> np.ndarray:
    return grey if grey.dtype == np.uint8 else grey.round().astype(np.uint8)


def _source(image) -> tuple[np.ndarray | Image.Image, str]:
    """The array, or the image of which no more than the header is read, behind whatever is given; and its name."""
    name = name_of(image)
    if isinstance(image, np.ndarray):
        return image, name
    if isinstance(image, Image.Image):
        if image.format == "EPS":  # to load it is to run it
            raise ImageError(f"{name}: this is {FOREIGN[EPS]}")
        return image, name
    if isinstance(image, str | Path):
        image = read_file(Path(image))
    if not isinstance(image, bytes | bytearray):
        raise ImageError(f"{name} is no image: give a path, bytes, a PIL image or a NumPy array")
    opened = _identified(image, name)
    opened.draft("L", opened.size)  # of a JPEG, the grey alone is decoded: a third of the memory
    return opened, name


def read_file(path: Path) -> bytes:
    """The bytes of a regular file of at most 500 MB."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or /dev/zero would never end
        raise ImageError(f"{path} is a folder, a pipe or a device; give the path of an image file")
    if status.st_size > MOST_BYTES:
        raise ImageError(f"{path} has {status.st_size / 1e6:,.0f} MB; scale it down to {MOST_BYTES / 1e6:.0f} or less")
    return path.read_bytes()


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats whose decoders may see a file."""
    if not importlib.util.find_spec("pillow_heif"):
        return FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener()
    return *FORMATS, "HEIF"


def _identified(data: bytes, name: str) -> Image.Image:
    """The image of which the header alone is read."""
    if not data:
        raise ImageError(f"{name}: the file is empty; save the image again")
    with _decoding(name):
        try:
            return Image.open(io.BytesIO(data), formats=_formats())
        except UnidentifiedImageError as error:
            kinds = (kind for start, kind in FOREIGN.items() if re.match(start, data[:4096], re.DOTALL | re.IGNORECASE))
            kind = next(kinds, "no image that can be read; save it as PNG, JPEG, WebP or TIFF")
            raise ImageError(f"{name}: this is {kind}") from error
        except Image.DecompressionBombError as error:
            raise ImageError(f"{name} has far too many pixels ({error}); scale it down") from error


def _pages(image: Image.Image, name: str) -> Iterator[Image.Image]:
    """The image, standing at one page after the other: a TIFF may have several, anything else is one."""
    yield image
    if image.format != "TIFF":
        return
    for number in itertools.count(1):
        with _decoding(f"{name}, page {number + 1},"):
            try:
                image.seek(number)
            except EOFError:
                return
            smaller_or_mask = image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 5
        if number == MOST_PAGES:
            raise ImageError(f"{name} has more than {MOST_PAGES:,} pages; cut it up")
        if not smaller_or_mask:
            yield image


def _only_page(image: Image.Image, name: str) -> Image.Image:
    """The image itself, refused where it has more pages than one: none is dropped silently."""
    if not getattr(image, "is_animated", False):
        return image
    count = sum(1 for _ in itertools.islice(_pages(image, name), COUNTED))
    if count > 1:
        raise ImageError(
            f"{name} has {count if count < COUNTED else f'{COUNTED} or more'} pages: take them one by one from "
            "hwrlib.images.load_pages, or save each as a file of its own"
        )
    image.seek(0)
    return image


def check_size(width: int, height: int, name: str, most: int = MOST_PIXELS) -> None:
    """Refuse a picture without pixels or with too many."""
    if width * height == 0:
        raise ImageError(f"{name} has no pixels: {width} x {height}")
    if width * height > most:
        raise ImageError(
            f"{name} has far too many pixels: {width} x {height}; scale it down to {most / 1e6:.0f} megapixels or less"
        )
    if max(width, height) > LONGEST_SIDE:
        raise ImageError(f"{name} is {width} x {height}: no side may have over {LONGEST_SIDE:,} pixels; scale it down")


def _decoded(image: Image.Image, name: str) -> Image.Image:
    """The image with its pixels, turned as its EXIF orientation says."""
    # Known from the header, before anything is decoded. WebP's decoder holds the picture four times over.
    check_size(*image.size, name, MOST_PIXELS // 2 if image.format == "WEBP" else MOST_PIXELS)
    with _decoding(name):
        if image.format == "TIFF" and set(image.tag_v2) >= TILE:  # a small picture can lie in a huge tile
            check_size(*(image.tag_v2[tag] for tag in sorted(TILE)), f"a tile of {name}")
        image.load()
        try:
            turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
        except (OSError, SyntaxError, TypeError, ValueError, struct.error) as error:
            warnings.warn(f"{name}: the EXIF data are broken ({error}): read as it is stored", stacklevel=2)
            turn = None
        if turn is None:
            return image
        turned = image.transpose(turn)
        turned.info = {key: value for key, value in image.info.items() if key == "transparency"}  # EXIF is used up
        return turned


def _grey(image: np.ndarray | Image.Image, name: str) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return _grey_of_array(image, name)
    image = _decoded(image, name)
    with _decoding(name):
        if image.mode.startswith(("I", "F")):
            return _grey_of_array(np.asarray(image), name)
        if image.mode in ("LA", "RGBA", "RGBa", "PA") or "transparency" in image.info:
            return np.vstack([_on_white(strip) for strip in _strips(image)])
        return np.asarray(image.convert("L"))


def _strips(image: Image.Image, rows: int = 256) -> Iterator[Image.Image]:
    """The image in strips across, which take less memory on their way to grey."""
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _on_white(image: Image.Image) -> np.ndarray:
    """Grey levels of a transparent image on white paper."""
    image = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("L"))


def _grey_of_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] > 4):
        raise ImageError(f"{name} has shape {array.shape}; an image has (height, width) or (height, width, channels)")
    if array.size == 0:
        raise ImageError(f"{name} has no pixels: shape {array.shape}")
    check_size(array.shape[1], array.shape[0], name)
    if array.dtype.kind not in "buif":
        raise ImageError(f"{name} holds {array.dtype}; an image holds integers or floats")
    values = array if array.dtype == np.uint8 else _to_byte_range(array, name)
    if values.ndim == 2:
        return values
    return _grey(Image.fromarray(values.round().astype(np.uint8)), name)


def _to_byte_range(array: np.ndarray, name: str) -> np.ndarray:
    """float32 from 0 to 255 of any integers or floats, judged by their kind and greatest value."""
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ImageError(f"{name} has {np.count_nonzero(~np.isfinite(values))} values that are not finite (NaN or inf)")
    top = values.max()
    if values.min() < 0 or top > 65535:
        raise ImageError(f"{name} runs from {values.min():g} to {top:g}; give 0 to 1, 0 to 255 or 0 to 65,535")
    if array.dtype.kind in "bf" and top <= 1:
        values *= 255
    elif top > 255:
        values /= 257  # 16 bits
    return values
