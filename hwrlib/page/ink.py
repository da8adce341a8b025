"""The ink of a page near its baselines, made level, without rulings: what lines are cut from (chapter 7).

On a scale on which an x has at most 40 pixels, a closing finds the paper's brightness, so that uneven light is divided
out; Otsu's threshold (1979) parts ink from paper; long thin runs are rulings and go, but for the strokes across them.
"""

from typing import NamedTuple

import cv2
import numpy as np

from hwrlib.page.baselines import Baseline, weighted_median

FAINT = 12  # grey levels under the paper: less is no ink, as in images.stretch
X_HEIGHT = 40  # px of the reduced scale at most
WINDOW = 41  # px of the reduced scale: wider than any stroke
ABOVE, BELOW, BEYOND = 3.2, 2.6, 4  # x-heights around a baseline within which its ink is
HIGHEST, LOWEST = 5, 4  # how far a stroke that touches its small letters may reach: a large capital, a long loop
SQUARE = np.ones((3, 3), np.uint8)


class Level(NamedTuple):
    """The page's ink made level, on the reduced scale, and how that lies on the page."""

    ink: np.ndarray  # bool (H, W)
    hidden: np.ndarray  # uint8 (H, W): 1 where ink or rulings are
    stroke: float  # the pen's width in pixels
    ruled: float  # 0 to 1: the share of what is dark that is rulings
    lines: list[Baseline]  # their places in `ink`
    page: np.ndarray  # uint8, full size, dark on light
    paper: np.ndarray  # uint8: the brightness of its paper, on the reduced scale, not rotated
    scale: float
    back: np.ndarray  # (2, 3): from places in `ink` to places in `paper`

    def on_page(self, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        """(x, y) on the page, and within it, of N places in `ink`, (N, 2)."""
        places = (np.stack([xs, ys, np.ones(len(xs))]).T @ self.back.T + 0.5) / self.scale
        return places.clip(0, self.page.shape[::-1])


def level_ink(page: np.ndarray, lines: list[Baseline]) -> Level:
    """The ink of a page, uint8 (H, W), near these baselines, made level by their usual angle."""
    x_height = float(np.median([line.x_height for line in lines]))
    scale = min(1.0, (1_500_000 / page.size) ** 0.5, X_HEIGHT / x_height)
    small = cv2.resize(page, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    matrix, size = rotation(small.shape, lines)
    lines = [moved(line, matrix, scale) for line in lines]
    if is_negative(cv2.warpAffine(small, matrix, size, borderMode=cv2.BORDER_REPLICATE), lines):
        page, small = 255 - page, 255 - small
    contrast, paper = contrast_to_paper(small)
    contrast, sharp = (cv2.warpAffine(part, matrix, size) for part in (contrast, weber_contrast(small, paper)))
    dark = contrast[contrast > 0]
    noise = 1.5 * float(np.median(dark)) if dark.size > contrast.size / 2 else 0.0
    faint = max(20.0, 4 * noise)  # above the paper's noise
    marks, specked = ((part > faint).astype(np.uint8) for part in (contrast, sharp))
    ink = contrast > thresholds(contrast, faint, lines)
    area, inner = (np.count_nonzero(part) for part in (ink, cv2.erode(ink.astype(np.uint8), SQUARE)))
    stroke = 2 * area / max(1, area - inner)  # twice the area over the outline
    rulings, junctions = find_rulings(marks, stroke)
    thin, thin_junctions = find_rulings(specked, stroke)  # one pixel thick, they went with the specks
    thin &= cv2.dilate(rulings.astype(np.uint8), SQUARE) == 0  # what is beside a ruling is its own edge
    rulings, junctions = rulings | thin | thin_junctions, junctions | thin_junctions
    if rulings.any():
        whole, printed = fill_rulings(rulings), np.percentile(contrast[rulings], 75)
        beside = np.where(whole, 0, contrast)
        pale, rest = beside > thresholds(beside, faint, lines), ink & ~rulings
        if pale.any() and np.median(contrast[pale]) + 2 * FAINT < printed:
            ink, rulings = pale, whole  # where pale writing crosses a ruling, only the ruling is seen
        elif rest.any() and (written := np.median(contrast[rest])) > printed + 2 * FAINT:
            # A junction is darker than either ruling; on few of them is ink.
            level = np.where(junctions, np.percentile(contrast[junctions], 90) if junctions.any() else 0, printed)
            rulings &= contrast <= level + (written - printed) / 3  # where it is darker, a stroke runs along it
    ink &= ~rulings
    ruled = np.count_nonzero(rulings) / max(1, np.count_nonzero(marks | rulings))
    hidden = (ink | rulings).astype(np.uint8)
    return Level(ink, hidden, stroke, ruled, lines, page, paper, scale, cv2.invertAffineTransform(matrix))


def rotation(shape: tuple[int, int], lines: list[Baseline]) -> tuple[np.ndarray, tuple[int, int]]:
    """The matrix that makes the lines of a picture (H, W) level, and the (width, height) that then holds all of it."""
    widths = [np.ptp(line.xs) for line in lines]
    rises = [np.arctan2(line.ys[-1] - line.ys[0], width) for line, width in zip(lines, widths, strict=True)]
    rows, columns = shape
    matrix = cv2.getRotationMatrix2D((columns / 2, rows / 2), float(np.degrees(weighted_median(rises, widths))), 1)
    cos, sin = np.abs(matrix[0, :2])
    size = int(np.ceil(columns * cos + rows * sin)), int(np.ceil(columns * sin + rows * cos))
    matrix[:, 2] += (size[0] - columns) / 2, (size[1] - rows) / 2
    return matrix, size


def moved(line: Baseline, matrix: np.ndarray, scale: float) -> Baseline:
    """A baseline scaled, then rotated."""
    xs, ys = matrix @ np.stack([line.xs * scale - 0.5, line.ys * scale - 0.5, np.ones(len(line.xs))])
    order = np.argsort(xs, kind="stable")
    return line._replace(xs=xs[order], ys=ys[order], x_height=line.x_height * scale)


def is_negative(level: np.ndarray, lines: list[Baseline]) -> bool:
    """Whether the writing is light on dark: most of a line is paper, so the median is on the paper's side.

    This is asked of pieces of a line: where a shadow covers half of it, the median of the whole says nothing.
    """
    lean, (height, width) = 0.0, level.shape
    for line in lines:
        rows = line.ys + np.linspace(-1.0, 0.1, 12)[:, None] * line.x_height
        grey = level[rows.clip(0, height - 1).astype(int), line.xs.clip(0, width - 1).astype(int)]
        for piece in np.array_split(grey, max(1, round(np.ptp(line.xs) / (4 * line.x_height))), axis=1):
            lean += (np.median(piece) - np.percentile(piece, (1, 99)).mean()) * piece.shape[1]
    return lean < 0


def contrast_to_paper(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much darker than its paper each pixel is (255 = black), but for specks, and the paper's own brightness."""
    smooth = cv2.medianBlur(grey, 3)
    paper = cv2.morphologyEx(smooth, cv2.MORPH_CLOSE, np.ones((WINDOW, WINDOW), np.uint8))
    return weber_contrast(smooth, paper), paper


def weber_contrast(grey: np.ndarray, paper: np.ndarray) -> np.ndarray:
    """(paper - grey) / paper of each pixel, as 0 to 255 = black, uint8; 0 where it is hardly darker than its paper."""
    depth = cv2.subtract(paper, grey)
    contrast = cv2.divide(depth, paper, scale=255)
    contrast[depth < FAINT] = 0
    return contrast


def thresholds(contrast: np.ndarray, faint: float, lines: list[Baseline]) -> np.ndarray:
    """The contrast that ink has, uint8 (H, W): Otsu's of each line around it, 255 where no line is near."""
    strong = np.full_like(contrast, 255)
    for line in lines:
        letters, around = (band(line, *reach, contrast.shape) for reach in ((1.5, 0.6, 0), (HIGHEST, LOWEST, BEYOND)))
        seen = contrast[letters][contrast[letters] > faint].reshape(1, -1)
        if seen.size:
            strong[around] = np.minimum(strong[around], cv2.threshold(seen, 0, 255, cv2.THRESH_OTSU)[0])
    return strong


def band(line: Baseline, above: float, below: float, beside: float, shape: tuple[int, int]) -> np.ndarray:
    """The pixels that are so many x-heights around a baseline: bool (H, W)."""
    xs = np.concatenate([line.xs[:1] - beside * line.x_height, line.xs, line.xs[-1:] + beside * line.x_height])
    ys = np.concatenate([line.ys[:1], line.ys, line.ys[-1:]])
    edge = [np.stack([xs, ys - above * line.x_height], 1), np.stack([xs, ys + below * line.x_height], 1)[::-1]]
    return cv2.fillPoly(np.zeros(shape, np.uint8), [np.round(np.concatenate(edge)).astype(np.int32)], 1) > 0


def find_rulings(marks: np.ndarray, stroke: float) -> tuple[np.ndarray, np.ndarray]:
    """The masks of printed rulings, across and down, without the strokes that cross them, and of where they meet."""
    across, bars = long_runs(marks, stroke)
    down, posts = (runs.T for runs in long_runs(np.ascontiguousarray(marks.T), stroke))
    rulings, junctions = (bars | posts) > 0, cv2.dilate(across & down, SQUARE) > 0
    for run, other, axis in ((across, down, 0), (down, across, 1)):
        starts = np.count_nonzero(np.diff(run, axis=axis) == 1)
        if starts:
            beyond = round(int(run.sum()) / starts) + 3  # px: longer than a ruling is thick
            shape = (beyond, 1) if axis == 0 else (1, beyond)
            crossing = cv2.morphologyEx(marks & (1 - other), cv2.MORPH_OPEN, np.ones(shape, np.uint8))
            rulings |= (run & (1 - crossing)) > 0
    return rulings, rulings & junctions


def fill_rulings(rulings: np.ndarray) -> np.ndarray:
    """The mask of rulings; those across are filled where strokes cross them and had interrupted the mask."""
    pieces = cv2.morphologyEx(rulings.astype(np.uint8), cv2.MORPH_OPEN, np.ones((1, 12), np.uint8))  # px: none down
    return rulings | (cv2.morphologyEx(pieces, cv2.MORPH_CLOSE, np.ones((3, 2 * X_HEIGHT), np.uint8)) > 0)


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


def baseline_row(rows: np.ndarray) -> float:
    """The row on which a line's letters stand, of the rows of its ink's pixels: their profile falls most there."""
    profile = np.bincount((rows - rows.min()).astype(int))
    width = max(1, len(profile) // 8)
    fall = np.convolve(profile, np.repeat([-1, 1], width))  # so many rows above less as many below
    return float(rows.min() + fall.argmax() - width + 1)
