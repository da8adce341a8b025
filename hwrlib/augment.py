"""Lines varied for training, and pen strokes rendered as lines (chapter 2)."""

import cv2
import numpy as np

PAPER = 255
LONGEST = 32  # a rendered line is at most so many heights wide
FAINTEST = 90  # least mean ink of a varied line's strokes, of 255
FARTHEST = 100_000  # coordinates beyond this are no handwriting


def augment(line: np.ndarray, rng: np.random.Generator, strength: float = 1.0, squeeze: float = 1.0) -> np.ndarray:
    """Return the line as another pen, hand, sheet and scanner might have made it.

    Shape: slant, width, height, position, a slight rotation and an elastic distortion (Simard et al., 2003), in one
    pass of resampling. Look: stroke thickness, ink that varies, gamma, blur and paper; a 1-bit scan often comes out
    like a grey one. Lengths are shares of the height. What each buys in handwriting: Wigington et al. (2017).
    Chapter 2 teaches it: notebooks/02_prepare_the_images.ipynb.

    Arguments:
        line: uint8 array (height, width), paper 255, ink near 0: a prepared line.
        rng: the source of chance; a generator of the same seed gives the same result.
        strength: 0 (the line itself) to 2; 1 suits training.
        squeeze: how many times the line was narrowed before; sideways changes are made smaller by it.

    Returns:
        uint8 array (height, another width), no ink pushed out of it.

    Raises:
        ValueError: where the line is no 2-D uint8 array with pixels, or strength or squeeze is out of range.

    >>> line = np.full((128, 600), 255, np.uint8)
    >>> line[40:90, 100:104] = 0
    >>> augment(line, np.random.default_rng(7)).shape[0]
    128
    >>> bool((augment(line, np.random.default_rng(7), strength=0) == line).all())
    True
    """
    if not isinstance(line, np.ndarray) or line.ndim != 2 or line.dtype != np.uint8 or line.size == 0:
        got = f"{line.dtype} {line.shape}" if isinstance(line, np.ndarray) else type(line).__name__
        raise ValueError(f"the line to augment is {got}; give a uint8 array (height, width), paper 255")
    if not 0 <= strength <= 2 or not squeeze >= 1:
        raise ValueError(f"strength {strength} or squeeze {squeeze} is out of range: 0 to 2, and 1 or more")
    if strength == 0:
        return line.copy()
    dark = line[line < 128]
    grey = dark.size == 0 or (dark > 24).mean() > 0.3  # half-tones inside the strokes, not only along their edges
    if rng.random() < 0.9:
        line = _reshape(line, rng, strength, squeeze)
    ink = (PAPER - line).astype(np.float32)
    strokes = ink > 100
    if rng.random() < 0.5:
        ink = _thicken(ink, rng.uniform(-0.6, 1) * min(strength, 1), squeeze)
    if rng.random() < (0.4 if grey else 0.8):
        sigma = strength * ink.shape[0] * rng.uniform(0.003, 0.009)
        ink = cv2.GaussianBlur(ink, (0, 0), sigmaX=sigma / squeeze, sigmaY=sigma)
    if rng.random() < (0.5 if grey else 0.8):
        ink *= 1 - 0.3 * strength * _smooth(ink.shape, rng, pitch=12) * rng.random()
    if rng.random() < 0.5:
        peak = PAPER * (1 - 0.17 * strength * rng.random())
        ink = peak * cv2.pow(ink / PAPER, 2.0 ** (strength * rng.uniform(-0.7, 0.4)))
    if strokes.any():
        ink *= max(1, FAINTEST / ink[strokes].mean())  # a hairline that was thinned and blurred stays legible
    if rng.random() < (0.3 if grey else 0.6):
        grain = rng.standard_normal(ink.shape, dtype=np.float32) * np.float32(strength * rng.uniform(1, 10))
        ink += grain + _smooth(ink.shape, rng, pitch=48) * np.float32(strength * rng.uniform(0, 24))
    return (PAPER - np.clip(ink, 0, PAPER)).astype(np.uint8)


def render_strokes(strokes, rng: np.random.Generator, height: int = 128) -> np.ndarray:
    """Draw pen strokes as a line of ink on paper, cropped as tightly as the lines of IAM.

    Pen width (2 to 5 pixels at 128), pressure, tremor and ink vary from line to line; a line that climbs or falls is
    levelled first. Strokes of one point are drawn as dots. The stroke format is that of IAM-OnDB (Liwicki & Bunke,
    2005) and of a drawing pad. Chapter 2 teaches it: notebooks/02_prepare_the_images.ipynb.

    Arguments:
        strokes: pen-down strokes in writing order, each flat x0, y0, x1, y1, ... in any unit, y downwards.
        rng: the source of chance; a generator of the same seed draws the same line.
        height: of the line in pixels.

    Returns:
        uint8 array (height, width), paper 255, anti-aliased; at least as wide as high: also a single "I" is a line.

    Raises:
        ValueError: where there is no stroke, or one is empty, of odd length, not finite or absurdly far out.

    >>> render_strokes([[0, 0, 0, 100], [50, 50, 120, 50], [130, 98]], np.random.default_rng(1)).shape[0]
    128
    """
    if not isinstance(strokes, list | tuple | np.ndarray) or len(strokes) == 0:
        raise ValueError(f"no strokes to render in {strokes!r}: give a list of them, each flat, x0, y0, x1, y1, ...")
    strokes = _level([_points(stroke, k) for k, stroke in enumerate(strokes)])
    points = np.vstack(strokes)
    low, span = points.min(0), np.ptp(points, axis=0)
    pen = height / 128 * rng.uniform(2.4, 5)
    margin = pen / 2 + height * rng.uniform(0.01, 0.03)
    inner = height - 2 * margin
    # A dash has no height to scale by: its length bounds the scale; a dot keeps its size.
    scale = min(inner / max(span[1], 1e-6), LONGEST * inner / max(span[0], 1e-6)) if span.any() else 1.0
    width = max(1, int(np.ceil(span[0] * scale + 2 * margin)))
    offset = np.array([margin, (height - span[1] * scale) / 2])
    fine = 3  # drawn three times as large and reduced: OpenCV's pen widths are whole pixels
    canvas = np.zeros((height * fine, width * fine), np.uint8)
    tremor, shift = rng.uniform(0, 0.006) * height, 4
    for stroke in strokes:
        path = (stroke - low) * scale + offset + tremor * _wander(len(stroke), rng)
        widths = np.maximum(2, fine * pen * (1 + 0.3 * _wander(len(stroke), rng)[:, 0])).round().astype(int)
        path = (path * fine * 2**shift).round().astype(int).tolist()
        for begin, end, thickness in zip(path, [*path[1:], path[-1]], widths.tolist(), strict=True):
            cv2.line(canvas, begin, end, PAPER, thickness, cv2.LINE_AA, shift)
    ink = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    ink *= rng.uniform(0.8, 1) * (1 - rng.uniform(0, 0.4) * _smooth(ink.shape, rng, pitch=12))
    line = (PAPER - ink).astype(np.uint8)
    return np.pad(line, ((0, 0), (0, max(0, height - width))), constant_values=PAPER)


def _reshape(line: np.ndarray, rng: np.random.Generator, strength: float, squeeze: float) -> np.ndarray:
    """Slant, scale, rotate, place and warp in a single remap, the frame widened so that no ink leaves it."""
    height, width = line.shape
    slant = strength * float(np.clip(rng.normal(0, 0.2), -0.45, 0.45)) / squeeze
    rise = strength * rng.uniform(-0.06, 0.06) * height  # of the baseline, from end to end
    wide = 1 + strength * rng.uniform(-0.18, 0.18)
    tall = 1 - strength * rng.uniform(0, 0.18)
    # Waves from the size of a stroke to that of a letter; the longer, the farther they may push.
    pitch = int(rng.choice([12, 16, 24, 40]))
    wave = strength * height * pitch / 128 * rng.uniform(0.03, 0.15) if rng.random() < 0.7 else 0.0
    room = abs(slant) * height / 2 + wave / squeeze
    tall = min(tall, (height - 2 * wave) / (height + abs(rise)))
    place = (height - tall * (height + abs(rise)) - 2 * wave) * rng.uniform(-0.5, 0.5)
    new_width = max(8, round(width * wide + 2 * room))
    x = np.arange(new_width, dtype=np.float32)[None] - new_width / 2
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(height / 2 + place)
    map_x = (x - np.float32(slant) * y) / np.float32(wide) + np.float32(width / 2)
    map_y = (y - x * np.float32(rise / new_width)) / np.float32(tall) + np.float32(height / 2)
    if wave:
        map_x += _smooth(line.shape, rng, pitch, new_width, centred=True) * np.float32(wave / squeeze)
        map_y += _smooth(line.shape, rng, pitch, new_width, centred=True) * np.float32(wave)
    return cv2.remap(line, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=PAPER)


def _smooth(shape, rng: np.random.Generator, pitch: int, width: int | None = None, centred: bool = False) -> np.ndarray:
    """A smooth random field, 0 to 1 or, centred, -1 to 1; pitch is its wavelength in 128ths of the height."""
    height, width = shape[0], width or shape[1]
    cell = max(1.0, height * pitch / 128)
    coarse = rng.uniform(-1 if centred else 0, 1, (int(height / cell) + 3, int(width / cell) + 3)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def _thicken(ink: np.ndarray, amount: float, squeeze: float) -> np.ndarray:
    """Grow (amount above 0) or thin strokes by parts of a pixel; the blend leaves the thinnest half of its ink."""
    change = cv2.dilate if amount > 0 else cv2.erode
    for kernel, part in ((np.ones((3, 1), np.uint8), abs(amount)), (np.ones((1, 3), np.uint8), abs(amount) / squeeze)):
        share = part if amount > 0 else part / 2
        ink = cv2.addWeighted(ink, 1 - share, change(ink, kernel), share, 0)
    return ink


def _points(stroke, k: int) -> np.ndarray:
    """A flat stroke as float points (n, 2), refused with its number where it is none."""
    try:
        flat = np.asarray(stroke, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"stroke {k} is not a flat list of numbers x0, y0, x1, y1, ...: {error}") from error
    if flat.ndim != 1 or flat.size == 0 or flat.size % 2:
        raise ValueError(f"stroke {k} has shape {flat.shape}; it must be flat, x0, y0, x1, y1, ..., and not empty")
    if not np.isfinite(flat).all() or np.abs(flat).max() > FARTHEST:
        raise ValueError(f"stroke {k} has a coordinate that is not finite or beyond {FARTHEST:,}; record it anew")
    return flat.reshape(-1, 2)


def _level(strokes: list[np.ndarray]) -> list[np.ndarray]:
    """Take out the slope of a line that drifts, as far as its length lets one tell slope from letters."""
    points = np.vstack(strokes)
    x, y = (points - points.mean(0)).T
    if np.ptp(x) < 3 * np.ptp(y) or not x.any():
        return strokes
    slope = float(np.clip((x @ y) / (x @ x), -0.12, 0.12))
    return [stroke - [0, slope] * stroke[:, :1] for stroke in strokes]


def _wander(count: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random offsets (count, 2), about -1 to 1, along a stroke."""
    steps = rng.standard_normal((count // 5 + 2, 2)).clip(-1.5, 1.5)
    at = np.linspace(0, len(steps) - 1, count)
    return np.stack([np.interp(at, np.arange(len(steps)), steps[:, axis]) for axis in (0, 1)], axis=1)
