"""Where on the page each character that was read stands (chapter 9)."""

import dataclasses
import itertools

import numpy as np

from hwrlib.ctc import Character
from hwrlib.page.lines import PageLine

Box = tuple[int, int, int, int]
INK = 128  # grey level of a prepared line, below which is ink


def turn_back(box: Box, shape: tuple[int, int], quarters: int) -> Box:
    """Where a box (x, y, width, height) was before its picture was turned clockwise and got this shape (H, W).

    >>> turn_back((0, 10, 50, 20), (300, 200), 1)
    (10, 150, 20, 50)
    """
    for _ in range(quarters):
        (x, y, width, height), (rows, columns) = box, shape
        box, shape = (y, columns - x - width, height, width), (columns, rows)
    return box


def turn_line_back(line: PageLine, shape: tuple[int, int], quarters: int) -> PageLine:
    """The line with its box and outline where they were before the page was turned, as :func:`turn_back` does it."""
    outline, (rows, columns) = line.outline, shape
    for _ in range(quarters):
        outline, (rows, columns) = np.stack([outline[..., 1], columns - outline[..., 0]], axis=-1), (columns, rows)
    return dataclasses.replace(line, box=turn_back(line.box, shape, quarters), outline=outline)


def bounding_box(boxes: list[Box]) -> Box:
    """The smallest box (x, y, width, height) around some.

    >>> bounding_box([(10, 0, 5, 5), (0, 2, 4, 9)])
    (0, 0, 15, 11)
    """
    x, y = (min(box[k] for box in boxes) for k in (0, 1))
    return x, y, max(box[0] + box[2] for box in boxes) - x, max(box[1] + box[3] for box in boxes) - y


def cut_columns(characters: tuple[Character, ...], width: int) -> list[tuple[int, int]]:
    """The columns of a prepared line that belong to each character: half of the way to its neighbours.

    Arguments:
        characters: as read; CTC finds each somewhere in its letter, so its own frames are less than the letter.
        width: of the prepared line, px.
    """
    spans = [character.columns for character in characters]
    middles = [(begin + end) / 2 for begin, end in spans]
    pitch = float(np.median(np.diff(middles))) if len(spans) > 1 else spans[0][1] - spans[0][0]
    cuts = [(left[1] + right[0]) / 2 for left, right in itertools.pairwise(spans)]
    cuts = np.clip([spans[0][0] - pitch, *cuts, spans[-1][1] + pitch], 0, width).round().astype(int).tolist()
    return [(begin, max(end, begin + 1)) for begin, end in itertools.pairwise(cuts)]


def place_characters(
    characters: tuple[Character, ...], pixels: np.ndarray, outline: np.ndarray
) -> tuple[Character, ...]:
    """The characters of a line, each with the box of its ink on the page.

    Chapter 9: notebooks/09_read_an_archive.ipynb.

    Arguments:
        characters: of the line's reading.
        pixels: the prepared line, uint8 (128, W).
        outline: of its :class:`hwrlib.page.lines.PageLine`.
    """
    if not characters:
        return ()
    ink, placed = pixels < INK, []
    for character, (begin, end) in zip(characters, cut_columns(characters, pixels.shape[1]), strict=True):
        rows, columns = (np.flatnonzero(ink[:, begin:end].any(axis=axis)) for axis in (1, 0))
        if rows.size == 0:  # a space
            rows, columns = np.arange(len(ink)), np.arange(end - begin)
        across = np.array([columns[0], columns[-1] + 1]) + begin
        corners = on_page(outline, across / pixels.shape[1], np.array([rows[0], rows[-1] + 1]) / len(pixels))
        low, high = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int)
        box = (*low.tolist(), *(high - low).clip(1).tolist())
        placed.append(dataclasses.replace(character, box=box))
    return tuple(placed)


def on_page(outline: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """(x, y) on the page of places on a crop, shares (0 to 1) of its width and of its height, each with each."""
    along = np.linspace(0, 1, outline.shape[1])
    edges = np.stack([[np.interp(across, along, edge[:, k]) for k in (0, 1)] for edge in outline])  # (2, 2, across)
    return np.concatenate([(edges[0] + (edges[1] - edges[0]) * share).T for share in down])
