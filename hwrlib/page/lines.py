"""Find the lines of handwriting on a page: one levelled crop each, from top to bottom (chapter 7).

An anisotropic Gaussian smears the ink of a line into a ridge (Cohen et al., "Using scale-space anisotropic smoothing
for text line extraction in historical documents", 2014). The ridges are followed from left to right in narrow columns,
so that a line may curve, and each connected piece of ink goes to its line.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.polynomial import Polynomial
from PIL import Image

from hwrlib.images import load_page
from hwrlib.page.ink import SQUARE, Level, baseline_row, estimate_x_height, is_written, level_ink, spread

NO_WRITING = "no writing was found on it; give a sharp photo or scan of dark writing on paper"


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


class Curve(NamedTuple):
    """The middle of a line's small letters: the columns and rows of the ridge, and the polynomial through them."""

    xs: np.ndarray
    ys: np.ndarray
    polynomial: Polynomial

    def at(self, columns: np.ndarray) -> np.ndarray:
        """Rows of the curve at these columns; level beyond its ends."""
        return self.polynomial(np.clip(columns, self.xs[0], self.xs[-1]))

    def gap_to(self, xs: np.ndarray, ys: np.ndarray, x_height: int) -> float:
        """Rows from the curve to a chain, where the chain is nearest to it along the line."""
        aside = np.maximum(self.xs[0] - xs, xs - self.xs[-1]).clip(0)
        near = aside <= aside.min() + 2 * x_height
        return float(np.abs(self.at(xs[near]) - ys[near]).mean())


def find_lines(page: str | Path | bytes | Image.Image | np.ndarray) -> list[PageLine]:
    """Find the lines of a page, tilted by 15 degrees at most, from top to bottom; those side by side are one."""
    level = level_ink(load_page(page))
    return [] if level is None else cut_lines(level)


def crop_line(picture: np.ndarray) -> PageLine | None:
    """Cut the writing out of a picture (H, W) of one line that has a margin or rulings, is tilted or taller than wide.

    None for a tight cut, which is best read as it is, and where no line is found or several on a tall picture.
    """
    level = level_ink(picture)
    tall = picture.shape[0] > picture.shape[1]
    if level is None or not (tall or level.ruled > 0.12 or level.has_margins()):  # IAM's: 0.09 at most
        return None
    lines = cut_lines(level)
    return None if tall and len(lines) > 1 else max(lines, key=lambda line: line.image.size, default=None)


def cut_lines(level: Level) -> list[PageLine]:
    """The lines of levelled ink, from top to bottom."""
    x_height = estimate_x_height(level.ink)
    curves = follow_lines(level.ink, x_height)
    if not curves:
        return []
    owner = assign_ink(level.ink, curves, x_height, level.stroke)
    drop_strays(owner, len(curves), x_height)
    masks = ((owner == k, curve) for k, curve in enumerate(curves, 1))
    return [cut(level, mask, curve, x_height) for mask, curve in masks if is_written(mask, x_height, level.stroke)]


def follow_lines(ink: np.ndarray, x_height: int) -> list[Curve]:
    """The curves along which the smeared ink is densest, one a line, from top to bottom."""
    columns = -(-ink.shape[1] // max(2, round(x_height / 2)))
    cell = ink.shape[1] / columns
    dense = cv2.resize(ink.astype(np.float32), (columns, ink.shape[0]), interpolation=cv2.INTER_AREA)
    dense = cv2.GaussianBlur(dense, (0, 0), sigmaX=2.5 * x_height / cell, sigmaY=0.6 * x_height)
    peak = np.zeros(dense.shape, bool)
    peak[1:-1] = (dense[1:-1] > dense[:-2]) & (dense[1:-1] >= dense[2:])
    for reach, share in ((1.2, 1.0), (2.0, 0.5)):  # rows of ascenders and descenders are near a denser one
        peak &= dense >= share * cv2.dilate(dense, np.ones((int(2 * reach * x_height) | 1, 1), np.uint8))
    if not peak.any():
        return []
    peak &= dense > 0.15 * np.percentile(dense[peak], 90)
    column, row = np.nonzero(peak.T)
    apart = np.diff(row)[np.diff(column) == 0]
    nearest = np.clip(0.4 * np.median(apart), 1.2 * x_height, 2.5 * x_height) if apart.size else 1.6 * x_height
    chains = [np.array(chain, float).T for chain in link(peak, 0.6 * x_height)]
    return join([((columns + 0.5) * cell, rows) for columns, rows in chains], x_height, nearest)


def link(peak: np.ndarray, reach: float) -> list[list[tuple[int, int]]]:
    """Chains of peaks (column, row) from column to column, each to the nearest at most `reach` rows away."""
    chains, growing = [], []
    for column in range(peak.shape[1]):
        rows = np.flatnonzero(peak[:, column]).tolist()
        steps = sorted((abs(chain[-1][1] - row), k, row) for k, chain in enumerate(growing) for row in rows)
        for step, k, row in steps:
            if step <= reach and row in rows and growing[k][-1][0] < column:
                growing[k].append((column, row))
                rows.remove(row)
        started = [[(column, row)] for row in rows]
        growing = [chain for chain in growing if chain[-1][0] == column] + started
        chains += started
    return chains


def join(chains: list[tuple[np.ndarray, np.ndarray]], x_height: int, nearest: float) -> list[Curve]:
    """One curve a line, from top to bottom, of chains (xs, ys), the longest first.

    A chain less than `nearest` rows from a line goes on with it or, beside it, is its ascenders or descenders.
    """
    lines = []
    for xs, ys in sorted(chains, key=lambda chain: -len(chain[0])):
        gap, k = min(((line.gap_to(xs, ys, x_height), k) for k, line in enumerate(lines)), default=(np.inf, 0))
        if gap > nearest:
            lines.append(fit_curve(xs, ys, x_height))
        elif np.mean((xs >= lines[k].xs[0]) & (xs <= lines[k].xs[-1])) < 0.3:  # hardly beside it
            lines[k] = fit_curve(np.append(lines[k].xs, xs), np.append(lines[k].ys, ys), x_height)
    return sorted(lines, key=lambda line: line.ys.mean())


def fit_curve(xs: np.ndarray, ys: np.ndarray, x_height: int) -> Curve:
    """The polynomial through a ridge, the longer the freer: of degree 5 at the most."""
    order = np.argsort(xs, kind="stable")
    xs, ys = xs[order], ys[order]
    degree = int(np.searchsorted((8, 16, 24, 32, 40), np.ptp(xs) / x_height))
    return Curve(xs, ys, Polynomial.fit(xs, ys, degree) if degree else Polynomial([ys.mean()]))


def count_votes(labels: np.ndarray, curves: list[Curve], x_height: int) -> np.ndarray:
    """The pixels (pieces, curves) that each connected piece of ink has within half an x-height of each curve."""
    ys, xs = np.nonzero(labels)
    pieces, count = labels[ys, xs], int(labels.max()) + 1
    near = (pieces[np.abs(ys - curve.at(xs)) < 0.5 * x_height] for curve in curves)
    return np.stack([np.bincount(chosen, minlength=count) for chosen in near], axis=1)


def is_double(votes: np.ndarray) -> np.ndarray:
    """Whether each curve runs through the tops or tails of a line's large letters: most of its ink is theirs."""
    votes = votes * (np.count_nonzero(votes, axis=1, keepdims=True) <= 3)  # squares left over hold many lines together
    shared = votes.T @ (votes > 0)  # [j, k]: the ink at curve j of pieces that are at curve k, too
    total = shared.diagonal()
    share = shared / np.maximum(total, 1)[:, None]
    return ((np.maximum(share, share.T) > 0.6) & (total[:, None] < total)).any(axis=1)


def assign_ink(ink: np.ndarray, curves: list[Curve], x_height: int, stroke: float) -> np.ndarray:
    """The line of each pixel of ink, from 1; 0 = none. A piece that touches the letters of two lines is split."""
    _, labels, stats, centres = cv2.connectedComponentsWithStats(ink.astype(np.uint8))
    votes = count_votes(labels, curves, x_height)
    votes[:, is_double(votes)] = 0
    away = np.full(votes.shape, np.inf)
    for k, curve in enumerate(curves):
        aside = np.maximum(curve.xs[0] - centres[:, 0], centres[:, 0] - curve.xs[-1]).clip(0)
        if votes[:, k].any():
            away[:, k] = np.abs(centres[:, 1] - curve.at(centres[:, 0])) + 0.5 * aside
    belongs = np.where(votes.any(axis=1), votes.argmax(axis=1), away.argmin(axis=1)) + 1
    belongs[~votes.any(axis=1) & (away.min(axis=1) > 3 * x_height)] = 0
    belongs[0] = 0
    owner = belongs.astype(np.uint16)[labels]
    letter = x_height * stroke  # px of ink in one upright stroke
    written = votes >= np.minimum(0.3 * votes.max(axis=1, keepdims=True), 1.5 * letter).clip(0.5 * letter)
    for piece in np.flatnonzero(written[1:].sum(axis=1) > 1) + 1:
        left, top, width, height, _ = stats[piece]
        part = slice(top, top + height), slice(left, left + width)
        mask = labels[part] == piece
        rows, columns = np.nonzero(mask)
        seeds = np.zeros(mask.shape, np.uint16)
        for k in np.flatnonzero(written[piece]):
            core = np.abs(rows + top - curves[k].at(columns + left)) < 0.5 * x_height
            seeds[rows[core], columns[core]] = k + 1
        owner[part][mask] = spread(seeds, mask)[mask]
    return owner


def drop_strays(owner: np.ndarray, lines: int, x_height: int) -> None:
    """Forget small things far left or right of the text: punched holes, a dark border."""
    runs = []
    for k in range(1, lines + 1):
        used = np.flatnonzero((owner == k).any(axis=0))
        if len(used):
            gaps = np.flatnonzero(np.diff(used) > 4 * x_height) + 1
            runs += [(k, run[0], run[-1] + 1) for run in np.split(used, gaps)]
    wide = [run for run in runs if run[2] - run[1] > 4 * x_height]
    left, right = (min(run[1] for run in wide), max(run[2] for run in wide)) if wide else (0, owner.shape[1])
    for k, start, stop in runs:
        if stop - start < 3 * x_height and (stop < left - 2 * x_height or start > right + 2 * x_height):
            strip = owner[:, start:stop]
            strip[strip == k] = 0


def cut(level: Level, mask: np.ndarray, curve: Curve, x_height: int) -> PageLine:
    """Box and levelled crop of one line: the mask is its ink."""
    ys, xs = np.nonzero(mask)
    height = ys - curve.at(xs)  # rows from the curve
    rows = np.arange(height.min() - x_height / 4, height.max() + x_height / 4 + 1, level.scale)
    left, tall = xs.min() - x_height / 4, len(rows) * level.scale
    columns = np.arange(left, max(xs.max() + x_height / 4 + 1, left + tall), level.scale)  # a lone "I" is a line, too
    across = np.broadcast_to(columns, (len(rows), len(columns))).astype(np.float32)
    down = (curve.at(columns) + rows[:, None]).astype(np.float32)
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
        level.on_page(along - level.scale / 2, curve.at(along) + row - level.scale / 2).clip(0, level.page.shape[::-1])
        for row in (rows[0], rows[-1] + level.scale, baseline_row(height))
    )
    places = level.on_page(xs, ys)
    low = np.floor(places.min(axis=0) - 0.5 / level.scale).clip(0).astype(int)
    high = np.ceil(places.max(axis=0) + 0.5 / level.scale).clip(max=level.page.shape[::-1]).astype(int)
    box = (*low.tolist(), *(high - low).tolist())
    return PageLine(box, np.where(foreign > 127, behind, image), np.stack([upper, lower]), baseline)
