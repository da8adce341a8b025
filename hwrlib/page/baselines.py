"""From the maps of a page to the baselines of its lines, in reading order (chapter 7).

What the network marked falls into pieces, which are joined along their direction; the order is that of Breuel, "High
performance document layout analysis" (2003).
"""

from typing import NamedTuple

import cv2
import numpy as np

from hwrlib.page.maps import Maps, map_lines

FAINT, LIKELY = 0.25, 0.7  # probability of each pixel of a baseline, and of the best of each column on the average
FINEST, SCALES = 1152, (768, 448, 256, 160, 96)  # px of the longest side, as the network sees it
SMALL = 7  # px of an x: less is looked at on the finest scale, too


class Baseline(NamedTuple):
    """The baseline of a line, from left to right.

    Arguments:
        xs, ys: its places on the page, in pixels.
        x_height: the height of an x, in pixels.
        probability: the network's, 0 to 1, its mean along the line.
    """

    xs: np.ndarray
    ys: np.ndarray
    x_height: float
    probability: float

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
    return in_reading_order(trace(see(page)))


def see(page: np.ndarray) -> Maps:
    """The maps of a page on the scale on which most is found, and surely: large letters are best seen small."""
    maps = [map_lines(page, longest) for longest in SCALES]
    lines = trace(maps[0])
    height = weighted_median([line.x_height for line in lines], [np.ptp(line.xs) for line in lines])
    if 0 < 2 * maps[0].scale * height < SMALL:
        maps.append(map_lines(page, FINEST))
    return max(maps, key=amount)


def amount(maps: Maps) -> float:
    """How much is found: the length of all baselines in pixels of the page, the less sure of them counting less."""
    return sum(np.ptp(line.xs) * line.probability**2 for line in trace(maps))


def is_sideways(page: np.ndarray) -> bool:
    """Whether much more is found on a small copy of the page when it is laid on its side."""
    turned = np.ascontiguousarray(np.rot90(page))
    return amount(map_lines(turned, SCALES[1])) > 2 * amount(map_lines(page, SCALES[1]))


def weighted_median(values: list[float], weights: list[float]) -> float:
    """The value below which half of the weight lies; 0 of none."""
    if not values:
        return 0.0
    order = np.argsort(values)
    total = np.cumsum(np.array(weights)[order])
    return float(values[order[np.searchsorted(total, total[-1] / 2)]])


def trace(maps: Maps) -> list[Baseline]:
    """The baselines that the maps show, each in one piece."""
    marked = ((maps.baseline > FAINT) & (maps.end < 0.5 + 0.5 * maps.baseline)).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(marked)
    pieces = []
    for k in range(1, count):
        left, top, width, height, _ = stats[k]
        part = slice(top, top + height), slice(left, left + width)
        weight = np.where(labels[part] == k, maps.baseline[part], 0)
        rows = (weight * np.arange(height)[:, None]).sum(axis=0) / weight.sum(axis=0) + top
        columns = np.arange(left, left + width)
        if (probability := float(weight.max(axis=0).mean())) > LIKELY and width > 2:
            pieces.append(Baseline(columns, rows, height_above(maps.upper, columns, rows), probability))
    usual = weighted_median([p.x_height for p in pieces if p.x_height], [len(p.xs) for p in pieces if p.x_height])
    pieces = [piece._replace(x_height=piece.x_height or usual) for piece in pieces if usual]
    lines = [line for line in join(pieces, maps.end) if np.ptp(line.xs) > 0.8 * line.x_height]
    return [on_page(line, maps.scale) for line in without_doubles(lines)]


def without_doubles(lines: list[Baseline]) -> list[Baseline]:
    """The lines but those that run through the letters of a longer one."""
    kept: list[Baseline] = []
    for line in sorted(lines, key=lambda line: -np.ptp(line.xs)):
        doubles = (
            np.mean((line.xs >= other.xs[0]) & (line.xs <= other.xs[-1])) > 0.5
            and abs(np.median(other.at(line.xs) - line.ys)) < 0.9 * other.x_height
            for other in kept
        )
        if not any(doubles):
            kept.append(line)
    return kept


def height_above(upper: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> float:
    """Rows from a baseline up to the line of upper edges that is nearest above it; 0 where there is none."""
    up = np.arange(1, min(120, max(4, int(rows.max()))))
    places = (rows - up[:, None]).clip(0).astype(np.float32)
    across = np.broadcast_to(columns.astype(np.float32), places.shape)
    strip = cv2.remap(upper, np.ascontiguousarray(across), places, cv2.INTER_LINEAR)
    profile = np.convolve(strip.mean(axis=1), [0.25, 0.5, 0.25], "same")
    high = profile > max(0.15, 0.6 * profile.max())
    if not high.any():
        return 0.0
    first = int(np.argmax(high))
    last = first + int(np.argmin(np.append(high[first:], False)))
    return float(np.average(up[first:last], weights=profile[first:last]))


def join(pieces: list[Baseline], end: np.ndarray) -> list[Baseline]:
    """One baseline a line: a piece goes on with the next on its right, if it lies in its direction and near enough."""
    pieces = sorted(pieces, key=lambda piece: piece.xs[0])
    choices = []
    for a, left in enumerate(pieces):
        for b, right in enumerate(pieces):
            size = (left.x_height + right.x_height) / 2
            gap = right.xs[0] - left.xs[-1]
            if a == b or not -1.5 * size < gap < 7 * size or right.xs[-1] <= left.xs[-1]:
                continue
            middle = np.array([(left.xs[-1] + right.xs[0]) / 2])
            step = abs(float(left.at(middle)[0] - right.at(middle)[0]))
            ended = ends_between(left, right, end)
            if step < 0.6 * size and gap < (7 if ended < 0.3 else 2.2) * size:
                choices.append((max(gap, 0) + 3 * step, a, b))
    follows, preceded = {}, set()
    for _, a, b in sorted(choices):
        if a not in follows and b not in preceded:
            follows[a] = b
            preceded.add(b)
    lines = []
    for first in set(range(len(pieces))) - preceded:
        chain = [first]
        while chain[-1] in follows:
            chain.append(follows[chain[-1]])
        lines.append(merge([pieces[k] for k in chain]))
    return lines


def ends_between(left: Baseline, right: Baseline, end: np.ndarray) -> float:
    """How surely both the end of one piece and the beginning of the next are marked, 0 to 1."""
    found = []
    for x, y in ((left.xs[-1], left.ys[-1]), (right.xs[0], right.ys[0])):
        reach = max(2, round(0.5 * left.x_height))
        part = end[max(0, int(y) - 2 * reach) : int(y) + reach, max(0, int(x) - reach) : int(x) + reach + 1]
        found.append(float(part.max()) if part.size else 0.0)
    return min(found)


def merge(pieces: list[Baseline]) -> Baseline:
    """The pieces of one line, from left to right, as one."""
    xs, ys = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("xs", "ys"))
    xs, first = np.unique(xs, return_index=True)
    weights = [len(piece.xs) for piece in pieces]
    size, probability = (
        np.average([getattr(p, n) for p in pieces], weights=weights) for n in ("x_height", "probability")
    )
    return Baseline(xs, ys[first], float(size), float(probability))


def on_page(line: Baseline, scale: float) -> Baseline:
    """The line with its places on the page, of which the map is so much smaller."""
    return line._replace(xs=(line.xs + 0.5) / scale, ys=(line.ys + 0.5) / scale, x_height=line.x_height / scale)


def in_reading_order(lines: list[Baseline]) -> list[Baseline]:
    """From top to bottom, one column after the other.

    A line comes before another where it is above it and they share columns, or where it is wholly to the left and
    nothing that spans both lies between them.
    """

    def share(a: Baseline, b: Baseline) -> bool:
        return min(a.xs[-1], b.xs[-1]) > max(a.xs[0], b.xs[0])

    lines = sorted(lines, key=lambda line: float(np.median(line.ys)))
    middle = [float(np.median(line.ys)) for line in lines]
    before = [set() for _ in lines]
    for a, one in enumerate(lines):
        for b, other in enumerate(lines):
            if a < b and share(one, other):
                before[b].add(a)
            elif a != b and one.xs[-1] <= other.xs[0]:
                low, high = sorted((middle[a], middle[b]))
                between = (k for k in range(len(lines)) if low < middle[k] < high)
                if not any(share(lines[k], one) and share(lines[k], other) for k in between):
                    before[b].add(a)
    order: list[int] = []
    while len(order) < len(lines):
        left = [k for k in range(len(lines)) if k not in order]
        free = [k for k in left if not before[k] - set(order)] or left[:1]
        order.append(free[0])
    return [lines[k] for k in order]
