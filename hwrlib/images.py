"""From any image of one line to what the network sees: 128 px high, dark ink on white paper (chapter 2)."""

import cv2
import numpy as np
import torch

from hwrlib.image_files import ImageError, load_grey, name_of

HEIGHT = 128
LONGEST = 100  # times the height: no handwritten line comes near it


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
    return scale(torch.from_numpy(pixels).unsqueeze(0))


def scale(pixels: torch.Tensor) -> torch.Tensor:
    """Grey levels (0 to 255, any shape) from -1 (ink) to +1 (paper), float32, on the device that they are on."""
    return pixels.float().div(127.5).sub(1)


def undo(line: torch.Tensor) -> np.ndarray:
    """A prepared line (1, H, W) or (H, W) as uint8 pixels (H, W), for display.

    >>> undo(torch.ones(1, 2, 3))
    array([[255, 255, 255],
           [255, 255, 255]], dtype=uint8)
    """
    return line.detach().cpu().reshape(line.shape[-2:]).add(1).mul(127.5).round().clamp(0, 255).byte().numpy()


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
