"""Find the lines of handwriting on a page: one levelled crop each, from top to bottom (chapter 7).

An anisotropic Gaussian smears the ink of a line into a ridge (Cohen, Dinstein, El-Sana and Kedem, "Using scale-space
anisotropic smoothing for text line extraction in historical documents", 2014). The ridges are followed from left to
right in narrow columns, so that a line may curve, and each connected piece of ink goes to its line.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.polynomial import Polynomial

from hwrlib.images import load_page
from hwrlib.page.ink import SQUARE, Level, level_ink

NO_WRITING = "no writing was found on it; give a sharp photo or scan of dark writing on paper"


@dataclass(frozen=True)
class PageLine:
    """One line of a page: ``box`` is (x, y, width, height) in pixels of the page as displayed (after EXIF rotation).

    ``image`` is its crop in the page's own resolution, uint8 (H, W), levelled, dark ink on light paper, with rulings
    and the ink of its neighbours painted out.
    """

    box: tuple[int, int, int, int]
    image: np.ndarray


class Curve(NamedTuple):
    """The middle of a line's small letters: the columns and rows of the ridge, and the polynomial through them."""

    xs: np.ndarray
    ys: np.ndarray
    through: Polynomial

    def at(self, columns):
        """Rows of the curve at these columns; level beyond its ends."""
        return self.through(np.clip(columns, self.xs[0], self.xs[-1]))

    def covers(self, columns) -> float:
        """The share of these columns over which the curve runs."""
        return float(((columns >= self.xs[0]) & (columns <= self.xs[-1])).mean())

    def gap_to(self, xs, ys, x) -> float:
        """Rows from the curve to a chain, where the chain is nearest to it along the line."""
        aside = np.maximum(self.xs[0] - xs, xs - self.xs[-1]).clip(0)
        near = aside <= aside.min() + 2 * x
        return float(np.abs(self.at(xs[near]) - ys[near]).mean())


def find_lines(page) -> list[PageLine]:
    """Find the lines of handwriting on a scan or photo of a page, from top to bottom.

    Chapter 7 teaches it: notebooks/07_read_your_handwriting.ipynb.

    Arguments:
        page: whatever :func:`hwrlib.images.load_page` takes, up to 100 megapixels; tilted up to 8 degrees.

    Returns:
        one :class:`PageLine` a line; none for a page without writing. Lines side by side count as one line.

    Raises:
        ImageError, FileNotFoundError: as :func:`hwrlib.images.prepare`.

    >>> page = np.full((300, 400), 230, np.uint8)
    >>> for y in (60, 160):
    ...     _ = cv2.putText(page, "two lines", (40, y), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 40, 3)
    >>> [line.box[1] // 100 for line in find_lines(page)]
    [0, 1]
    """
    level = level_ink(load_page(page))
    if level is None:
        return []
    x = letter_height(level.ink)
    curves = follow_lines(level.ink, x)
    if not curves:
        return []
    owner = share_out(level.ink, curves, x, level.stroke)
    drop_strays(owner, len(curves), x)
    lines = ((owner == k, curve) for k, curve in enumerate(curves, 1))
    return [cut(level, own, curve, x) for own, curve in lines if is_written(own, x, level.stroke)]


def letter_height(ink) -> int:
    """Rows after which the row profile of narrow strips no longer resembles itself: about the height of an x."""
    strips = max(1, round(ink.shape[1] / 80))
    profile = cv2.resize(ink.astype(np.float32), (strips, ink.shape[0]), interpolation=cv2.INTER_AREA)
    profile -= profile.mean(axis=0)
    power = np.abs(np.fft.rfft(profile, 2 * len(profile), axis=0)) ** 2
    likeness = np.fft.irfft(power.sum(axis=1))[: len(profile)]
    return max(4, int(np.argmax(likeness < 0.05 * likeness[0])))


def follow_lines(ink, x) -> list[Curve]:
    """The curves along which the smeared ink is densest, one a line, from top to bottom; x is the letters' height."""
    columns = -(-ink.shape[1] // max(2, round(x / 2)))
    cell = ink.shape[1] / columns
    dense = cv2.resize(ink.astype(np.float32), (columns, ink.shape[0]), interpolation=cv2.INTER_AREA)
    dense = cv2.GaussianBlur(dense, (0, 0), sigmaX=2.5 * x / cell, sigmaY=0.6 * x)
    peak = np.zeros(dense.shape, bool)
    peak[1:-1] = (dense[1:-1] > dense[:-2]) & (dense[1:-1] >= dense[2:])
    for reach, share in ((1.2, 1.0), (2.0, 0.5)):  # rows of ascenders and descenders are near a denser one
        peak &= dense >= share * cv2.dilate(dense, np.ones((int(2 * reach * x) | 1, 1), np.uint8))
    if not peak.any():
        return []
    peak &= dense > 0.15 * np.percentile(dense[peak], 90)
    column, row = np.nonzero(peak.T)
    apart = np.diff(row)[np.diff(column) == 0]
    nearest = np.clip(0.4 * np.median(apart), 1.2 * x, 2.5 * x) if apart.size else 1.6 * x
    chains = [np.array(chain, float).T for chain in link(peak, 0.6 * x)]
    return join([((columns + 0.5) * cell, rows) for columns, rows in chains], x, nearest)


def link(peak, reach):
    """Chains of peaks (column, row) from column to column, each to the nearest at most `reach` rows away."""
    chains, growing = [], []
    for column in range(peak.shape[1]):
        rows = np.flatnonzero(peak[:, column]).tolist()
        steps = sorted((abs(chain[-1][1] - row), k, row) for k, chain in enumerate(growing) for row in rows)
        grown, taken = set(), set()
        for step, k, row in steps:
            if step <= reach and k not in grown and row not in taken:
                growing[k].append((column, row))
                grown.add(k)
                taken.add(row)
        started = [[(column, row)] for row in rows if row not in taken]
        growing = [chain for k, chain in enumerate(growing) if k in grown] + started
        chains += started
    return chains


def join(chains, x, nearest) -> list[Curve]:
    """One curve a line, from top to bottom, of chains (xs, ys), the longest first.

    A chain less than `nearest` rows from a line goes on with it or, beside it, is its ascenders or descenders.
    """
    lines = []
    for xs, ys in sorted(chains, key=lambda chain: -len(chain[0])):
        gap, k = min(((line.gap_to(xs, ys, x), k) for k, line in enumerate(lines)), default=(np.inf, 0))
        if gap > nearest:
            lines.append(curve_through(xs, ys, x))
        elif lines[k].covers(xs) < 0.3:
            lines[k] = curve_through(np.append(lines[k].xs, xs), np.append(lines[k].ys, ys), x)
    return sorted(lines, key=lambda line: line.ys.mean())


def curve_through(xs, ys, x) -> Curve:
    """The polynomial through a ridge, the longer the freer: of degree 5 at the most."""
    order = np.argsort(xs, kind="stable")
    xs, ys = xs[order], ys[order]
    degree = int(np.searchsorted((8, 16, 24, 32, 40), np.ptp(xs) / x))
    return Curve(xs, ys, Polynomial.fit(xs, ys, degree) if degree else Polynomial([ys.mean()]))


def share_out(ink, curves, x, stroke):
    """The line of each pixel of ink, from 1; 0 = none. A piece that touches the letters of two lines is split."""
    count, labels, stats, centres = cv2.connectedComponentsWithStats(ink.astype(np.uint8))
    ys, xs = np.nonzero(ink)
    pieces = labels[ys, xs]
    cores = np.zeros(ink.shape, np.uint16)
    votes = np.zeros((count, len(curves)), np.int64)
    away = np.full((count, len(curves)), np.inf)
    for k, curve in enumerate(curves):
        core = np.abs(ys - curve.at(xs)) < 0.5 * x
        cores[ys[core], xs[core]] = k + 1
        votes[:, k] = np.bincount(pieces[core], minlength=count)
        aside = np.maximum(curve.xs[0] - centres[:, 0], centres[:, 0] - curve.xs[-1]).clip(0)
        away[:, k] = np.abs(centres[:, 1] - curve.at(centres[:, 0])) + 0.5 * aside
    belongs = np.where(votes.any(axis=1), votes.argmax(axis=1), away.argmin(axis=1)) + 1
    belongs[~votes.any(axis=1) & (away.min(axis=1) > 3 * x)] = 0
    belongs[0] = 0
    owner = belongs.astype(np.uint16)[labels]
    letter = x * stroke  # px of ink in one upright stroke
    written = votes >= np.minimum(0.3 * votes.max(axis=1, keepdims=True), 1.5 * letter).clip(0.5 * letter)
    for piece in np.flatnonzero(written[1:].sum(axis=1) > 1) + 1:
        left, top, width, height, _ = stats[piece]
        part = slice(top, top + height), slice(left, left + width)
        own = labels[part] == piece
        seeds = np.where(own & np.isin(cores[part], np.flatnonzero(written[piece]) + 1), cores[part], 0)
        owner[part][own] = grow(seeds, own)[own]
    return owner


def grow(seeds, own):
    """Let the numbered seeds grow evenly over `own` until it is full."""
    while True:
        grown = np.where(own & (seeds == 0), cv2.dilate(seeds, SQUARE), seeds)
        if np.array_equal(grown, seeds):
            return seeds
        seeds = grown


def drop_strays(owner, lines, x):
    """Forget small things far left or right of the text: punched holes, a dark border."""
    runs = []
    for k in range(1, lines + 1):
        used = np.flatnonzero((owner == k).any(axis=0))
        if len(used):
            runs += [(k, run[0], run[-1] + 1) for run in np.split(used, np.flatnonzero(np.diff(used) > 4 * x) + 1)]
    wide = [run for run in runs if run[2] - run[1] > 4 * x]
    left, right = (min(run[1] for run in wide), max(run[2] for run in wide)) if wide else (0, owner.shape[1])
    for k, start, stop in runs:
        if stop - start < 3 * x and (stop < left - 2 * x or start > right + 2 * x):
            strip = owner[:, start:stop]
            strip[strip == k] = 0


def is_written(own, x, stroke) -> bool:
    """Whether this ink is enough for a letter: a stray dot or dash is not."""
    rows = np.flatnonzero(own.any(axis=1))
    return len(rows) > 0 and np.ptp(rows) >= 0.7 * x and np.count_nonzero(own) >= 1.2 * x * stroke


def cut(level: Level, own, curve: Curve, x) -> PageLine:
    """Box and levelled crop of one line: `own` is the mask of its ink."""
    ys, xs = np.nonzero(own)
    height = ys - curve.at(xs)  # rows from the curve
    rows = np.arange(height.min() - x / 4, height.max() + x / 4 + 1, level.scale)
    left, tall = xs.min() - x / 4, len(rows) * level.scale
    columns = np.arange(left, max(xs.max() + x / 4 + 1, left + tall), level.scale)  # a lone "I" is a line, too
    across = np.broadcast_to(columns, (len(rows), len(columns))).astype(np.float32)
    down = (curve.at(columns) + rows[:, None]).astype(np.float32)
    place = [
        (level.back[i, 0] * across + level.back[i, 1] * down + level.back[i, 2]).astype(np.float32) for i in (0, 1)
    ]
    fine = [(at + 0.5) / level.scale - 0.5 for at in place]
    image = cv2.remap(level.page, *fine, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    behind = cv2.remap(level.paper, *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    top, bottom = max(0, int(down.min()) - 3), int(down.max()) + 4
    own = own[top:bottom].astype(np.uint8)
    foreign = cv2.dilate(level.hidden[top:bottom] & (1 - own), SQUARE, iterations=2) & (1 - cv2.dilate(own, SQUARE))
    foreign = cv2.remap(foreign * 255, across, down - top, cv2.INTER_LINEAR)
    return PageLine(box_on_page(xs, ys, level), np.where(foreign > 127, behind, image))


def box_on_page(xs, ys, level: Level) -> tuple[int, int, int, int]:
    """(x, y, width, height) on the page of level pixels."""
    places = (np.stack([xs, ys, np.ones(len(xs))]).T @ level.back.T + 0.5) / level.scale
    low = np.floor(places.min(axis=0) - 0.5 / level.scale).clip(0)
    high = np.ceil(places.max(axis=0) + 0.5 / level.scale).clip(max=level.page.shape[::-1])
    return (*low.astype(int).tolist(), *(high - low).astype(int).tolist())
