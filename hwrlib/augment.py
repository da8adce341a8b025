"""One line, many hands: shape, ink and paper varied for training (chapter 2)."""

import cv2
import numpy as np

PAPER = 255


def augment(line: np.ndarray, rng: np.random.Generator, strength: float = 1, width_divisor: float = 1) -> np.ndarray:
    """The line as another pen, hand, sheet and scanner might have made it.

    What shape, look and hidden parts buy: Wigington et al. (2017). A ValueError refuses another line or strength.

    Arguments:
        line: uint8 (height, width), paper 255, ink near 0: a prepared line.
        strength: 0 (the line itself) to 2; 1 suits training.
        width_divisor: how many times the line was narrowed before; sideways changes are made smaller by it.
    """
    if line.dtype != np.uint8 or line.ndim != 2 or not 0 <= strength <= 2:
        raise ValueError(f"a uint8 line (height, width) and a strength of 0 to 2, not {line.dtype} and {strength}")
    if strength == 0:
        return line.copy()
    line = vary(line, rng, strength, width_divisor)
    if rng.random() < 0.5:
        occlude(line, rng, strength, width_divisor)
    return line


def vary(line: np.ndarray, rng: np.random.Generator, strength: float, width_divisor: float = 1.0) -> np.ndarray:
    """Another shape and look; no ink leaves the line, whose width changes, and nothing of it is hidden.

    Shape: slant, width, height, position, a slight rotation and an elastic distortion (Simard et al., 2003). Look:
    stroke thickness, ink that varies, gamma, blur and paper; a 1-bit scan often comes out like a grey one.
    """
    dark = line[line < 128]
    grey = dark.size == 0 or (dark > 24).mean() > 0.3  # half-tones inside the strokes, not only along their edges
    if rng.random() < 0.9:
        line = _reshape(line, rng, strength, width_divisor)
    ink = (PAPER - line).astype(np.float32)
    strokes = ink > 100
    if rng.random() < 0.5:
        ink = _thicken(ink, rng.uniform(-0.6, 1) * min(strength, 1), width_divisor)
    if rng.random() < (0.4 if grey else 0.8):
        sigma = strength * ink.shape[0] * rng.uniform(0.003, 0.009)
        ink = cv2.GaussianBlur(ink, (0, 0), sigmaX=sigma / width_divisor, sigmaY=sigma)
    if rng.random() < (0.5 if grey else 0.8):
        ink *= 1 - 0.3 * strength * smooth_field(ink.shape, rng, pitch=12) * rng.random()
    if rng.random() < 0.5:
        peak = PAPER * (1 - 0.17 * strength * rng.random())
        curve = peak * (np.arange(256) / PAPER) ** (2.0 ** (strength * rng.uniform(-0.7, 0.4)))
        ink = cv2.LUT((ink + 0.5).astype(np.uint8), curve.astype(np.float32))
    if strokes.any():
        ink *= max(1, 90 / ink[strokes].mean())  # a hairline that was thinned and blurred stays legible
    if rng.random() < (0.3 if grey else 0.6):
        grain = (rng.random(ink.shape, dtype=np.float32) - np.float32(0.5)) * np.float32(strength * rng.uniform(3, 35))
        ink += grain + smooth_field(ink.shape, rng, pitch=48) * np.float32(strength * rng.uniform(0, 24))
    return (PAPER - np.clip(ink, 0, PAPER)).astype(np.uint8)


def _reshape(line: np.ndarray, rng: np.random.Generator, strength: float, width_divisor: float) -> np.ndarray:
    """Slant, scale, rotate, place and warp in a single remap, the frame widened so that no ink leaves it."""
    height, width = line.shape
    slant = strength * float(np.clip(rng.normal(0, 0.2), -0.45, 0.45)) / width_divisor
    rise = strength * rng.uniform(-0.06, 0.06) * height  # of the baseline, from end to end
    wide = 1 + strength * rng.uniform(-0.18, 0.18)
    tall = 1 - strength * rng.uniform(0, 0.18)
    pitch = int(rng.choice([12, 16, 24, 40]))  # waves from the size of a stroke to that of a letter
    wave = strength * height * pitch / 128 * rng.uniform(0.03, 0.15) if rng.random() < 0.7 else 0.0
    room = abs(slant) * height / 2 + wave / width_divisor
    tall = min(tall, (height - 2 * wave) / (height + abs(rise)))
    place = (height - tall * (height + abs(rise)) - 2 * wave) * rng.uniform(-0.5, 0.5)
    new_width = max(8, round(width * wide + 2 * room))
    x = np.arange(new_width, dtype=np.float32)[None] - new_width / 2
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(height / 2 + place)
    map_x = (x - np.float32(slant) * y) / np.float32(wide) + np.float32(width / 2)
    map_y = (y - x * np.float32(rise / new_width)) / np.float32(tall) + np.float32(height / 2)
    if wave:
        map_x += smooth_field((height, new_width), rng, pitch, True) * np.float32(wave / width_divisor)
        map_y += smooth_field((height, new_width), rng, pitch, True) * np.float32(wave)
    return cv2.remap(line, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=PAPER)


def smooth_field(shape: tuple[int, int], rng: np.random.Generator, pitch: int, centred: bool = False) -> np.ndarray:
    """A smooth random field, 0 to 1 or, centred, -1 to 1; pitch is its wavelength in 128ths of the height."""
    height, width = shape
    cell = max(1.0, height * pitch / 128)
    coarse = rng.uniform(-1 if centred else 0, 1, (int(height / cell) + 3, int(width / cell) + 3)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def _thicken(ink: np.ndarray, amount: float, width_divisor: float) -> np.ndarray:
    """Grow (amount above 0) or thin strokes by parts of a pixel; the blend leaves the thinnest half of its ink."""
    change = cv2.dilate if amount > 0 else cv2.erode
    for shape, part in (((3, 1), abs(amount)), ((1, 3), abs(amount) / width_divisor)):
        share = part if amount > 0 else part / 2
        ink = cv2.addWeighted(ink, 1 - share, change(ink, np.ones(shape, np.uint8)), share, 0)
    return ink


def occlude(line: np.ndarray, rng: np.random.Generator, strength: float, width_divisor: float = 1.0) -> None:
    """Hide a few narrow spans under paper, and drop blots of ink, in place: neighbours must tell what is hidden."""
    height, width = line.shape
    count = strength * width_divisor * width / (8 * height)
    for _ in range(rng.poisson(count)):
        span = max(2, round(height * rng.uniform(0.05, 0.35) / width_divisor))
        begin = int(rng.integers(max(1, width - span)))
        line[:, begin : begin + span] = PAPER
    for _ in range(rng.poisson(count)):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        radius = height * rng.uniform(0.01, 0.07)
        axes = (max(1, round(radius * rng.uniform(0.6, 2) / width_divisor)), max(1, round(radius)))
        cv2.ellipse(line, centre, axes, 0, 0, 360, PAPER - rng.uniform(120, PAPER), cv2.FILLED, cv2.LINE_AA)
