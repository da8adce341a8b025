"""Find the lines of handwriting on a page: one levelled crop each, in reading order (chapter 7).

A small network marks the baselines (``maps``, ``baselines``); each connected piece of ink near them goes to its line, a
piece that touches two lines is split, and each line is cut out along its baseline, so that a curved one is straight.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.polynomial import Polynomial
from PIL import Image

from hwrlib.images import LONGEST, load_page
from hwrlib.page.baselines import Baseline, find_baselines
from hwrlib.page.ink import ABOVE, BELOW, BEYOND, SQUARE, Level, baseline_row, level_ink, spread

NO_WRITING = "no writing was found on it; give a sharp photo or scan of dark writing on paper"
BESIDE = 1.2  # x-heights from a line's ends to its loose pieces of ink


@dataclass(frozen=True)
class PageLine:
    """One line of a page.

    Arguments:
        box: (x, y, width, height) in pixels of the page as displayed (after EXIF rotation).
        image: its crop in the page's own resolution, uint8 (H, W), levelled, dark ink on light paper, with rulings and
            the ink of its neighbours painted out.
        outline: (2, N, 2), (x, y) on the page evenly along the crop's upper and lower edge; the box where left out.
        baseline: (N, 2), (x, y) on the page, on which its letters stand; None of a picture that is a line as a whole.
    """

    box: tuple[int, int, int, int]
    image: np.ndarray
    outline: np.ndarray | None = None
    baseline: np.ndarray | None = None

    def __post_init__(self):
        if self.outline is None:
            x, y, width, height = self.box
            corners = [[(x, y), (x + width, y)], [(x, y + height), (x + width, y + height)]]
            object.__setattr__(self, "outline", np.array(corners, float))


def find_lines(page: str | Path | bytes | Image.Image | np.ndarray) -> list[PageLine]:
    """Find the lines of an upright page, in reading order."""
    page = load_page(page)
    baselines = find_baselines(page)
    return cut_lines(level_ink(page, baselines)) if baselines else []


def crop_line(picture: np.ndarray) -> PageLine | None:
    """Cut the writing out of a picture (H, W) of one line that has a margin or rulings, is tilted or taller than wide.

    None for a tight cut, which is best read as it is, and where no line is found or several on a tall picture.
    """
    baselines = find_baselines(picture)
    level = level_ink(picture, baselines) if baselines else None
    lines = [] if level is None or is_tight(level) else cut_lines(level)
    several = picture.shape[0] > picture.shape[1] and len(lines) > 1
    return None if several else max(lines, key=lambda line: line.image.size, default=None)


def is_tight(level: Level) -> bool:
    """Whether a picture of a line is cut tightly: wide, without rulings, without much paper both above and below."""
    rows, (height, width) = np.flatnonzero(assign_ink(level).any(axis=1)), level.paper.shape
    added = (len(level.ink) - height) / 2  # rows that the rotation added above, and as many below
    margin = min(rows[0], len(level.ink) - 1 - rows[-1]) - added if rows.size else 0
    return height <= width and level.ruled < 0.12 and margin < height / 8  # IAM's: 0.09 and 0.07 at most


def cut_lines(level: Level) -> list[PageLine]:
    """The lines of levelled ink, in the order of its baselines."""
    owner = assign_ink(level)
    masks = ((owner == k, line) for k, line in enumerate(level.lines, 1))
    lines = [cut(level, mask, line) for mask, line in masks if is_written(mask, line.x_height, level.stroke)]
    return [line for line in lines if line.image.shape[1] <= LONGEST * line.image.shape[0]]  # a ruling, not a line


def is_written(mask: np.ndarray, x_height: float, stroke: float) -> bool:
    """Whether this ink is enough for a letter: a stray dot or dash is not."""
    rows = np.flatnonzero(mask.any(axis=1))
    return len(rows) > 0 and np.ptp(rows) >= 0.6 * x_height and np.count_nonzero(mask) >= 1.2 * x_height * stroke


def smooth(line: Baseline) -> Polynomial:
    """The polynomial through a baseline, the longer the freer: of degree 5 at the most."""
    degree = int(np.searchsorted((6, 16, 28, 40, 50), np.ptp(line.xs) / line.x_height))
    return Polynomial.fit(line.xs, line.ys, degree)


def assign_ink(level: Level) -> np.ndarray:
    """The line of each pixel of ink, from 1; 0 = none. A piece that touches the letters of two lines is split."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(level.ink.astype(np.uint8))
    ys, xs = np.nonzero(labels)
    pieces, count = labels[ys, xs], len(stats)
    votes, away = (np.full((count, len(level.lines)), start) for start in (0.0, np.inf))
    heights = np.empty((len(level.lines), len(xs)), np.float32)  # x-heights above each baseline
    for k, line in enumerate(level.lines):
        heights[k] = (smooth(line)(np.clip(xs, line.xs[0], line.xs[-1])) - ys) / line.x_height
        aside = np.maximum(line.xs[0] - xs, xs - line.xs[-1]).clip(0) / line.x_height
        heights[k, (aside > BEYOND) | (heights[k] > ABOVE) | (heights[k] < -BELOW)] = np.nan
        near = aside <= BESIDE
        votes[:, k] = np.bincount(pieces[near & (np.abs(heights[k] - 0.5) < 0.5)], minlength=count)
        near &= ~np.isnan(heights[k])
        np.minimum.at(away[:, k], pieces[near], np.abs(heights[k, near] - 0.5) + 0.5 * aside[near])
    belongs = np.where(votes.any(axis=1), votes.argmax(axis=1), away.argmin(axis=1))
    belongs[np.isinf(away).all(axis=1)] = -1
    owner = np.zeros(labels.shape, np.uint16)
    owner[ys, xs] = belongs[pieces] + 1
    letter = np.array([line.x_height for line in level.lines]) * level.stroke  # px of ink in one upright stroke
    written = votes >= np.minimum(0.3 * votes.max(axis=1, keepdims=True), 1.5 * letter).clip(0.5 * letter)
    for piece in np.flatnonzero(written[1:].sum(axis=1) > 1) + 1:
        left, top, width, height, _ = stats[piece]
        part = slice(top, top + height), slice(left, left + width)
        mask, seeds = labels[part] == piece, np.zeros((height, width), np.uint16)
        own = np.flatnonzero(pieces == piece)
        for k in np.flatnonzero(written[piece]):
            core = own[np.abs(heights[k, own] - 0.5) < 0.5]
            seeds[ys[core] - top, xs[core] - left] = k + 1
        owner[part][mask] = spread(seeds, mask)[mask]
    beyond = np.isnan(heights[owner[ys, xs].astype(int) - 1, np.arange(len(xs))])  # a frame, a stroke of another line
    owner[ys[beyond], xs[beyond]] = 0
    return owner


def cut(level: Level, mask: np.ndarray, line: Baseline) -> PageLine:
    """Box and levelled crop of one line: the mask is its ink."""
    ys, xs = np.nonzero(mask)
    curve = smooth(line)

    def at(columns: np.ndarray) -> np.ndarray:  # level beyond its ends
        return curve(np.clip(columns, line.xs[0], line.xs[-1]))

    height, margin = ys - at(xs), line.x_height / 5  # rows from the baseline
    rows = np.arange(height.min() - margin, height.max() + margin + 1, level.scale)
    left, tall = xs.min() - margin, len(rows) * level.scale
    columns = np.arange(left, max(xs.max() + margin + 1, left + tall), level.scale)  # a lone "I" is a line, too
    across = np.broadcast_to(columns, (len(rows), len(columns))).astype(np.float32)
    down = (at(columns) + rows[:, None]).astype(np.float32)
    place = [(row[0] * across + row[1] * down + row[2]).astype(np.float32) for row in level.back]
    fine = [(at + 0.5) / level.scale - 0.5 for at in place]
    image = cv2.remap(level.page, *fine, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    behind = cv2.remap(level.paper, *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    top, bottom = max(0, int(down.min()) - 3), int(down.max()) + 4
    mask = mask[top:bottom].astype(np.uint8)
    foreign = cv2.dilate(level.hidden[top:bottom] & (1 - mask), SQUARE, iterations=2) & (1 - cv2.dilate(mask, SQUARE))
    foreign = cv2.remap(foreign * 255, across, down - top, cv2.INTER_LINEAR)
    along = np.linspace(columns[0], columns[-1] + level.scale, 17)  # enough places to follow a curved line
    upper, lower, baseline = (
        level.on_page(along - level.scale / 2, at(along) + row - level.scale / 2).clip(0, level.page.shape[::-1])
        for row in (rows[0], rows[-1] + level.scale, baseline_row(height))
    )
    places = level.on_page(xs, ys)
    low = np.floor(places.min(axis=0) - 0.5 / level.scale).clip(0).astype(int)
    high = np.ceil(places.max(axis=0) + 0.5 / level.scale).clip(max=level.page.shape[::-1]).astype(int)
    box = (*low.tolist(), *(high - low).tolist())
    return PageLine(box, np.where(foreign > 127, behind, image), np.stack([upper, lower]), baseline)
