"""Train the small network that finds the lines of a page (hwrlib/page/maps.py), on pages seen anew each time.

Pages with known baselines (Hooker's letters, IAM's forms), and pages put together from lines of handwriting: columns,
lists, notes, single words, headings, forms, whiteboards. Each is ruled, cut, turned, photographed on a desk, shaded.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import datasets
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.optim import swa_utils

from hwrlib.data import load_lines
from hwrlib.images import load_page, prepare_pixels
from hwrlib.page.ink import baseline_row
from hwrlib.page.maps import NAMES, STRIDE, LineMapper, normalise

SIDE = 512  # px of a training picture
RATE = 3e-3


class Line(NamedTuple):
    """A line of handwriting on white paper."""

    pixels: np.ndarray  # uint8 (H, W)
    baseline: float  # its row
    x_height: float  # px


class Page(NamedTuple):
    """A picture and its lines."""

    grey: np.ndarray  # uint8 (H, W)
    lines: list[tuple[np.ndarray, float]]  # (N, 2) places (x, y) of a baseline, from the writing's left; x-height


def measure(pixels: np.ndarray) -> Line | None:
    """A line's baseline and x-height, by the rows of its ink; None where they cannot be told."""
    rows, columns = np.nonzero(pixels < 128)
    if rows.size < 30:
        return None
    baseline = baseline_row(rows)
    profile = np.bincount(rows, minlength=len(pixels))
    above = profile[: round(baseline)][::-1]
    few = np.flatnonzero(above < 0.4 * above[: max(1, len(above) // 2)].max(initial=1))
    x_height = float(few[few > 3][0]) if (few > 3).any() else 0.0
    if x_height < 6:
        return None
    return Line(pixels[:, columns.min() : columns.max() + 1], baseline, x_height)


def lettering(rng: np.random.Generator) -> Line | None:
    """A few letters of one stroke's width, as plotters and drawing programs write them."""
    letters = "ACEINORSTUVabcdeghiklmnoprstuvwy"
    words = ("".join(rng.choice(list(letters), int(rng.integers(1, 9)))) for _ in range(int(rng.integers(1, 5))))
    font, thick = int(rng.choice([0, 2, 3, 4, 5, 6, 7])), int(rng.integers(2, 7))
    canvas = np.full((160, 2200), 255, np.uint8)
    cv2.putText(canvas, " ".join(words), (20, 100), font, 2.2, 0, thick, cv2.LINE_AA)
    return measure(canvas)


def piece(line: Line, rng: np.random.Generator) -> Line:
    """One word or some of a line, cut at gaps as wide as an n."""
    ink = (line.pixels < 128).any(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[True], ink, [True]]).astype(int)))
    gaps = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False) if b - a > 0.6 * line.x_height]
    starts, ends = [0, *(b for _, b in gaps)], [*(a for a, _ in gaps), len(ink)]
    first = int(rng.integers(len(starts)))
    last = min(len(ends) - 1, first + int(rng.integers(0, 3)))
    return line._replace(pixels=line.pixels[:, starts[first] : max(ends[last], starts[first] + 1)])


def paste(page: Page, line: Line, x: float, y: float, x_height: float, ink: float, most: float) -> float:
    """Write a line on a page, its baseline at y, its end before column `most`; where it ends."""
    scale = x_height / line.x_height
    height, width = (max(2, round(side * scale)) for side in line.pixels.shape)
    small = cv2.resize(line.pixels, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    small = small[:, : max(2, int(min(most, page.grey.shape[1] - 1) - x))]
    columns = np.flatnonzero((small < 160).any(axis=0))
    if columns.size < 2:
        return x
    left, top = round(x), round(y - line.baseline * scale)
    rows = slice(max(0, top), min(page.grey.shape[0], top + height))
    if rows.stop - rows.start < height / 2:
        return x
    on_page = page.grey[rows, left : left + small.shape[1]]
    part = small[rows.start - top : rows.stop - top, : on_page.shape[1]]
    on_page[:] = np.minimum(on_page, 255 - (255 - part.astype(np.float32)) * ink)
    places = np.array([[left + columns[0], y], [left + columns[-1], y]], float)
    page.lines.append((places, x_height))
    return float(left + columns[-1])


class Hand(NamedTuple):
    """How a page is written: lines that stand together in the bank, and so are by one hand, nearly."""

    bank: list[Line]
    x_height: float
    ink: float  # 0 to 1

    def line(self, rng: np.random.Generator, short: bool = False) -> Line:
        """Any line of the hand, or a word or some of one."""
        line = self.bank[int(rng.integers(len(self.bank)))]
        return piece(line, rng) if short else line


def compose(bank: list[Line], rng: np.random.Generator) -> Page:
    """A page of handwriting as people lay it out: text, a list, columns, notes here and there, a word, or nothing."""
    height, width = (int(side) for side in rng.integers(420, 1000, 2))
    page, first = Page(np.full((height, width), 255, np.uint8), []), int(rng.integers(len(bank)))
    x_height = float(np.exp(rng.uniform(np.log(9), np.log(30))))
    hand = Hand([bank[(first + k) % len(bank)] for k in range(40)], x_height, rng.uniform(0.45, 1))
    kind = rng.choice(["text", "columns", "list", "notes", "word", "none"], p=[0.28, 0.2, 0.14, 0.2, 0.13, 0.05])
    if kind in ("text", "list"):
        left, y = rng.uniform(0.02, 0.15) * width, x_height * rng.uniform(1.5, 5)
        bottom = height * (rng.uniform(0.3, 1.0) if rng.random() < 0.5 else 1)
        write_block(page, hand, (left, width * rng.uniform(0.7, 1.0)), (y, bottom), kind == "list", rng)
    elif kind == "columns":
        count = int(rng.integers(2, 4))
        edges = np.linspace(0, width, count + 1) + np.r_[0, rng.normal(0, 0.03 * width, count - 1), 0]
        hand = hand._replace(x_height=min(x_height, width / count / 9))
        for left, right in itertools.pairwise(edges):
            gap, rows = hand.x_height * rng.uniform(0.8, 2.5), (hand.x_height * rng.uniform(1.5, 8), height)
            write_block(page, hand, (left + gap, right - gap / 2), rows, rng.random() < 0.4, rng)
    elif kind == "notes":
        for _ in range(int(rng.integers(1, 8))):
            write_note(page, hand, rng)
    elif kind == "word":
        page = write_word(page, hand, rng)
    return page


def write_block(page: Page, hand: Hand, columns: tuple, rows: tuple, short: bool, rng: np.random.Generator) -> None:
    """Lines between two columns and two rows of a page, short ones or of several parts."""
    x_height, (left, right), (y, bottom) = hand.x_height, columns, rows
    pitch, slope = x_height * rng.uniform(2.0, 4.2), rng.normal(0, 0.01)
    while y < bottom:
        x, begun = left + max(0, rng.normal(0, 0.5)) * x_height * (2 if rng.random() < 0.2 else 1), len(page.lines)
        for _ in range(1 if short else int(rng.integers(1, 5))):
            line, start, count = hand.line(rng, short or rng.random() < 0.4), x, len(page.lines)
            x = paste(page, line, x, y + slope * (x - left), x_height * rng.normal(1, 0.04), hand.ink, right)
            if len(page.lines) > count > begun:  # one line with what was written before
                (before, size), (places, _) = page.lines[-2:]
                page.lines[-2:] = [(np.concatenate([before, places]), size)]
            x += x_height * (rng.uniform(2, 6) if rng.random() < 0.2 else rng.uniform(0.8, 1.8))
            if x > right - 4 * x_height or x <= start:
                break
        y += pitch * max(0.75, rng.normal(1, 0.06)) * (2 if rng.random() < 0.04 else 1)


def write_note(page: Page, hand: Hand, rng: np.random.Generator) -> None:
    """A few words anywhere on a page where nothing is near, now and then in a box or underlined."""
    (height, width), size, line = (
        page.grey.shape,
        hand.x_height * rng.uniform(0.7, 2),
        hand.line(rng, rng.random() < 0.7),
    )
    x, y, count = rng.uniform(0, 0.6) * width, rng.uniform(0.08, 0.95) * height, len(page.lines)
    if any(abs(places[0, 1] - y) < 2.4 * max(size, other) for places, other in page.lines):
        return
    end = paste(page, line, x, y, size, hand.ink, width)
    if len(page.lines) > count and rng.random() < 0.3:
        corner, other = (int(x - size), int(y - 2.2 * size)), (int(end + size), int(y + rng.uniform(0.4, 1.2) * size))
        shade, thick = int(rng.uniform(0, 180)), int(rng.integers(1, 4))
        if rng.random() < 0.5:
            cv2.rectangle(page.grey, corner, other, shade, thick)
        else:
            cv2.line(page.grey, (corner[0], other[1]), other, shade, thick)


def write_word(page: Page, hand: Hand, rng: np.random.Generator) -> Page:
    """One word, as wide as a quarter of the page or nearly all of it; mostly the page is then cut close around it."""
    (height, width), line = page.grey.shape, hand.line(rng, rng.random() < 0.8)
    size = width * rng.uniform(0.25, 0.85) / line.pixels.shape[1] * line.x_height
    size = min(size, line.x_height * 5, height / 5)
    span = size * line.pixels.shape[1] / line.x_height
    x, y = rng.uniform(0.02, 0.98) * max(1, width - span), height * rng.uniform(0.45, 0.75)
    paste(page, line, x, y, size, hand.ink, width)
    if rng.random() < 0.4:
        return page
    top, bottom = int(max(0, y - size * rng.uniform(2, 4))), int(min(height, y + size * rng.uniform(1, 3)))
    left, right = (
        int(np.clip(at, 0, width)) for at in (x - size * rng.uniform(0.1, 4), x + span + size * rng.uniform(0.1, 4))
    )
    lines = [(places - (left, top), size) for places, size in page.lines]
    return Page(np.ascontiguousarray(page.grey[top:bottom, left:right]), lines)


def decorate(page: Page, rng: np.random.Generator) -> Page:
    """Rulings, squares, a margin, a frame, marks that are no writing."""
    grey = page.grey.copy()
    height, width = grey.shape
    size = page.lines[0][1] if page.lines else 15.0
    shade, thick = int(rng.uniform(90, 235)), int(rng.integers(1, 3))
    lines = np.full_like(grey, 255)
    if rng.random() < 0.35:
        pitch = size * rng.uniform(1.2, 4)
        for y in np.arange(rng.uniform(0, pitch), height, pitch):
            cv2.line(lines, (0, int(y)), (width, int(y)), shade, thick)
        if rng.random() < 0.3:
            for x in np.arange(rng.uniform(0, pitch), width, pitch):
                cv2.line(lines, (int(x), 0), (int(x), height), shade, thick)
    if rng.random() < 0.15:
        x = int(rng.uniform(0.03, 0.2) * width)
        cv2.line(lines, (x, 0), (x, height), shade, thick)
    if rng.random() < 0.1:
        inset = int(rng.uniform(0.005, 0.04) * width)
        cv2.rectangle(lines, (inset, inset), (width - inset, height - inset), int(rng.uniform(0, 200)), thick * 2)
    for places, own in page.lines:  # underlined headings
        if rng.random() < 0.05:
            y = int(places[:, 1].mean() + rng.uniform(0.3, 0.9) * own)
            cv2.line(lines, (int(places[0, 0]), y), (int(places[-1, 0]), y), int(rng.uniform(0, 120)), thick + 1)
    for _ in range(int(rng.integers(1, 5)) if rng.random() < 0.25 else 0):  # drawings, arrows, a clock, a photo
        x, y, r = (int(rng.uniform(0, side)) for side in (width, height, min(width, height) / 5))
        colour, kind = int(rng.uniform(0, 200)), rng.integers(5)
        away = not any(
            places[0, 0] - r < x < places[-1, 0] + r and abs(places[0, 1] - y) < r for places, _ in page.lines
        )
        if kind == 0:
            cv2.circle(lines, (x, y), r, colour, thick + 1)
        elif kind == 1:
            end = int(x + rng.normal(0, 2) * r), int(y + rng.normal(0, 2) * r)
            cv2.arrowedLine(lines, (x, y), end, colour, thick + 1)
        elif kind == 2 and away:
            noise = rng.integers(0, 200, (max(2, r // 8), max(2, r // 6)), dtype=np.uint8)
            photo = cv2.resize(noise, (r + 2, r + 2), interpolation=cv2.INTER_CUBIC)
            part = lines[y : y + r, x : x + r]
            part[:] = photo[: part.shape[0], : part.shape[1]]
        elif kind == 4 and away:
            cv2.circle(lines, (x, y), r, colour, thick + 2)
            for angle in np.radians(np.arange(0, 360, 30)):
                ray = np.array([np.cos(angle), np.sin(angle)])
                a, b = ((x, y) + r * share * ray for share in (0.8, 0.95))
                cv2.line(lines, a.astype(int).tolist(), b.astype(int).tolist(), colour, thick + 1)
        elif kind == 3:
            cv2.rectangle(lines, (x, y), (x + 2 * r, y + r), colour, thick)
    return page._replace(grey=np.minimum(grey, lines))


def shine_through(grey: np.ndarray, back: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The page with the writing on its back seen through the paper, from right to left: that is not to be read."""
    back = cv2.GaussianBlur(cv2.resize(back[:, ::-1], grey.shape[::-1]), (0, 0), rng.uniform(0.3, 1.5)).astype(
        np.float32
    )
    depth = np.clip(np.median(back) - back, 0, None) * rng.uniform(0.15, 0.6)
    return (grey - depth).clip(0, 255).astype(np.uint8)


def texture(side: int, rng: np.random.Generator) -> np.ndarray:
    """A desk, a wall, a board: any brightness, grain, bars across; float32 (side, side)."""
    grain = rng.normal(0, 1, (int(rng.integers(2, 60)), int(rng.integers(2, 60)))).astype(np.float32)
    desk = cv2.resize(grain, (side, side), interpolation=cv2.INTER_CUBIC) * rng.uniform(0, 18) + rng.uniform(5, 235)
    for _ in range(int(rng.integers(0, 6))):
        a, b = rng.uniform(-0.3, 1.3, (2, 2)) * side
        cv2.line(desk, a.astype(int).tolist(), b.astype(int).tolist(), rng.uniform(0, 255), int(rng.integers(1, 30)))
    return desk


def photograph(page: Page, rng: np.random.Generator) -> Page:
    """The page as a camera sees it: cut, turned, in perspective, on a desk, (SIDE, SIDE) pixels."""
    height, width = page.grey.shape
    sizes = [size for _, size in page.lines] or [15.0]
    scale = SIDE / max(height, width) * (rng.uniform(0.4, 1.0) if rng.random() < 0.5 else 1.0)
    if rng.random() < 0.35:  # a part of the page, larger
        scale *= rng.uniform(1, 2)
    scale *= min(1, 70 / (scale * max(sizes)))
    scale *= max(1, 3.2 / (scale * np.median(sizes)))
    angle, sideways = rng.normal(0, 5) if rng.random() < 0.7 else 0, rng.random() < 0.05
    angle += rng.choice([90, 270]) if sideways else 0
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    seen = corners @ turn[:, :2].T + turn[:, 2]
    seen += rng.normal(0, 0.03, (4, 2)) * np.ptp(seen, axis=0) * (rng.random() < 0.5)
    low, high = seen.min(axis=0), seen.max(axis=0)
    room = SIDE - (high - low)
    seen = seen - low + np.where(room > 0, rng.uniform(0, 1, 2) * room, rng.uniform(0, 1, 2) * room)
    matrix = cv2.getPerspectiveTransform(corners, seen.astype(np.float32))
    soft = cv2.GaussianBlur(page.grey, (0, 0), 0.45 / scale) if scale < 0.8 else page.grey
    grey = cv2.warpPerspective(soft, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    grey = grey.astype(np.float32) * rng.uniform(0.5, 1)
    if rng.random() < 0.6:  # what is around the sheet
        sheet = cv2.warpPerspective(np.full_like(page.grey, 255), matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
        sheet = sheet.astype(np.float32) / 255
        grey = sheet * grey + (1 - sheet) * texture(SIDE, rng)
    lines = []
    for places, size in [] if sideways else page.lines:  # what stands on its side is not to be found
        edges = cv2.perspectiveTransform(np.stack([places, places - (0, size)]).astype(np.float32), matrix)
        lines.append((edges, float(np.linalg.norm(edges[0] - edges[1], axis=1).mean())))
    return Page(grey, lines)


def light(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uneven light, hard shadows, white on black, faint contrast, blur, noise: uint8."""
    side = len(grey)
    if rng.random() < 0.6:
        slope = rng.uniform(0.5, 1.1, (2, 2)).astype(np.float32)
        grey = grey * cv2.resize(slope, (side, side), interpolation=cv2.INTER_LINEAR)
    for _ in range(int(rng.integers(1, 3)) if rng.random() < 0.3 else 0):
        shadow = np.ones((side, side), np.float32)
        places = rng.uniform(-0.3, 1.3, (int(rng.integers(3, 6)), 2)) * side
        cv2.fillPoly(shadow, [places.astype(np.int32)], float(rng.uniform(0.3, 0.85)))
        grey = grey * cv2.GaussianBlur(shadow, (0, 0), rng.uniform(0.5, 12))
    if rng.random() < 0.12:
        grey = 255 - grey
    if rng.random() < 0.25:
        grey = grey.mean() + (grey - grey.mean()) * rng.uniform(0.25, 0.8)
    if rng.random() < 0.4:
        grey = cv2.GaussianBlur(grey, (0, 0), rng.uniform(0.3, 1.6))
    grey = grey + rng.normal(0, rng.uniform(0, 8), grey.shape)
    if rng.random() < 0.06:  # dithered to 1 bit
        grey = (
            (grey > rng.uniform(0, 255, grey.shape)) * 255.0
            if rng.random() < 0.5
            else (grey > grey.mean() - 25) * 255.0
        )
    return grey.clip(0, 255).astype(np.uint8)


def targets(lines: list, side: int = SIDE // STRIDE) -> np.ndarray:
    """The three maps that the network is to draw, uint8 (3, side, side): 0 or 1."""
    maps = np.zeros((len(NAMES), side, side), np.uint8)
    for edges, size in lines:
        half = (edges + 0.5) / STRIDE - 0.5
        thick = int(np.clip(0.13 * size, 2, 6))
        for drawn, places in zip(maps, half, strict=False):
            cv2.polylines(drawn, [np.round(places * 8).astype(np.int32)], False, 1, thick, shift=3)
        for base, top in (half[:, 0], half[:, -1]):
            reach = 0.4 * (top - base)
            ends = np.round(np.stack([base - reach, top + reach]) * 8).astype(np.int32)
            cv2.polylines(maps[2], [ends], False, 1, thick + 1, shift=3)
    return maps


def sample(pages: list[Page], bank: list[Line], seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One training picture, normalised (1, SIDE, SIDE), and its maps."""
    rng = np.random.default_rng(seed)
    if rng.random() < 0.4:
        page = pages[int(rng.integers(len(pages)))]
        page = decorate(page, rng) if rng.random() < 0.3 else page
    else:
        page = decorate(compose(bank, rng), rng)
    if rng.random() < 0.12:
        page = page._replace(grey=shine_through(page.grey, pages[int(rng.integers(len(pages)))].grey, rng))
    seen = photograph(page, rng)
    return normalise(light(seen.grey, rng))[None], targets(seen.lines)


class Samples(torch.utils.data.Dataset):
    """As many training pictures as steps want."""

    def __init__(self, pages: list[Page], bank: list[Line], count: int, seed: int):
        self.pages, self.bank, self.count, self.seed = pages, bank, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return sample(self.pages, self.bank, (self.seed, index))


def page_x_height(grey: np.ndarray, baseline: np.ndarray) -> float:
    """Rows from a baseline up to where the ink of small letters ends; 0 where it cannot be told."""
    columns = np.arange(baseline[0, 0], baseline[-1, 0])
    rows = np.interp(columns, *baseline.T)
    up = np.arange(-60, 20)
    strip = cv2.remap(
        grey, *(at.astype(np.float32) for at in np.broadcast_arrays(columns, rows + up[:, None])), cv2.INTER_LINEAR
    )
    ink = (strip < np.median(strip) - 25).sum(axis=1).astype(float)
    above = cv2.blur(ink[:60][::-1][:, None], (1, 3)).ravel()
    few = np.flatnonzero(above[3:] < 0.5 * above[2:12].max()) + 3
    return float(few[0]) if few.size else 0.0


def read_pages(path: str | Path, split: str | None = None) -> list[Page]:
    """Pages of a parquet file: images with baselines (Hooker's), or with a box a line (IAM's: baseline at 72 %)."""
    pages = []
    for row in datasets.Dataset.from_parquet(str(path)).cast_column("image", datasets.Image(decode=False)):
        if split and row["split"] != split:
            continue
        grey = load_page(row["image"]["bytes"])
        if "boxes" in row:
            found = [np.array([[x, y + 0.72 * h], [x + w, y + 0.72 * h]], float) for x, y, w, h in row["boxes"]]
            sizes = [0.3 * h for *_, h in row["boxes"]]
        else:
            found = [np.array(line["baseline"], float) for line in row["lines"] if len(line["baseline"]) > 1]
            found = [line[np.argsort(line[:, 0], kind="stable")] for line in found]
            found = [line for line in found if np.ptp(line[:, 0]) > 8]
            sizes = [page_x_height(grey, line) for line in found]
        size = float(np.median([size for size in sizes if size] or [10]))  # one hand wrote them all
        pages.append(Page(grey, [(line, size) for line in found if len(line) > 1]))
    return pages


def loss_of(logits: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, what is marked counting three times, plus Dice (Milletari et al., 2016), of each map."""
    logits, maps = logits.float(), maps.float()
    entropy = F.binary_cross_entropy_with_logits(logits, maps, pos_weight=torch.tensor(3.0))
    probabilities = logits.sigmoid()
    both, sums = (probabilities * maps).sum((0, 2, 3)), (probabilities + maps).sum((0, 2, 3))
    return entropy + (1 - (2 * both + 1) / (sums + 1)).mean()


def main(arguments: list[str] | None = None) -> None:
    """Train, and write the weights in float16."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.lines", description=__doc__)
    parser.add_argument("output", type=Path, help="safetensors file to write")
    parser.add_argument("--hooker", required=True, help="parquet file of pages with baselines; split train is used")
    parser.add_argument("--iam", required=True, help="parquet file of pages with boxes; the last ten are left out")
    parser.add_argument("--lines", nargs="+", required=True, help="data that hwrlib.data.load_lines takes")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--most", type=int, default=2500, help="lines to take of each data set")
    parser.add_argument("--init", type=Path, help="weights to go on from")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    iam = read_pages(options.iam)[:-10]
    pages = read_pages(options.hooker, "train") + iam * 6
    bank = []
    for source in options.lines:
        rows = load_lines("train", source)
        some = range(0, len(rows), max(1, len(rows) // options.most))
        for k in some:
            grey = load_page(rows[k]["image"])
            short = max(0, grey.shape[0] - grey.shape[1])  # a lone letter gets paper beside it
            bank.append(measure(prepare_pixels(np.pad(grey, ((0, 0), (0, short)), constant_values=255))))
    rng = np.random.default_rng(options.seed)
    bank = [line for line in bank + [lettering(rng) for _ in range(options.most // 3)] if line]
    print(f"{len(pages)} pages, {len(bank)} lines", flush=True)
    network = LineMapper().to(memory_format=torch.channels_last)
    if options.init:
        network.load_state_dict({name: part.float() for name, part in load_file(options.init).items()})
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-3)
    ema = swa_utils.AveragedModel(network, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True)

    def save() -> None:
        save_file({name: part.half().contiguous() for name, part in ema.module.state_dict().items()}, options.output)

    loader = torch.utils.data.DataLoader(Samples(pages, bank, 10**7, options.seed), batch_size=4)
    began = kept = time.monotonic()
    for step, (pictures, maps) in enumerate(loader, 1):
        done = (time.monotonic() - began) / 60 / options.minutes
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, step / 100, 1.6 * (1 - done))
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(pictures.to(memory_format=torch.channels_last))
        loss = loss_of(logits, maps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(network)
        if step % 50 == 0:
            print(f"step {step}, {done:.3f} done, loss {loss.item():.4f}", flush=True)
        if time.monotonic() - kept > 300:
            kept = time.monotonic()
            save()
    save()


if __name__ == "__main__":
    main()
