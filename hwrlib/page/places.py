"""Lines of a page that is turned to be read, and where on the page as given each character stands (chapters 7, 9)."""

import dataclasses
import itertools
from typing import Literal

import cv2
import numpy as np

from hwrlib.ctc import Character, Reading
from hwrlib.page.baselines import find_baselines
from hwrlib.page.ink import baseline_row, level_ink
from hwrlib.page.lines import PageLine, crop_line, cut_lines, is_tight

Box = tuple[int, int, int, int]
Kind = Literal["line", "page"] | None
INK = 128  # grey level of a prepared line, below which is ink
APART = 16  # px of a prepared line: the pieces of one mark, as of a colon, begin no further from one another


def turn_back(box: Box, shape: tuple[int, int], rotation: int) -> Box:
    """Where a box (x, y, width, height) was before its picture was turned clockwise and got this shape (H, W).

    >>> turn_back((0, 10, 50, 20), (300, 200), 90)
    (10, 150, 20, 50)
    """
    for _ in range(rotation // 90):
        (x, y, width, height), (rows, columns) = box, shape
        box, shape = (y, columns - x - width, height, width), (columns, rows)
    return box


def turn_line_back(line: PageLine, shape: tuple[int, int], rotation: int) -> PageLine:
    """The line with its places where they were before the page was turned, as :func:`turn_back` does it."""
    box, outline, baseline = turn_back(line.box, shape, rotation), line.outline, line.baseline
    for _ in range(rotation // 90):
        outline, baseline = (
            None if points is None else np.stack([points[..., 1], shape[1] - points[..., 0]], axis=-1)
            for points in (outline, baseline)
        )
        shape = shape[::-1]
    return dataclasses.replace(line, box=box, outline=outline, baseline=baseline)


def find_turned(page: np.ndarray, kind: Kind, rotation: int) -> list[PageLine]:
    """The lines of a page that is turned clockwise to be read; their places lie on the page as given.

    A lone one is a line, which is cropped only where it must be; a long strip without one is read as it is.
    """
    turned = np.ascontiguousarray(np.rot90(page, -rotation // 90)) if rotation else page
    height, width = turned.shape
    whole = PageLine((0, 0, width, height), turned)
    if kind == "line":
        lines = [crop_line(turned) or whole]
    else:
        baselines = find_baselines(turned)
        level = level_ink(turned, baselines) if baselines else None
        lines = cut_lines(level) if level else []
        if kind is None and len(lines) == 1 and is_tight(level):
            lines = [dataclasses.replace(whole, box=lines[0].box, baseline=lines[0].baseline)]
        elif kind is None and not lines and width >= 5 * height:
            lines = [whole]
    return [turn_line_back(line, turned.shape, rotation) for line in lines]


def bounding_box(boxes: list[Box]) -> Box:
    """The smallest box (x, y, width, height) around some."""
    x, y = (min(box[k] for box in boxes) for k in (0, 1))
    return x, y, max(box[0] + box[2] for box in boxes) - x, max(box[1] + box[3] for box in boxes) - y


def cut_columns(characters: tuple[Character, ...], ink: np.ndarray) -> list[tuple[int, int]]:
    """The columns of a prepared line, its ink bool (128, W), that belong to each character.

    CTC finds a character somewhere in its letter, so its own frames are less than the letter. Between two, the cut is
    where the least ink is; of several such columns, the one nearest to half of the way.
    """
    width, amount = ink.shape[1], ink.sum(axis=0)
    spans = [character.columns for character in characters]
    middles = [(begin + end) // 2 for begin, end in spans]
    pitch = float(np.median(np.diff(middles))) if len(spans) > 1 else spans[0][1] - spans[0][0]
    cuts = [max(0, spans[0][0] - pitch)]
    for k, (left, right) in enumerate(itertools.pairwise(spans)):
        choice = np.arange(middles[k], min(max(middles[k + 1], middles[k] + 1), width))
        half = (left[1] + right[0]) / 2
        cuts.append(choice[np.lexsort((abs(choice - half), amount[choice]))[0]])
    cuts = [round(float(cut)) for cut in [*cuts, min(width, spans[-1][1] + pitch)]]
    return [(begin, max(end, begin + 1)) for begin, end in itertools.pairwise(cuts)]


def place_characters(
    characters: tuple[Character, ...], pixels: np.ndarray, outline: np.ndarray
) -> tuple[Character, ...]:
    """The characters of a prepared line, uint8 (128, W), each with the box of its ink on the page.

    A letter takes the ink in its columns, for it may hang together with its neighbours; a mark such as a comma takes
    the last pieces that lie mostly in its columns or in those of the space before it, since CTC often sees it late.
    """
    if not characters:
        return ()
    ink, placed, first = pixels < INK, [], 0
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(ink.astype(np.uint8))
    left, size = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_AREA]
    for character, (begin, end) in zip(characters, cut_columns(characters, ink), strict=True):
        ys, xs = np.nonzero(ink[:, begin:end])
        xs += begin
        if not (character.text.isalnum() or character.text.isspace()):
            own = 2 * np.bincount(pieces[:, first:end].ravel(), minlength=len(size)) > size
            own[0] = False  # the paper
            if own.any():
                ys, xs = np.nonzero((own & (left > left[own].max() - APART))[pieces])
        if ys.size == 0:  # a space
            ys, xs = np.array([0, len(ink) - 1]), np.array([begin, end - 1])
        first = begin if character.text.isspace() else end
        across, down = (np.array([at.min(), at.max() + 1]) for at in (xs, ys))
        corners = on_page(outline, across / pixels.shape[1], down / len(pixels))
        low, high = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int)
        box = (*low.tolist(), *(high - low).clip(1).tolist())
        placed.append(dataclasses.replace(character, box=box))
    return tuple(placed)


def place_reading(reading: Reading, line: PageLine, pixels: np.ndarray, rotation: int) -> Reading:
    """The reading of a line, prepared as uint8 (128, W), with all its places on the page, turned so to be read."""
    baseline, rows = line.baseline, np.nonzero(pixels < INK)[0]
    if baseline is None:
        share = baseline_row(rows) / len(pixels) if rows.size else 0.75
        baseline = on_page(line.outline, np.array([0.0, 1.0]), np.array([share]))
    outline = np.concatenate([line.outline[0], line.outline[1, ::-1]])
    baseline, outline = (tuple(map(tuple, at.round().astype(int).tolist())) for at in (baseline, outline))
    characters = place_characters(reading.characters, pixels, line.outline)
    about = {"box": line.box, "rotation": rotation, "baseline": baseline, "outline": outline}
    return dataclasses.replace(reading, characters=characters, **about)


def on_page(outline: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """(x, y) on the page of places on a crop, shares (0 to 1) of its width and of its height, each with each."""
    along = np.linspace(0, 1, outline.shape[1])
    edges = np.stack([[np.interp(across, along, edge[:, k]) for k in (0, 1)] for edge in outline])  # (2, 2, across)
    return np.concatenate([(edges[0] + (edges[1] - edges[0]) * share).T for share in down])
