"""From a page to its lines: one levelled crop each, in reading order, and where each character stands (chapters 7, 9).

A small network marks the baselines (``maps``, ``baselines``); each connected piece of ink near them goes to its line, a
piece that touches two lines is split, and each line is cut out along its baseline, so that a curved one is straight.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.polynomial import Polynomial
from PIL import Image

from hwrlib.ctc import Character, Reading
from hwrlib.images import LONGEST, load_page
from hwrlib.page.baselines import Baseline, find_baselines
from hwrlib.page.ink import ABOVE, BELOW, BEYOND, HIGHEST, LOWEST, SQUARE, Level, baseline_row, level_ink

NO_WRITING = "no writing was found on it; give a sharp photo or scan of dark writing on paper"
BESIDE = 1.2  # x-heights from a line's ends to its loose pieces of ink
INK = 128  # grey level of a prepared line, below which is ink
APART = 16  # px of a prepared line: the pieces of one mark, as of a colon, begin no further from one another
Box = tuple[int, int, int, int]  # x, y, width, height
Kind = Literal["line", "page"] | None
Picture = str | Path | bytes | Image.Image | np.ndarray


class PageLine(NamedTuple):
    """One line of a page; its places are in pixels of the page as displayed (after EXIF rotation)."""

    box: Box
    image: np.ndarray  # its crop, uint8 (H, W): levelled, dark on light, without rulings and the ink of its neighbours
    outline: np.ndarray  # (2, N, 2), (x, y) evenly along the crop's upper and lower edge

    @classmethod
    def whole(cls, picture: np.ndarray) -> "PageLine":
        """A picture, uint8 (H, W), that is a line as it is."""
        height, width = picture.shape
        edges = np.array([[(0, 0), (width, 0)], [(0, height), (width, height)]], float)
        return cls((0, 0, width, height), picture, edges)


def find_lines(page: Picture, kind: Kind = "page", rotation: int = 0) -> list[PageLine]:
    """Find the lines of a page, in reading order; their places lie on the page as given.

    Arguments:
        kind: "page" cuts each line out. "line" takes one: as it is where it is cut tightly, which reads best, else cut
            out. None cuts each out, too, but leaves a tight cut of one line, and a long strip without any, as it is.
        rotation: degrees clockwise, 0, 90, 180 or 270, by which the page is turned to be read.
    """
    page = np.ascontiguousarray(np.rot90(load_page(page), -rotation // 90))
    (height, width), whole, baselines = page.shape, PageLine.whole(page), find_baselines(page)
    level = level_ink(page, baselines) if baselines else None
    lines = cut_lines(level) if level and not (kind == "line" and is_tight(level)) else []
    if kind == "line":
        several = height > width and len(lines) > 1
        lines = [whole if several else max(lines, key=lambda line: line.image.size, default=whole)]
    elif kind is None and len(lines) == 1 and is_tight(level):
        lines = [whole._replace(box=lines[0].box)]
    elif kind is None and not lines and width >= 5 * height:
        lines = [whole]
    turn = page.shape, rotation
    return [PageLine(turn_back(box, *turn), image, turn_places_back(outline, *turn)) for box, image, outline in lines]


def turn_back(box: Box, shape: tuple[int, int], rotation: int) -> Box:
    """Where a box was before its picture was turned clockwise and got this shape (H, W).

    >>> turn_back((0, 10, 50, 20), (300, 200), 90)
    (10, 150, 20, 50)
    """
    x, y, width, height = box
    return box_around(turn_places_back(np.array([(x, y), (x + width, y + height)]), shape, rotation))


def turn_places_back(places: np.ndarray, shape: tuple[int, int], rotation: int) -> np.ndarray:
    """Where places (..., 2) were before their picture was turned clockwise and got this shape (H, W)."""
    for _ in range(rotation // 90):
        places, shape = np.stack([places[..., 1], shape[1] - places[..., 0]], axis=-1), shape[::-1]
    return places


def is_tight(level: Level) -> bool:
    """Whether a picture of a line is cut tightly: wide, without rulings, without much paper both above and below."""
    rows, (height, width) = np.flatnonzero(assign_ink(level).any(axis=1)), level.paper.shape
    added = (len(level.ink) - height) / 2  # rows that the rotation added above, and as many below
    margin = min(rows[0], len(level.ink) - 1 - rows[-1]) - added if rows.size else 0
    return height <= width and level.ruled < 0.12 and margin < height / 8  # IAM's: 0.09 and 0.07 at most


def cut_lines(level: Level) -> list[PageLine]:
    """The lines of levelled ink, in the order of its baselines; a stray dot or dash is none, nor is a ruling."""
    owner, lines = assign_ink(level), []
    for k, line in enumerate(level.lines, 1):
        mask = owner == k
        rows = np.flatnonzero(mask.any(axis=1))
        enough = np.count_nonzero(mask) >= 1.2 * line.x_height * level.stroke
        if rows.size and np.ptp(rows) >= 0.6 * line.x_height and enough:
            lines.append(cut(level, mask, line))
    return [line for line in lines if line.image.shape[1] <= LONGEST * line.image.shape[0]]


def rows_at(line: Baseline, columns: np.ndarray) -> np.ndarray:
    """The rows of a baseline's polynomial, of degree 5 at most, the longer the freer; level beyond its ends."""
    degree = int(np.searchsorted((6, 16, 28, 40, 50), np.ptp(line.xs) / line.x_height))
    return Polynomial.fit(line.xs, line.ys, degree)(np.clip(columns, line.xs[0], line.xs[-1]))


def assign_ink(level: Level) -> np.ndarray:
    """The line of each pixel of ink, from 1; 0 = none. A piece that touches the letters of two lines is split."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(level.ink.astype(np.uint8))
    ys, xs = np.nonzero(labels)
    pieces, count = labels[ys, xs], len(stats)
    votes, away = (np.full((count, len(level.lines)), start) for start in (0.0, np.inf))
    heights = np.empty((len(level.lines), len(xs)), np.float32)  # x-heights above each baseline
    within = np.empty(heights.shape, bool)
    for k, line in enumerate(level.lines):
        heights[k] = (rows_at(line, xs) - ys) / line.x_height
        aside = np.maximum(line.xs[0] - xs, xs - line.xs[-1]).clip(0) / line.x_height
        within[k] = (aside <= BEYOND) & (heights[k] <= ABOVE) & (heights[k] >= -BELOW)
        near = within[k] & (aside <= BESIDE)
        votes[:, k] = np.bincount(pieces[near & (np.abs(heights[k] - 0.5) < 0.5)], minlength=count)
        np.minimum.at(away[:, k], pieces[near], np.abs(heights[k, near] - 0.5) + 0.5 * aside[near])
    belongs = np.where(votes.any(axis=1), votes.argmax(axis=1), away.argmin(axis=1)) + 1
    owner = np.where(np.isinf(away).all(axis=1), 0, belongs).astype(np.uint16)[labels]
    letter = np.array([line.x_height for line in level.lines]) * level.stroke  # px of ink in one upright stroke
    written = votes >= np.minimum(0.3 * votes.max(axis=1, keepdims=True), 1.5 * letter).clip(0.5 * letter)
    for piece in np.flatnonzero(written[1:].sum(axis=1) > 1) + 1:
        left, top, width, height, _ = stats[piece]
        part = slice(top, top + height), slice(left, left + width)
        mask, seeds = labels[part] == piece, np.zeros((height, width), np.uint16)
        for k in np.flatnonzero(written[piece]):
            core = (pieces == piece) & (np.abs(heights[k] - 0.5) < 0.5)
            seeds[ys[core] - top, xs[core] - left] = k + 1
        while (free := mask & (seeds == 0)).any():  # they spread evenly over the piece
            seeds[free] = cv2.dilate(seeds, SQUARE)[free]
        owner[part][mask] = seeds[mask]
    own = owner[ys, xs].astype(int) - 1, np.arange(len(xs))
    high, low = np.zeros((2, count))
    np.maximum.at(high, pieces, heights[own])
    np.minimum.at(low, pieces, heights[own])
    whole = (high < HIGHEST) & (low > -LOWEST) & (written.sum(axis=1) == 1)
    beyond = ~within[own] & ~whole[pieces]  # a frame, a stroke of another line
    owner[ys[beyond], xs[beyond]] = 0
    return owner


def cut(level: Level, mask: np.ndarray, line: Baseline) -> PageLine:
    """Box and levelled crop of one line: the mask is its ink."""
    ys, xs = np.nonzero(mask)
    height, margin = ys - rows_at(line, xs), line.x_height / 5  # rows from the baseline
    rows = np.arange(height.min() - margin, height.max() + margin + 1, level.scale)
    left, tall = xs.min() - margin, len(rows) * level.scale
    columns = np.arange(left, max(xs.max() + margin + 1, left + tall), level.scale)  # a lone "I" is a line, too
    across = np.broadcast_to(columns, (len(rows), len(columns))).astype(np.float32)
    down = (rows_at(line, columns) + rows[:, None]).astype(np.float32)
    place = [(row[0] * across + row[1] * down + row[2]).astype(np.float32) for row in level.back]
    fine = [(at + 0.5) / level.scale - 0.5 for at in place]
    image = cv2.remap(level.page, *fine, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    behind = cv2.remap(level.paper, *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    part = slice(max(0, int(down.min()) - 3), int(down.max()) + 4)
    mask = mask[part].astype(np.uint8)
    foreign = cv2.dilate(level.hidden[part] & (1 - mask), SQUARE, iterations=2) & (1 - cv2.dilate(mask, SQUARE))
    foreign = cv2.remap(foreign * 255, across, down - part.start, cv2.INTER_LINEAR)
    along = np.linspace(columns[0], columns[-1] + level.scale, 17)  # enough places to follow a curved line
    edges = rows_at(line, along) + rows[0], rows_at(line, along) + rows[-1] + level.scale
    outline = [level.on_page(along - level.scale / 2, edge - level.scale / 2) for edge in edges]
    places, half = level.on_page(xs, ys), 0.5 / level.scale
    box = box_around(np.concatenate([places - half, places + half]).clip(0, level.page.shape[::-1]))
    return PageLine(box, np.where(foreign > 127, behind, image), np.stack(outline))


def box_around(places: np.ndarray) -> Box:
    """The smallest box of whole pixels around places (N, 2)."""
    low, high = np.floor(places.min(axis=0)).astype(int), np.ceil(places.max(axis=0)).astype(int)
    return (*low.tolist(), *(high - low).clip(1).tolist())


def bounding_box(boxes: list[Box]) -> Box:
    """The smallest box around some."""
    return box_around(np.array([corner for x, y, w, h in boxes for corner in ((x, y), (x + w, y + h))]))


def place_reading(reading: Reading, line: PageLine, pixels: np.ndarray, rotation: int) -> Reading:
    """The reading of a line, prepared as uint8 (128, W), with all its places on the page, turned so to be read."""
    (upper, lower), rows = line.outline, np.nonzero(pixels < INK)[0]
    share = baseline_row(rows) / len(pixels) if rows.size else 0.75
    about = {"baseline": upper + share * (lower - upper), "outline": np.concatenate([upper, lower[::-1]])}
    about = {name: tuple(map(tuple, at.round().astype(int).tolist())) for name, at in about.items()}
    characters = tuple(place_characters(reading.characters, pixels, line.outline))
    return dataclasses.replace(reading, characters=characters, box=line.box, rotation=rotation, **about)


def place_characters(characters: tuple[Character, ...], pixels: np.ndarray, outline: np.ndarray) -> list[Character]:
    """The characters of a prepared line, uint8 (128, W), each with the box of its ink on the page.

    A letter takes the ink in its columns, for it may hang together with its neighbours; a mark such as a comma takes
    the last pieces that lie mostly in its columns or in those of the space before it, since CTC often sees it late.
    """
    if not characters:
        return []
    ink, placed, first = (pixels < INK).astype(np.uint8), [], 0
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(ink)
    left, size = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_AREA]
    along = np.linspace(0, 1, outline.shape[1])
    for character, (begin, end) in zip(characters, cut_columns(characters, ink), strict=True):
        x, y, width, height = cv2.boundingRect(ink[:, begin:end])
        x += begin
        if not (character.text.isalnum() or character.text.isspace()):
            own = 2 * np.bincount(pieces[:, first:end].ravel(), minlength=len(size)) > size
            own[0] = False  # the paper
            if own.any():
                last = own & (left > left[own].max() - APART)
                x, y, width, height = cv2.boundingRect(last[pieces].astype(np.uint8))
        if height == 0:  # a space
            x, y, width, height = begin, 0, end - begin, len(ink)
        first = begin if character.text.isspace() else end
        across, (high, low) = np.array([x, x + width]) / ink.shape[1], np.array([y, y + height]) / len(ink)
        upper, lower = (np.stack([np.interp(across, along, at) for at in edge.T], axis=1) for edge in outline)
        corners = np.concatenate([upper + (lower - upper) * share for share in (high, low)])
        placed.append(dataclasses.replace(character, box=box_around(corners)))
    return placed


def cut_columns(characters: tuple[Character, ...], ink: np.ndarray) -> list[tuple[int, int]]:
    """The columns of a prepared line, its ink 0 or 1 (128, W), that belong to each character.

    CTC finds a character somewhere in its letter, so its own frames are less than the letter. Between two, the cut is
    where the least ink is; of several such columns, the one nearest to half of the way.
    """
    width, amount = ink.shape[1], ink.sum(axis=0)
    spans = [character.columns for character in characters]
    middles = [(begin + end) // 2 for begin, end in spans]
    pitch = float(np.median(np.diff(middles) if len(spans) > 1 else np.ptp(spans)))
    cuts = [max(0, spans[0][0] - pitch)]
    for k, (left, right) in enumerate(itertools.pairwise(spans)):
        between = range(middles[k], min(max(middles[k + 1], middles[k] + 1), width))
        cuts.append(min(between, key=lambda x: (amount[x], abs(x - (left[1] + right[0]) / 2))))
    cuts = [round(cut) for cut in [*cuts, min(width, spans[-1][1] + pitch)]]
    return [(begin, max(end, begin + 1)) for begin, end in itertools.pairwise(cuts)]
