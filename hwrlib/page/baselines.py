"""From the maps of a page to the baselines of its lines, in reading order (chapter 7).

What the network marked falls into pieces, which are joined along their direction; the order is that of Breuel, "High
performance document layout analysis" (2003).
"""

import itertools
from typing import NamedTuple

import cv2
import numpy as np

from hwrlib.page.maps import Maps, map_lines

MARKED, LIKELY = 0.25, 0.7  # probability of each pixel of a baseline, and of the best of each column on the average
FINEST, SCALES = 1152, (768, 448, 256, 160, 96)  # px of the longest side, as the network sees it
SMALL = 7  # px of an x: less is looked at on the finest scale, too
BARE = 8  # x-heights of bare paper that no line bridges
COLUMN = 3  # pairs of lines in one row that two columns have; fewer are lines with a gap


class Baseline(NamedTuple):
    """The baseline of a line, from left to right."""

    xs: np.ndarray  # its places on the page, in pixels
    ys: np.ndarray
    x_height: float  # px of an x
    probability: float  # the network's, 0 to 1, its mean along the line

    def at(self, columns: np.ndarray) -> np.ndarray:
        """The rows of the line at these columns; beyond its ends it goes on straight, as four x-heights there do."""
        rows = np.interp(columns, self.xs, self.ys)
        for end, beyond in ((self.xs[0], columns < self.xs[0]), (self.xs[-1], columns > self.xs[-1])):
            near = np.abs(self.xs - end) <= 4 * self.x_height
            if beyond.any() and near.sum() > 1:
                slope, row = np.polyfit(self.xs[near], self.ys[near], 1)
                rows = np.where(beyond, slope * columns + row, rows)
        return rows


def find_baselines(page: np.ndarray) -> list[Baseline]:
    """The baselines of an upright page, uint8 (H, W), in reading order."""
    return in_reading_order([part for line in trace(see(page)) for part in split_at_gaps(line, page)])


def see(page: np.ndarray) -> Maps:
    """The maps of a page on the scale on which most is found, and surely: large letters are best seen small.

    Where three scales show one line alone, it is one: on a finer one, the bar of a large "t" can look like a second.
    """
    looks = [(maps, trace(maps)) for maps in (map_lines(page, longest) for longest in SCALES)]
    maps, lines = looks[0]
    height = weighted_median([line.x_height for line in lines], [np.ptp(line.xs) for line in lines])
    if 0 < 2 * maps.scale * height < SMALL:
        maps = map_lines(page, FINEST)
        looks.append((maps, trace(maps)))
    most = max(amount(lines) for _, lines in looks)
    alone = [look for look in looks if len(look[1]) == 1 and amount(look[1]) > 0.6 * most]
    return max(alone if len(alone) > 2 else looks, key=lambda look: amount(look[1]))[0]


def amount(lines: list[Baseline]) -> float:
    """How much is found: the length of all baselines in pixels of the page, the less sure of them counting less."""
    return sum(np.ptp(line.xs) * line.probability**2 for line in lines)


def is_sideways(page: np.ndarray) -> bool:
    """Whether much more is found on a small copy of the page when it is laid on its side."""
    upright, turned = (amount(trace(map_lines(np.ascontiguousarray(np.rot90(page, k)), SCALES[1]))) for k in (0, 1))
    return turned > 2 * upright


def split_at_gaps(line: Baseline, page: np.ndarray) -> list[Baseline]:
    """The line in parts, where it bridges bare paper, as between two columns that the network saw on a small copy."""
    columns = np.arange(max(0, int(line.xs[0])), min(page.shape[1], int(line.xs[-1]) + 1))
    rows = line.at(columns) - np.linspace(-0.3, 1.3, 24)[:, None] * line.x_height  # of its small letters
    across = np.tile(columns, (len(rows), 1)).astype(np.float32)
    strip = cv2.remap(page, across, rows.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    contrast = np.abs(strip - np.median(strip)).max(axis=0)
    inked = columns[contrast > 0.5 * np.quantile(contrast, 0.9)]
    parts = np.split(inked, np.flatnonzero(np.diff(inked) > BARE * line.x_height) + 1)
    if len(parts) == 1:
        return [line]
    inside = [(line.xs >= part[0]) & (line.xs <= part[-1]) for part in parts]
    return [line._replace(xs=line.xs[own], ys=line.ys[own]) for own in inside if own.sum() > 1]


def weighted_median(values: list[float], weights: list[float]) -> float:
    """The value below which half of the weight lies; 0 of none."""
    return float(np.quantile(values, 0.5, weights=weights, method="inverted_cdf")) if values else 0.0


def trace(maps: Maps) -> list[Baseline]:
    """The baselines that the maps show, each in one piece, in pixels of the page."""
    marked = ((maps.baseline > MARKED) & (maps.end < 0.5 + 0.5 * maps.baseline)).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(marked)
    pieces = []
    for k, (left, top, width, height, _) in enumerate(stats[1:], 1):
        part = slice(top, top + height), slice(left, left + width)
        weight = np.where(labels[part] == k, maps.baseline[part], 0)
        rows = (weight * np.arange(height)[:, None]).sum(axis=0) / weight.sum(axis=0) + top
        columns = np.arange(left, left + width)
        if (probability := float(weight.max(axis=0).mean())) > LIKELY and width > 2:
            pieces.append(Baseline(columns, rows, height_above(maps.upper, columns, rows), probability))
    usual = weighted_median([p.x_height for p in pieces if p.x_height], [len(p.xs) for p in pieces if p.x_height])
    pieces = [piece._replace(x_height=piece.x_height or usual) for piece in pieces if usual]
    lines: list[Baseline] = []
    for line in sorted(join(pieces, maps.end), key=lambda line: -np.ptp(line.xs)):
        if np.ptp(line.xs) > 0.8 * line.x_height and not any(runs_through(line, longer) for longer in lines):
            lines.append(line)
    scale = maps.scale
    return [Baseline((xs + 0.5) / scale, (ys + 0.5) / scale, size / scale, sure) for xs, ys, size, sure in lines]


def runs_through(line: Baseline, longer: Baseline) -> bool:
    """Whether a line runs through the letters of a longer one."""
    beside = np.mean((line.xs >= longer.xs[0]) & (line.xs <= longer.xs[-1]))
    return beside > 0.5 and abs(np.median(longer.at(line.xs) - line.ys)) < 0.9 * longer.x_height


def height_above(upper: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> float:
    """Rows from a baseline up to the line of upper edges that is nearest above it; 0 where there is none."""
    up = np.arange(1, min(120, max(4, int(rows.max()))))
    across = np.tile(columns, (len(up), 1)).astype(np.float32)
    strip = cv2.remap(upper, across, (rows - up[:, None]).clip(0).astype(np.float32), cv2.INTER_LINEAR)
    profile = np.convolve(strip.mean(axis=1), [0.25, 0.5, 0.25], "same")
    high = profile > max(0.15, 0.6 * profile.max())
    if not high.any():
        return 0.0
    first = int(np.argmax(high))
    nearest = slice(first, first + int(np.argmin(np.append(high[first:], False))))
    return float(np.average(up[nearest], weights=profile[nearest]))


def join(pieces: list[Baseline], end: np.ndarray) -> list[Baseline]:
    """One baseline a line: a piece goes on with the next on its right, if it lies in its direction and near enough."""
    pieces = sorted(pieces, key=lambda piece: piece.xs[0])
    choices = []
    for (a, left), (b, right) in itertools.permutations(enumerate(pieces), 2):
        size = (left.x_height + right.x_height) / 2
        gap = right.xs[0] - left.xs[-1]
        if -1.5 * size < gap < 7 * size and right.xs[-1] > left.xs[-1]:
            middle = np.array([(left.xs[-1] + right.xs[0]) / 2])
            step = abs(float(left.at(middle)[0] - right.at(middle)[0]))
            if step < 0.6 * size and (gap < 2.2 * size or ends_between(left, right, end) < 0.3):
                choices.append((max(gap, 0) + 3 * step, a, b))
    begins = {k: [k] for k in range(len(pieces))}  # the lines, by their first piece
    ends = dict(begins)  # the same, by their last
    for _, a, b in sorted(choices):
        if a in ends and b in begins:
            chain = ends.pop(a)
            chain += begins.pop(b)
            ends[chain[-1]] = chain
    return [merge([pieces[k] for k in chain]) for chain in begins.values()]


def ends_between(left: Baseline, right: Baseline, end: np.ndarray) -> float:
    """How surely both the end of one piece and the beginning of the next are marked, 0 to 1."""
    reach, found = max(2, round(0.5 * left.x_height)), []
    for x, y in ((int(left.xs[-1]), int(left.ys[-1])), (int(right.xs[0]), int(right.ys[0]))):
        part = end[max(0, y - 2 * reach) : y + reach, max(0, x - reach) : x + reach + 1]
        found.append(part.max(initial=0))
    return min(found)


def merge(pieces: list[Baseline]) -> Baseline:
    """The pieces of one line, from left to right, as one."""
    xs, first = np.unique(np.concatenate([piece.xs for piece in pieces]), return_index=True)
    ys = np.concatenate([piece.ys for piece in pieces])[first]
    lengths = [len(piece.xs) for piece in pieces]
    size, probability = (float(np.average(of, weights=lengths)) for of in zip(*(p[2:] for p in pieces), strict=True))
    return Baseline(xs, ys, size, probability)


def in_reading_order(lines: list[Baseline]) -> list[Baseline]:
    """From top to bottom, one column after the other.

    A line comes before another where it is above it and spans some of the same width. Where it is wholly to the left,
    it comes before one in its own row, and before all of a column beside its own, if nothing that spans both lies
    between them. Columns are beside each other where three or more pairs of their lines share a row: fewer are lines
    that a gap parts, and a short line under an indented one is in the same column.
    """
    lines = sorted(lines, key=lambda line: np.median(line.ys))
    places = [(line.xs[0], line.xs[-1], np.median(line.ys), line.x_height) for line in lines]
    left, right, middle, size = np.array(places).reshape(-1, 4).T
    share = (np.minimum.outer(right, right) > np.maximum.outer(left, left)).astype(int)
    to_left = np.less_equal.outer(right, left)
    same_row = to_left & (np.abs(np.subtract.outer(middle, middle)) < 0.75 * np.add.outer(size, size))
    before = np.triu(share, 1)
    for a, b in np.argwhere(same_row | to_left & (share @ same_row @ share >= COLUMN)):
        low, high = sorted((middle[a], middle[b]))
        before[a, b] = not (share[a] & share[b] & (low < middle) & (middle < high)).any()
    rest, ordered = list(range(len(lines))), []
    while rest:
        free = next((k for k in rest if not before[rest, k].any()), rest[0])
        rest.remove(free)
        ordered.append(lines[free])
    return ordered
