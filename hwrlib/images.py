"""From any picture of a stranger's to grey levels, and to a line 128 px high, dark ink on white paper (chapter 2)."""

import contextlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, ImageSequence, ImageStat

HEIGHT = 128
LONGEST = 100  # times the height: no handwritten line comes near it
LONGEST_SIDE = 32_766  # px: OpenCV's remap takes no more
MOST_PIXELS = 100_000_000  # a sheet of A3 at 600 dpi has 70 million
MOST_BYTES = 500_000_000  # of a file
MOST_PAGES = 1000  # of a TIFF or a PDF: 300 bytes can promise a million
PEPPERED, DITHERED = 0.003, 0.02  # share of lone black pixels; the IAM lines have at most 0.0005
NEAR = np.ones((3, 3), np.uint8)
IMAGE_KINDS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")  # no other decoder sees a file: that of EPS would run it
with contextlib.suppress(ImportError):  # HEIC, what iPhones save
    import pillow_heif

    pillow_heif.register_heif_opener()
    IMAGE_KINDS += ("HEIF",)


class ImageError(ValueError):
    """An image that cannot be prepared; the message names it and says why."""


def prepare(image, width_divisor: float = 1.0) -> torch.Tensor:
    """Prepare the image of one line for the network: a float tensor (1, 128, W) from -1 (ink) to +1 (paper).

    Arguments:
        image: a path, the bytes of an image file, a PIL image of any mode, or an array (H, W) or (H, W, 1 to 4) of
            integers, or of floats from 0 to 1 or from 0 to 255.
        width_divisor: the width is divided by this: 2 reads in half the time where letters are wide enough.

    Raises:
        ImageError: an empty, broken, non-finite or absurdly long image, or a page instead of a line.

    >>> prepare(np.full((64, 400), 255, np.uint8)).shape
    torch.Size([1, 128, 800])
    """
    return to_tensor(prepare_pixels(image, width_divisor))


def prepare_pixels(image, width_divisor: float = 1.0, name: str | None = None) -> np.ndarray:
    """The same as :func:`prepare`, kept small: uint8 (128, W), 255 = paper; errors call it ``name``."""
    line = resize(load_page(image, name), width_divisor, name or name_of(image))
    return stretch(flatten_light(turn_dark_on_light(line)))


def load_page(image, name: str | None = None) -> np.ndarray:
    """Grey levels, uint8 (H, W), of whatever :func:`prepare` takes; a TIFF of several pages is an ImageError.

    The picture is upright, its pixels square, what is transparent paper; of an animation it is the first frame.
    """
    page, *more = itertools.islice(load_pages(image, name), 2)
    if more:  # none is dropped silently
        raise ImageError(f"{name or name_of(image)} has several pages: take each from hwrlib.images.load_pages")
    return page


def load_pages(image, name: str | None = None) -> Iterator[np.ndarray]:
    """Each page of a TIFF of several as :func:`load_page` gives one; an ImageError comes when the page's turn does."""
    called = name = name or name_of(image)
    if isinstance(image, str | Path):
        image = read_file(Path(image))
    try:
        if isinstance(image, bytes | bytearray):
            image = Image.open(io.BytesIO(image), formats=IMAGE_KINDS)
            image.draft("L", image.size)  # of a JPEG, the grey alone is decoded: a third of the memory
        is_tiff = getattr(image, "format", None) == "TIFF"
        for number, page in enumerate(ImageSequence.Iterator(image) if is_tiff else [image], start=1):
            if number > MOST_PAGES:
                raise ImageError(f"{name} has more than {MOST_PAGES:,} pages; cut it up")
            if number == 1 or not page.tag_v2.get(254, 0) & 5:  # NewSubfileType: 1: a small copy of a page, 4: a mask
                yield _grey(page, called)
            called = f"{name}, page {number + 1}"
    except ImageError:
        raise
    except Exception as error:  # each decoder has its own (struct.error, MemoryError ...): no list of them is whole
        why = "empty, cut off, damaged, far too large or of another kind (PDF, PostScript, SVG, HEIC ...)"
        what = f"this is no image that can be read ({type(error).__name__}): it is {why}; save it as PNG or JPEG"
        raise ImageError(f"{called}: {what}") from error


def read_file(path: Path) -> bytes:
    """The bytes of a regular file of at most 500 MB."""
    size = path.stat().st_size
    if not path.is_file():  # reading a pipe or /dev/zero would never end
        raise ImageError(f"{path} is a folder, a pipe or a device; give the path of an image file")
    if size > MOST_BYTES:
        raise ImageError(f"{path} has {size / 1e6:,.0f} MB; scale it down to {MOST_BYTES / 1e6:.0f} or less")
    return path.read_bytes()


def resolution(image: bytes | Image.Image) -> tuple[float, float] | None:
    """Dots an inch, across and down, that an image file gives; None where it gives none that can be."""
    with contextlib.suppress(Exception):  # of a broken file, :func:`load_page` says what is wrong
        opened = image if isinstance(image, Image.Image) else Image.open(io.BytesIO(image), formats=IMAGE_KINDS)
        x, y = map(float, opened.info["dpi"])
        if 1 < min(x, y) <= max(x, y) < 10_000:
            return x, y
    return None


def name_of(image) -> str:
    """What an error message calls this image."""
    if isinstance(image, str | Path):
        return str(image)
    return getattr(image, "filename", "") or f"the {type(image).__name__}"


def check_size(width: int, height: int, name: str, most: int = MOST_PIXELS) -> None:
    """Refuse a picture without pixels or with too many."""
    if not 0 < width * height <= most or max(width, height) > LONGEST_SIDE:
        give = f"give at most {most / 1e6:.0f} megapixels, no side over {LONGEST_SIDE:,}"
        raise ImageError(f"{name} is {width} x {height} pixels, which is too large, or empty; {give}")


def _grey(image: Image.Image | np.ndarray, name: str) -> np.ndarray:
    if isinstance(image, np.ndarray) and image.ndim in (2, 3):
        check_size(image.shape[1], image.shape[0], name)
        image = image if image.dtype == np.uint8 else _to_bytes(image, name)
        image = image[:, :, 0] if image.shape[2:] == (1,) else image
        if image.ndim == 2:
            return without_specks(image)
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ImageError(f"{name} is no image: give a path, bytes, a PIL image or an array (H, W) or (H, W, 1 to 4)")
    if image.format == "EPS":  # to load it is to run it
        raise ImageError(f"{name} is a PostScript program: export it as PNG")
    # Known from the header, before anything is decoded. WebP's decoder holds the picture four times over.
    check_size(*image.size, name, MOST_PIXELS // 2 if image.format == "WEBP" else MOST_PIXELS)
    if image.format == "TIFF" and {322, 323} <= set(image.tag_v2):  # a small picture can lie in a huge tile
        check_size(image.tag_v2[322], image.tag_v2[323], f"a tile of {name}")
    image.load()
    if image.mode.startswith(("I", "F")):  # unsigned 32 bits are opened as signed
        grey = _to_bytes(np.asarray(image).view(np.uint32) if image.mode == "I" else np.asarray(image), name)
    elif image.mode in ("LA", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ink, alpha = rgba.convert("L"), rgba.getchannel("A")
        if np.mean(alpha) < 128 < ImageStat.Stat(ink, alpha).mean[0]:  # white ink on nothing, which dark themes make
            ink = ImageOps.invert(ink)
        grey = np.asarray(Image.composite(ink, Image.new("L", image.size, 255), alpha))
    else:
        grey = np.asarray(image.getchannel("L") if image.mode == "LAB" else image.convert("L"))
    grey, dots = without_specks(grey), resolution(image)
    if dots and 1.1 < max(dots) / min(dots) < 5:  # a fax has 204 dots an inch across, 98 down
        size = [round(side * max(dots) / own) for side, own in zip(image.size, dots, strict=True)]
        check_size(*size, name)
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_CUBIC)
    upright = Image.fromarray(grey)
    with contextlib.suppress(Exception):  # broken EXIF data, or none, spoil no good picture
        upright.getexif()[ExifTags.Base.Orientation] = image.getexif()[ExifTags.Base.Orientation]
        upright = ImageOps.exif_transpose(upright)
    return np.asarray(upright)


def without_specks(grey: np.ndarray) -> np.ndarray:
    """The picture without the lone black pixels of pepper or, blurred, of dithering; one with few of them as it is."""
    dark = (grey < 128).astype(np.uint8)
    lone = (dark > 0) & (cv2.boxFilter(dark, -1, (3, 3), normalize=False) == 1)
    if (share := lone.mean()) < PEPPERED:
        return grey
    return cv2.GaussianBlur(grey, (0, 0), 1.2) if share > DITHERED else np.where(lone, cv2.dilate(grey, NEAR), grey)


def _to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    """uint8 of any integers or floats; what stands for white is told by their kind and the greatest of them."""
    values = array.astype(np.float32)
    low, top = values.min(), values.max()
    if not 0 <= low <= top <= 2**32:  # so does NaN fail
        raise ImageError(f"{name} runs from {low:g} to {top:g}; give 0 to 1, 0 to 255 or the whole of 16 or 32 bits")
    white = 1 if array.dtype.kind in "bf" and top < 2 else 255 if top <= 255 else 65_535 if top <= 65_535 else 2**32
    return (values * np.float32(255 / white)).clip(0, 255).round().astype(np.uint8)


def resize(grey: np.ndarray, width_divisor: float = 1.0, name: str = "the image") -> np.ndarray:
    """Scale grey levels (H, W) to a height of 128 pixels, float32, proportions kept; refuse what is no line."""
    rows, columns = grey.shape
    if not rows <= columns <= LONGEST * rows:
        shape = "taller than wide, a page or turned" if rows > columns else f"over {LONGEST} times as long as high"
        raise ImageError(f"{name} is {columns} x {rows}: {shape}; cut out one line, turn it, or read it as a page")
    width = max(8, round(columns * HEIGHT / rows / width_divisor))  # 8 px give the network its one frame
    # First the side that shrinks, if one does: INTER_AREA leaves out pixels where the other side grows.
    shrunk = cv2.resize(grey.astype(np.float32), (min(columns, width), min(rows, HEIGHT)), interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (width, HEIGHT), interpolation=cv2.INTER_CUBIC).clip(0, 255)


def turn_dark_on_light(grey: np.ndarray) -> np.ndarray:
    """Turn white-on-black round: most of a line is paper, so the median of each piece of it is on the paper's side."""
    rows, columns = grey.shape
    pieces = np.array_split(grey, max(1, round(columns / rows)), axis=1)  # a shadow covers some, not all
    lean = sum(np.median(piece) - np.percentile(piece, (1, 99)).mean() for piece in pieces)
    return 255 - grey if lean < 0 else grey


def flatten_light(grey: np.ndarray) -> np.ndarray:
    """Divide by the paper's own brightness, so that shadows vanish: paper comes to about 255 everywhere."""
    size = grey.shape[0] // 3 | 1  # wider than any stroke: a closing so wide finds the paper under the ink
    paper = cv2.morphologyEx(cv2.medianBlur(grey, 3), cv2.MORPH_CLOSE, np.ones((size, size), np.uint8))
    paper = cv2.blur(paper, (size, size))
    return (grey / np.maximum(paper, 1) * 255).clip(0, 255)


def stretch(grey: np.ndarray) -> np.ndarray:
    """Put ink (the median of the dark pixels) at 0 and paper, its own noise included, at 255 (uint8)."""
    middle = np.median(grey)
    noise = 1.5 * np.median(np.abs(grey[grey >= middle] - middle))
    paper = middle - 2 * noise
    dark = grey[grey < (paper + grey.min()) / 2]
    if dark.size == 0 or paper - np.median(dark) < 12:  # blank paper: noise must not become ink
        return np.full(grey.shape, 255, np.uint8)
    ink = np.median(dark)
    return ((grey - ink) / (paper - ink) * 255).clip(0, 255).round().astype(np.uint8)


def widen(line: np.ndarray, times: float) -> np.ndarray:
    """A prepared line (128, W), uint8, stretched across."""
    return cv2.resize(line, (round(line.shape[1] * times), line.shape[0]), interpolation=cv2.INTER_CUBIC)


def slant(line: np.ndarray, by: float) -> np.ndarray:
    """A prepared line (128, W), uint8, slanted ``by`` px to the right for each px up, on wider paper."""
    room = int(np.ceil(abs(by) * len(line) / 2))
    shift = [[1, -by, by * len(line) / 2 + room], [0, 1, 0]]
    return cv2.warpAffine(line, np.float32(shift), (line.shape[1] + 2 * room, len(line)), borderValue=255)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """A uint8 line (H, W) as a float tensor (1, H, W) from -1 to +1."""
    return scale(torch.from_numpy(pixels).unsqueeze(0))


def scale(pixels: torch.Tensor) -> torch.Tensor:
    """Grey levels (0 to 255, any shape) from -1 (ink) to +1 (paper), float32, on the device that they are on."""
    return pixels.float().div(127.5).sub(1)


def undo(line: torch.Tensor) -> np.ndarray:
    """A prepared line (1, H, W) or (H, W) as uint8 pixels (H, W), for display."""
    return line.detach().cpu().reshape(line.shape[-2:]).add(1).mul(127.5).round().clamp(0, 255).byte().numpy()
