"""From the picture of a page to its ink alone, made level: what the lines are sought in (chapter 7).

On a reduced scale a closing finds the paper's brightness, so that uneven light is divided out; Otsu's threshold (1979)
parts ink from paper; the angle of the sharpest row profile makes the page level (Postl, 1986); long thin runs are
rulings and go, but for the strokes that cross them.
"""

from typing import NamedTuple

import cv2
import numpy as np

FAINT = 12  # grey levels under the paper: less is no ink, as in images.stretch
PAPER = 41  # px of the reduced scale: wider than any stroke
SHEET = 6  # the sheet's border is sought on a picture so many times smaller again
SQUARE = np.ones((3, 3), np.uint8)


class Level(NamedTuple):
    """The page's ink made level, on the reduced scale, and how that lies on the page."""

    ink: np.ndarray  # bool (H, W)
    hidden: np.ndarray  # uint8 (H, W): 1 where ink, rulings or a desk are
    stroke: float  # the pen's width in pixels
    ruled: float  # 0 to 1: the share of what is dark that is rulings
    page: np.ndarray  # uint8, full size, dark on light
    paper: np.ndarray  # uint8: the brightness of its paper, on the reduced scale, not rotated
    scale: float
    back: np.ndarray  # (2, 3): from places in `ink` to places in `paper`

    def has_margins(self) -> bool:
        """Whether much paper is both above and below the levelled ink; a tilted line has it, too."""
        rows, height = np.flatnonzero(self.ink.any(axis=1)), self.paper.shape[0]
        added = (self.ink.shape[0] - height) / 2  # rows that the rotation added above, and as many below
        return min(rows[0], self.ink.shape[0] - 1 - rows[-1]) - added > height / 8  # IAM's: 0.07 at most

    def on_page(self, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        """(x, y) on the page of N places in `ink`, (N, 2)."""
        return (np.stack([xs, ys, np.ones(len(xs))]).T @ self.back.T + 0.5) / self.scale


def level_ink(page: np.ndarray) -> Level | None:
    """The ink of a page, uint8 (H, W), tilted by up to 15 degrees, made level; None where no writing can be."""
    scale = min(1.0, (1_500_000 / page.size) ** 0.5)  # a page of 40 lines still has 35 rows a line
    if min(page.shape) * scale < 8:
        return None
    small = page if scale == 1 else cv2.resize(page, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if is_negative(small):
        page, small = 255 - page, 255 - small
    contrast, paper, sheet = contrast_to_paper(small)
    faint, strong = thresholds(contrast)
    if not 0 < (contrast > strong).mean() < 0.3:  # with more ink it is no page of writing
        return None
    matrix, size = rotation(contrast.shape, find_skew(contrast > strong))
    contrast, sheet = (cv2.warpAffine(picture, matrix, size) for picture in (contrast, sheet))
    ink, marks = contrast > strong, contrast > faint
    area, inner = np.count_nonzero(ink), np.count_nonzero(cv2.erode(ink.astype(np.uint8), SQUARE))
    stroke = 2 * area / max(1, area - inner)  # twice the area over the outline
    rulings = find_rulings(marks.astype(np.uint8), stroke)
    if rulings.any() and (ink & ~rulings).any():
        printed, written = (np.median(contrast[part]) for part in (rulings, ink & ~rulings))
        if written > printed + 2 * FAINT:  # where a ruling is darker than printed, a stroke runs along it
            rulings &= contrast <= (2 * printed + written) / 3
    ink &= ~rulings
    if not ink.any():
        return None
    hidden = (ink | rulings | (sheet == 0)).astype(np.uint8)
    ruled = np.count_nonzero(rulings) / np.count_nonzero(marks)
    return Level(ink, hidden, stroke, ruled, page, paper, scale, cv2.invertAffineTransform(matrix))


def is_negative(grey: np.ndarray) -> bool:
    """Whether the writing is white on black: of what stands out from its surroundings, ink is the smaller part."""
    if np.median(grey) > np.percentile(grey, (1, 99)).mean():  # most of the picture is light: that is paper
        return False
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    around = np.ones((PAPER // 2, PAPER // 2), np.uint8)
    dark, light = (cv2.morphologyEx(half, hat, around) > 2 * FAINT for hat in (cv2.MORPH_BLACKHAT, cv2.MORPH_TOPHAT))
    return 0 < np.count_nonzero(light) < np.count_nonzero(dark)


def contrast_to_paper(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much darker than its paper each pixel is (255 = black), the paper's own brightness, and the sheet's mask."""
    smooth = cv2.medianBlur(grey, 3)
    paper = cv2.morphologyEx(smooth, cv2.MORPH_CLOSE, np.ones((PAPER, PAPER), np.uint8))
    depth = cv2.subtract(paper, smooth)
    contrast = cv2.divide(depth, paper, scale=255)
    sheet = find_sheet(paper)
    contrast[(depth < FAINT) | (sheet == 0)] = 0
    if not sheet.all():
        paper[sheet == 0] = np.median(paper[sheet > 0])
    return contrast, paper, sheet


def find_sheet(paper: np.ndarray) -> np.ndarray:
    """255 on the sheet, 0 on a dark desk around it: what reaches the picture's border and is sharply darker."""
    small = cv2.resize(paper, None, fx=1 / SHEET, fy=1 / SHEET, interpolation=cv2.INTER_AREA)
    small = np.maximum(cv2.medianBlur(small, 5), 1)
    edge = cv2.dilate(small, SQUARE) > 1.5 * cv2.erode(small, SQUARE)
    count, regions, stats, _ = cv2.connectedComponentsWithStats((~edge).astype(np.uint8), connectivity=4)
    beside = cv2.dilate(edge.astype(np.uint8), SQUARE) > 0
    fall = cv2.dilate(small, np.ones((9, 9), np.uint8)) / small
    frame = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    falls = {r: fall[beside & (regions == r)] for r in set(frame.tolist()) - {0}}
    desk = [r for r in falls if falls[r].size and np.median(falls[r]) > 2.2]  # shadows are softer or brighter
    bright = [r for r in range(1, count) if r not in desk and stats[r, cv2.CC_STAT_AREA] > 0.03 * small.size]
    sheet = np.full(small.shape, 255, np.uint8)
    if desk and bright:
        points = cv2.findNonZero(np.isin(regions, bright).astype(np.uint8))
        sheet = cv2.fillConvexPoly(np.zeros_like(sheet), cv2.convexHull(points), 255)
    return cv2.resize(sheet, paper.shape[::-1], interpolation=cv2.INTER_NEAREST)


def thresholds(contrast: np.ndarray) -> tuple[float, float]:
    """The contrast above the paper's noise, and Otsu's between ink and what is fainter; 255 where nothing is dark."""
    dark = contrast[contrast > 0]
    noise = 1.5 * float(np.median(dark)) if dark.size > contrast.size / 2 else 0.0
    faint = max(20.0, 4 * noise)
    seen = dark[dark > faint].reshape(1, -1)
    return faint, cv2.threshold(seen, 0, 255, cv2.THRESH_OTSU)[0] if seen.size else 255


def find_skew(ink: np.ndarray) -> float:
    """The angle in degrees at which the row profile of the ink is sharpest; level where it matters little."""
    ys, xs = np.nonzero(ink)
    step = max(1, len(xs) // 20_000)
    xs, ys = xs[::step] - ink.shape[1] / 2, ys[::step]

    def sharpness(angle: float) -> float:
        rows = (ys - xs * np.tan(np.radians(angle)) + ink.shape[1]) / 2
        profile = np.bincount(rows.astype(int)).astype(float)
        return (np.diff(profile) ** 2).sum() * (1 - 0.02 * abs(angle))

    best = max(np.arange(-15, 15.01, 0.5), key=sharpness)
    return float(max(best + np.arange(-0.4, 0.41, 0.1), key=sharpness))


def rotation(shape: tuple[int, int], angle: float) -> tuple[np.ndarray, tuple[int, int]]:
    """The matrix that rotates a picture (H, W) by an angle in degrees, and the (width, height) that holds all of it."""
    rows, columns = shape
    matrix = cv2.getRotationMatrix2D((columns / 2, rows / 2), angle, 1)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    size = int(np.ceil(columns * cos + rows * sin)), int(np.ceil(columns * sin + rows * cos))
    matrix[:, 2] += (size[0] - columns) / 2, (size[1] - rows) / 2
    return matrix, size


def find_rulings(marks: np.ndarray, stroke: float) -> np.ndarray:
    """The mask of printed rulings, across and down, without the strokes that cross them."""
    across, bars = long_runs(marks, stroke)
    down, posts = (runs.T for runs in long_runs(np.ascontiguousarray(marks.T), stroke))
    rulings = (bars | posts) > 0
    for run, other, axis in ((across, down, 0), (down, across, 1)):
        starts = np.count_nonzero(np.diff(run, axis=axis) == 1)
        if starts:
            beyond = round(int(run.sum()) / starts) + 3  # px: longer than a ruling is thick
            shape = (beyond, 1) if axis == 0 else (1, beyond)
            crossing = cv2.morphologyEx(marks & (1 - other), cv2.MORPH_OPEN, np.ones(shape, np.uint8))
            rulings |= (run & (1 - crossing)) > 0
    return rulings


def long_runs(marks: np.ndarray, stroke: float) -> list[np.ndarray]:
    """Thin marks across a good part of the page, leaning by two pixels in forty at most; the thickest by themselves."""
    length = int(max(40, 12 * stroke))
    run = cv2.morphologyEx(cv2.dilate(marks, SQUARE[:, :1]), cv2.MORPH_OPEN, np.ones((1, length), np.uint8))
    run = cv2.morphologyEx(run, cv2.MORPH_CLOSE, np.ones((1, length), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(run)
    width, area = stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_AREA]
    keep = (width > max(0.3 * marks.shape[1], 40 * stroke)) & (area < 12 * stroke * width)
    keep[0] = False
    thick = keep & (area / width > 1.5 * np.median((area / width)[keep])) if keep.any() else keep
    return [chosen[labels].astype(np.uint8) & marks for chosen in (keep & ~thick, thick)]


def estimate_x_height(ink: np.ndarray) -> int:
    """Rows after which the row profile of narrow strips no longer resembles itself: about the height of an x."""
    strips = max(1, round(ink.shape[1] / 80))
    profile = cv2.resize(ink.astype(np.float32), (strips, ink.shape[0]), interpolation=cv2.INTER_AREA)
    profile -= profile.mean(axis=0)
    power = np.abs(np.fft.rfft(profile, 2 * len(profile), axis=0)) ** 2
    likeness = np.fft.irfft(power.sum(axis=1))[: len(profile)]
    return max(4, int(np.argmax(likeness < 0.05 * likeness[0])))


def spread(seeds: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Let the numbered seeds spread evenly over the mask until it is full."""
    while True:
        wider = np.where(mask & (seeds == 0), cv2.dilate(seeds, SQUARE), seeds)
        if np.array_equal(wider, seeds):
            return seeds
        seeds = wider


def baseline_row(rows: np.ndarray) -> float:
    """The row on which a line's letters stand, of the rows of its ink's pixels: their profile falls most there."""
    profile = np.bincount((rows - rows.min()).astype(int))
    width = max(1, len(profile) // 8)
    fall = np.convolve(profile, np.repeat([-1, 1], width))  # so many rows above less as many below
    return float(rows.min() + fall.argmax() - width + 1)


def is_written(mask: np.ndarray, x_height: int, stroke: float) -> bool:
    """Whether this ink is enough for a letter: a stray dot or dash is not."""
    rows = np.flatnonzero(mask.any(axis=1))
    return len(rows) > 0 and np.ptp(rows) >= 0.7 * x_height and np.count_nonzero(mask) >= 1.2 * x_height * stroke
