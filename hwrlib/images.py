"""From any image of one line to what the network sees: 128 px high, dark ink on white paper (chapter 2)."""

import io
import re
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

HEIGHT = 128
BROKEN = (OSError, SyntaxError, ValueError)  # what PIL raises for a broken file
DAMAGED = "{name}: the image is cut off or damaged ({error}); save or send it again"
LONGEST = 100  # times the height: no handwritten line comes near it
MOST_PIXELS = 100_000_000  # a sheet of A3 at 600 dpi has 70 million
FOREIGN = {  # first bytes of what people send and PIL does not read: how to make an image of it
    rb"%PDF": "a PDF: save the page as PNG or JPEG",
    rb"(\xef\xbb\xbf)?\s*(?=<[?!s]).*?<svg": "an SVG drawing: export it as PNG",
    rb".{4}ftyp(hei|hev|mif|msf)": "a HEIC photo: export it as JPEG (iPhone: Settings > Camera > Formats > "
    "Most Compatible)",
    rb".{4}ftypavi": "an AVIF image, which this Pillow does not read: save it as PNG or JPEG",
}


class ImageError(ValueError):
    """An image that cannot be prepared; the message names it and says why."""


def prepare(image, height: int = HEIGHT, width_divisor: float = 1.0) -> torch.Tensor:
    """Prepare the image of one line for the network.

    Steps: EXIF rotation, transparency laid over white paper, grey, ``height`` pixels high with the proportions kept,
    white on black turned round, uneven light divided out, contrast stretched between ink and paper.
    Chapter 2 teaches it: notebooks/02_prepare_the_images.ipynb.

    Arguments:
        image: a path, the bytes of an image file, a PIL image of any mode, or an array (H, W) or (H, W, 1 to 4):
            integers, or floats from 0 to 1 or from 0 to 255.
        height: pixels, the height that the network expects.
        width_divisor: the width is divided by this: 2 reads in half the time where letters are wide enough.

    Returns:
        a float tensor (1, height, W) from -1 (ink) to +1 (paper).

    Raises:
        ImageError: an empty, broken, non-finite or absurdly long image, or a page instead of a line.
        FileNotFoundError: no such file.

    >>> page = np.full((64, 400), 255, np.uint8); page[30:34, 50:350] = 40
    >>> line = prepare(page)
    >>> line.shape, line.min().item(), line.max().item()
    (torch.Size([1, 128, 800]), -1.0, 1.0)
    """
    return to_tensor(prepare_pixels(image, height, width_divisor))


def prepare_pixels(image, height: int = HEIGHT, width_divisor: float = 1.0) -> np.ndarray:
    """The same as :func:`prepare`, kept small: a uint8 array (height, W), 255 = paper."""
    grey = load_grey(image)
    return stretch(flatten_light(turn_dark_on_light(resize(grey, height, width_divisor, name_of(image)))))


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """A uint8 line (H, W) as a float tensor (1, H, W) from -1 to +1."""
    return torch.from_numpy(pixels).unsqueeze(0).float().div(127.5).sub(1)


def undo(line: torch.Tensor) -> np.ndarray:
    """A prepared line (1, H, W) or (H, W) as uint8 pixels (H, W), for display.

    >>> undo(torch.ones(1, 2, 3))
    array([[255, 255, 255],
           [255, 255, 255]], dtype=uint8)
    """
    return line.detach().cpu().reshape(line.shape[-2:]).add(1).mul(127.5).round().clamp(0, 255).byte().numpy()


def name_of(image) -> str:
    """What an error message calls this image."""
    if isinstance(image, str | Path):
        return str(image)
    if isinstance(image, Image.Image):
        return getattr(image, "filename", "") or f"the {image.mode} image"
    return f"the {type(image).__name__}"


def load_grey(image) -> np.ndarray:
    """Grey levels (H, W), float32 from 0 (black) to 255 (white), of whatever ``prepare`` takes."""
    return _load(image).astype(np.float32, copy=False)


def load_page(image) -> np.ndarray:
    """The same in a quarter of the memory, for whole pages: uint8 (H, W). A uint8 array (H, W) comes back itself."""
    grey = _load(image)
    return grey if grey.dtype == np.uint8 else grey.round().astype(np.uint8)


def _load(image) -> np.ndarray:
    """Grey levels 0 to 255 (H, W): uint8 where the image has 8 bits, else float32."""
    if isinstance(image, np.ndarray):
        return _grey_of_array(image)
    if isinstance(image, str | Path):
        with open(image, "rb") as file:  # read at once: no file stays open
            data = file.read()
        return _grey_of_pil(_open(data, str(image)), str(image))
    if isinstance(image, bytes | bytearray):
        return _grey_of_pil(_open(bytes(image), "the bytes"), "the bytes")
    if isinstance(image, Image.Image):
        return _grey_of_pil(image, name_of(image))
    raise ImageError(f"{name_of(image)} is no image: give a path, bytes, a PIL image or a NumPy array")


def _open(data: bytes, name: str) -> Image.Image:
    if not data:
        raise ImageError(f"{name}: the file is empty; save the image again")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        for start, what in FOREIGN.items():
            if re.match(start, data[:4096], re.DOTALL | re.IGNORECASE):
                raise ImageError(f"{name}: this is {what}") from error
        raise ImageError(f"{name}: this is no image that can be read; save it as PNG, JPEG, WebP or TIFF") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: far too many pixels ({error}); scale it down") from error
    except BROKEN as error:
        raise ImageError(DAMAGED.format(name=name, error=error)) from error
    if image.format in ("JPEG", "MPO"):
        image.draft("L", image.size)  # decodes the grey alone, in a third of the memory
    return image


def _check_size(width: int, height: int, name: str) -> None:
    if width * height == 0:
        raise ImageError(f"{name} has no pixels: {width} x {height}")
    if width * height > MOST_PIXELS:
        raise ImageError(f"{name} has far too many pixels: {width} x {height}; scale it down to 100 megapixels or less")


def _grey_of_pil(image: Image.Image, name: str) -> np.ndarray:
    _check_size(*image.size, name)  # known from the header, before anything is decoded
    try:
        image = ImageOps.exif_transpose(image)
        image.load()
    except BROKEN as error:
        raise ImageError(DAMAGED.format(name=name, error=error)) from error
    if image.mode.startswith(("I", "F")):
        return _grey_of_array(np.asarray(image), name)
    try:
        if image.mode in ("LA", "RGBA", "RGBa", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("L"))
    except ValueError as error:
        raise ImageError(f"{name}: the mode {image.mode} cannot be turned into grey; save it as RGB") from error


def _grey_of_array(array: np.ndarray, name: str = "the array") -> np.ndarray:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] > 4):
        raise ImageError(f"{name} has shape {array.shape}; an image has (height, width) or (height, width, channels)")
    if array.size == 0:
        raise ImageError(f"{name} has no pixels: shape {array.shape}")
    _check_size(array.shape[1], array.shape[0], name)
    if array.dtype.kind not in "buif":
        raise ImageError(f"{name} holds {array.dtype}; an image holds integers or floats")
    values = array if array.dtype == np.uint8 else _to_byte_range(array, name)
    if values.ndim == 2:
        return values
    return _grey_of_pil(Image.fromarray(values.round().astype(np.uint8)), name)


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


def resize(grey: np.ndarray, height: int, width_divisor: float = 1.0, name: str = "the image") -> np.ndarray:
    """Scale to ``height`` pixels, proportions kept (but for ``width_divisor``); refuse what is no line."""
    rows, columns = grey.shape
    if rows > columns:
        raise ImageError(
            f"{name} is taller than wide ({columns} x {rows}): that is a page or a turned line. "
            "Cut out one line, turn it, or read it as a page."
        )
    if columns > LONGEST * rows:
        raise ImageError(f"{name} is {columns} x {rows}: over {LONGEST} times as wide as high is no line of writing")
    width = max(8, round(columns * height / rows / width_divisor))  # 8 px give the network its one frame
    shrinking = rows > height or columns > width
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC).clip(
        0, 255
    )


def turn_dark_on_light(grey: np.ndarray) -> np.ndarray:
    """Turn white-on-black round: most of a line is paper, so the median of each piece of it is on the paper's side."""
    rows, columns = grey.shape
    pieces = np.array_split(grey, max(1, round(columns / rows)), axis=1)  # a shadow covers some, not all
    lean = sum(np.median(piece) - np.percentile(piece, (1, 99)).mean() for piece in pieces)
    return 255 - grey if lean < 0 else grey


def flatten_light(grey: np.ndarray) -> np.ndarray:
    """Divide by the paper's own brightness, so that shadows vanish: paper comes to about 255 everywhere.

    The paper under the ink is found by a morphological closing wider than any stroke, then smoothed.
    """
    size = grey.shape[0] // 3 | 1
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
