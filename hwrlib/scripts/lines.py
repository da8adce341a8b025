"""Train the small network that finds the lines of a page (hwrlib/page/maps.py), on pages seen anew each time.

Pages with known baselines (Hooker's letters, IAM's forms), and pages put together from lines of handwriting: columns,
lists, notes, single words, headings, forms, whiteboards. Each is ruled, cut, turned, photographed on a desk, shaded.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
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

SIDE, BATCH = 512, 4  # px of a training picture, and how many at once
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
    above = np.bincount(rows, minlength=len(pixels))[: round(baseline)][::-1]
    few = np.flatnonzero(above < 0.4 * above[: max(1, len(above) // 2)].max(initial=1))
    few = few[few > 3]
    if few.size == 0 or few[0] < 6:
        return None
    return Line(pixels[:, columns.min() : columns.max() + 1], baseline, float(few[0]))


def lettering(rng: np.random.Generator) -> Line | None:
    """A few letters of one stroke's width, as plotters and drawing programs write them."""
    letters = list("ACEINORSTUVabcdeghiklmnoprstuvwy")
    words = ("".join(rng.choice(letters, int(rng.integers(1, 9)))) for _ in range(int(rng.integers(1, 5))))
    font, thick = int(rng.choice([0, 2, 3, 4, 5, 6, 7])), int(rng.integers(2, 7))
    canvas = np.full((160, 2200), 255, np.uint8)
    cv2.putText(canvas, " ".join(words), (20, 100), font, 2.2, 0, thick, cv2.LINE_AA)
    return measure(canvas)


class Sheet:
    """A page that one hand writes: lines that stand together in the bank, and so are by one hand, nearly."""

    def __init__(self, bank: list[Line], rng: np.random.Generator):
        self.rng, (self.height, self.width), first = rng, rng.integers(420, 1000, 2).tolist(), rng.integers(len(bank))
        self.grey, self.lines = np.full((self.height, self.width), 255, np.uint8), []
        self.x_height, self.ink = float(np.exp(rng.uniform(np.log(9), np.log(30)))), rng.uniform(0.45, 1)
        self.hand = [bank[(first + k) % len(bank)] for k in range(40)]

    def choose(self, short: bool) -> Line:
        """Any line of the hand, or a word or some of one, cut at gaps as wide as an n."""
        line = self.hand[self.rng.integers(len(self.hand))]
        if not short:
            return line
        ink = np.flatnonzero((line.pixels < 128).any(axis=0))
        gaps = np.flatnonzero(np.diff(ink) > 0.6 * line.x_height + 1)
        starts, ends = ink[np.append(0, gaps + 1)], ink[np.append(gaps, -1)] + 1
        first = self.rng.integers(len(starts))
        last = min(len(ends) - 1, first + self.rng.integers(0, 3))
        return line._replace(pixels=line.pixels[:, starts[first] : ends[last]])

    def write(self, line: Line, x: float, y: float, x_height: float, most: float) -> float:
        """Write a line from x on, its baseline at y, its end before column `most`; where it ends: x if nowhere."""
        scale = x_height / line.x_height
        height, width = (max(2, round(side * scale)) for side in line.pixels.shape)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = cv2.resize(line.pixels, (width, height), interpolation=how)
        small = small[:, : max(2, int(min(most, self.width - 1) - x))]
        columns = np.flatnonzero((small < 160).any(axis=0))
        left, top = round(x), round(y - line.baseline * scale)
        rows = slice(max(0, top), min(self.height, top + height))
        if columns.size < 2 or rows.stop - rows.start < height / 2:
            return x
        place = self.grey[rows, left : left + small.shape[1]]
        part = small[rows.start - top : rows.stop - top, : place.shape[1]]
        place[:] = np.minimum(place, 255 - (255 - part.astype(np.float32)) * self.ink)
        first, last = (left + columns[[0, -1]]).tolist()
        self.lines.append((np.array([[first, y], [last, y]], float), x_height))
        return float(last)

    def write_block(self, left: float, right: float, y: float, bottom: float, short: bool) -> None:
        """Lines between two columns and two rows, short ones or of several parts."""
        rng, size = self.rng, self.x_height
        pitch, slope = size * rng.uniform(2.0, 4.2), rng.normal(0, 0.01)
        while y < bottom:
            x, begun = left + max(0, rng.normal(0, 0.5)) * size * (2 if rng.random() < 0.2 else 1), len(self.lines)
            for _ in range(1 if short else int(rng.integers(1, 5))):
                line, row = self.choose(short or rng.random() < 0.4), y + slope * (x - left)
                x = self.write(line, x, row, size * rng.normal(1, 0.04), right)
                x += size * (rng.uniform(2, 6) if rng.random() < 0.2 else rng.uniform(0.8, 1.8))
                if x > right - 4 * size:
                    break
            if parts := self.lines[begun:]:
                self.lines[begun:] = [(np.concatenate([places for places, _ in parts]), parts[0][1])]
            y += pitch * max(0.75, rng.normal(1, 0.06)) * (2 if rng.random() < 0.04 else 1)

    def write_columns(self, count: int) -> None:
        """Columns, of short or of long lines."""
        rng, self.x_height = self.rng, min(self.x_height, self.width / count / 9)
        edges = np.linspace(0, self.width, count + 1) + np.r_[0, rng.normal(0, 0.03 * self.width, count - 1), 0]
        for left, right in itertools.pairwise(edges):
            gap, top = self.x_height * rng.uniform(0.8, 2.5), self.x_height * rng.uniform(1.5, 8)
            self.write_block(left + gap, right - gap / 2, top, self.height, rng.random() < 0.4)

    def write_note(self) -> None:
        """A few words anywhere where nothing is near, now and then in a box or underlined."""
        rng, size = self.rng, self.x_height * self.rng.uniform(0.7, 2)
        line = self.choose(rng.random() < 0.7)
        x, y = rng.uniform(0, 0.6) * self.width, rng.uniform(0.08, 0.95) * self.height
        if any(abs(places[0, 1] - y) < 2.4 * max(size, other) for places, other in self.lines):
            return
        end = self.write(line, x, y, size, self.width)
        if end > x and rng.random() < 0.3:
            left, top, right, bottom = x - size, y - 2.2 * size, end + size, y + rng.uniform(0.4, 1.2) * size
            shade, thick = int(rng.uniform(0, 180)), int(rng.integers(1, 4))
            corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
            draw(self.grey, corners + corners[:1] if rng.random() < 0.5 else corners[2:], shade, thick)

    def write_word(self) -> None:
        """One word, as wide as a quarter of the page or nearly all of it; mostly the page is cut close around it."""
        rng, line = self.rng, self.choose(self.rng.random() < 0.8)
        size = self.width * rng.uniform(0.25, 0.85) / line.pixels.shape[1] * line.x_height
        size = min(size, line.x_height * 5, self.height / 5)
        span = size * line.pixels.shape[1] / line.x_height
        x, y = rng.uniform(0.02, 0.98) * max(1, self.width - span), self.height * rng.uniform(0.45, 0.75)
        self.write(line, x, y, size, self.width)
        if rng.random() >= 0.4:
            top, bottom = int(max(0, y - size * rng.uniform(2, 4))), int(y + size * rng.uniform(1, 3))
            left, right = int(max(0, x - size * rng.uniform(0.1, 4))), int(x + span + size * rng.uniform(0.1, 4))
            self.grey = np.ascontiguousarray(self.grey[top:bottom, left:right])
            self.lines = [(places - (left, top), size) for places, size in self.lines]


def compose(bank: list[Line], rng: np.random.Generator) -> Page:
    """A page of handwriting as people lay it out: text, a list, columns, notes here and there, a word, or nothing."""
    sheet = Sheet(bank, rng)
    kind = rng.choice(["text", "columns", "list", "notes", "word", "none"], p=[0.28, 0.2, 0.14, 0.2, 0.13, 0.05])
    if kind in ("text", "list"):
        left, top = rng.uniform(0.02, 0.15) * sheet.width, sheet.x_height * rng.uniform(1.5, 5)
        bottom = sheet.height * (rng.uniform(0.3, 1.0) if rng.random() < 0.5 else 1)
        sheet.write_block(left, sheet.width * rng.uniform(0.7, 1.0), top, bottom, kind == "list")
    elif kind == "columns":
        sheet.write_columns(int(rng.integers(2, 4)))
    elif kind == "notes":
        for _ in range(int(rng.integers(1, 8))):
            sheet.write_note()
    elif kind == "word":
        sheet.write_word()
    return Page(sheet.grey, sheet.lines)


def draw(picture: np.ndarray, places: Sequence, shade: float, thick: int) -> None:
    """A line through places (x, y)."""
    cv2.polylines(picture, [np.array(places).astype(np.int32)], False, shade, thick)


def decorate(page: Page, rng: np.random.Generator) -> Page:
    """Rulings, squares, a margin, a frame, underlines, marks that are no writing."""
    (height, width), marks = page.grey.shape, np.full_like(page.grey, 255)
    size = page.lines[0][1] if page.lines else 15.0
    shade, thick = int(rng.uniform(90, 235)), int(rng.integers(1, 3))
    if rng.random() < 0.35:
        pitch = size * rng.uniform(1.2, 4)
        for y in np.arange(rng.uniform(0, pitch), height, pitch):
            draw(marks, [(0, y), (width, y)], shade, thick)
        if rng.random() < 0.3:
            for x in np.arange(rng.uniform(0, pitch), width, pitch):
                draw(marks, [(x, 0), (x, height)], shade, thick)
    if rng.random() < 0.15:
        x = rng.uniform(0.03, 0.2) * width
        draw(marks, [(x, 0), (x, height)], shade, thick)
    if rng.random() < 0.1:
        inset = int(rng.uniform(0.005, 0.04) * width)
        cv2.rectangle(marks, (inset, inset), (width - inset, height - inset), int(rng.uniform(0, 200)), thick * 2)
    for places, own in page.lines:
        if rng.random() < 0.05:
            y = places[:, 1].mean() + rng.uniform(0.3, 0.9) * own
            draw(marks, [(places[0, 0], y), (places[-1, 0], y)], int(rng.uniform(0, 120)), thick + 1)
    for _ in range(int(rng.integers(1, 5)) if rng.random() < 0.25 else 0):
        x, y, r = (int(rng.uniform(0, side)) for side in (width, height, min(width, height) / 5))
        near = (at[0, 0] - r < x < at[-1, 0] + r and abs(at[0, 1] - y) < r for at, _ in page.lines)
        draw_mark(marks, (x, y), r, thick, not any(near), rng)
    return page._replace(grey=np.minimum(page.grey, marks))


def draw_mark(marks: np.ndarray, at: tuple, r: int, thick: int, away: bool, rng: np.random.Generator) -> None:
    """A circle, an arrow, a box, or, away from writing, a photo."""
    (x, y), colour, kind = at, int(rng.uniform(0, 200)), rng.integers(4)
    if kind == 0:
        cv2.circle(marks, at, r, colour, thick + 1)
    elif kind == 1:
        end = int(x + rng.normal(0, 2) * r), int(y + rng.normal(0, 2) * r)
        cv2.arrowedLine(marks, at, end, colour, thick + 1)
    elif kind == 2:
        cv2.rectangle(marks, at, (x + 2 * r, y + r), colour, thick)
    elif away:
        noise = rng.integers(0, 200, (max(2, r // 8), max(2, r // 6)), dtype=np.uint8)
        part = marks[y : y + r, x : x + r]
        part[:] = cv2.resize(noise, (r + 2, r + 2), interpolation=cv2.INTER_CUBIC)[: part.shape[0], : part.shape[1]]


def shine_through(grey: np.ndarray, back: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The page with the writing on its back seen through the paper, from right to left: that is not to be read."""
    back = cv2.resize(back[:, ::-1], grey.shape[::-1])
    back = cv2.GaussianBlur(back, (0, 0), rng.uniform(0.3, 1.5)).astype(np.float32)
    depth = np.clip(np.median(back) - back, 0, None) * rng.uniform(0.15, 0.6)
    return (grey - depth).clip(0, 255).astype(np.uint8)


def texture(rng: np.random.Generator) -> np.ndarray:
    """A desk, a wall, a board: any brightness, grain, bars across; float32 (SIDE, SIDE)."""
    grain = rng.normal(0, 1, (int(rng.integers(2, 60)), int(rng.integers(2, 60)))).astype(np.float32)
    desk = cv2.resize(grain, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) * rng.uniform(0, 18) + rng.uniform(5, 235)
    for _ in range(int(rng.integers(0, 6))):
        draw(desk, rng.uniform(-0.3, 1.3, (2, 2)) * SIDE, rng.uniform(0, 255), int(rng.integers(1, 30)))
    return desk


def photograph(page: Page, rng: np.random.Generator) -> Page:
    """The page as a camera sees it: cut, turned, in perspective, on a desk, (SIDE, SIDE) pixels."""
    height, width = page.grey.shape
    sizes = [size for _, size in page.lines] or [15.0]
    scale = SIDE / max(height, width) * (rng.uniform(0.4, 1.0) if rng.random() < 0.5 else 1.0)
    if rng.random() < 0.35:  # a part of the page, larger
        scale *= rng.uniform(1, 2)
    scale = max(min(scale, 70 / max(sizes)), 3.2 / np.median(sizes))
    angle, sideways = rng.normal(0, 5) if rng.random() < 0.7 else 0, rng.random() < 0.05
    angle += rng.choice([90, 270]) if sideways else 0
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    seen = corners @ turn[:, :2].T + turn[:, 2]
    seen += rng.normal(0, 0.03, (4, 2)) * np.ptp(seen, axis=0) * (rng.random() < 0.5)
    seen += rng.uniform(0, 1, 2) * (SIDE - np.ptp(seen, axis=0)) - seen.min(axis=0)
    matrix = cv2.getPerspectiveTransform(corners, seen.astype(np.float32))
    soft = cv2.GaussianBlur(page.grey, (0, 0), 0.45 / scale) if scale < 0.8 else page.grey
    grey = cv2.warpPerspective(soft, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
    grey = grey.astype(np.float32) * rng.uniform(0.5, 1)
    if rng.random() < 0.6:  # what is around the sheet
        sheet = cv2.warpPerspective(np.ones((height, width), np.float32), matrix, (SIDE, SIDE))
        grey = sheet * grey + (1 - sheet) * texture(rng)
    lines = []
    for places, size in [] if sideways else page.lines:  # what stands on its side is not to be found
        edges = cv2.perspectiveTransform(np.stack([places, places - (0, size)]).astype(np.float32), matrix)
        lines.append((edges, float(np.linalg.norm(edges[0] - edges[1], axis=1).mean())))
    return Page(grey, lines)


def light(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uneven light, hard shadows, white on black, faint contrast, blur, noise: uint8."""
    if rng.random() < 0.6:
        slope = rng.uniform(0.5, 1.1, (2, 2)).astype(np.float32)
        grey = grey * cv2.resize(slope, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    for _ in range(int(rng.integers(1, 3)) if rng.random() < 0.3 else 0):
        shadow = np.ones((SIDE, SIDE), np.float32)
        places = rng.uniform(-0.3, 1.3, (int(rng.integers(3, 6)), 2)) * SIDE
        cv2.fillPoly(shadow, [places.astype(np.int32)], float(rng.uniform(0.3, 0.85)))
        grey = grey * cv2.GaussianBlur(shadow, (0, 0), rng.uniform(0.5, 12))
    if rng.random() < 0.12:
        grey = 255 - grey
    if rng.random() < 0.25:
        grey = grey.mean() + (grey - grey.mean()) * rng.uniform(0.25, 0.8)
    if rng.random() < 0.4:
        grey = cv2.GaussianBlur(grey, (0, 0), rng.uniform(0.3, 1.6))
    grey = grey + rng.normal(0, rng.uniform(0, 8), grey.shape)
    if rng.random() < 0.06:  # 1 bit a pixel, dithered or not
        grey = 255.0 * (grey > (rng.uniform(0, 255, grey.shape) if rng.random() < 0.5 else grey.mean() - 25))
    return grey.clip(0, 255).astype(np.uint8)


def targets(lines: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """The three maps that the network is to draw, uint8 (3, SIDE / 2, SIDE / 2): 0 or 1."""
    maps = np.zeros((len(NAMES), SIDE // STRIDE, SIDE // STRIDE), np.uint8)
    for edges, size in lines:
        base, top = (edges + 0.5) / STRIDE - 0.5
        reach, thick = 0.4 * (top - base), int(np.clip(0.13 * size, 2, 6))
        ends = np.stack([base - reach, top + reach], axis=1)[[0, -1]]
        for drawn, strokes, wide in zip(maps, ([base], [top], ends), (thick, thick, thick + 1), strict=True):
            for places in strokes:
                cv2.polylines(drawn, [np.round(places * 8).astype(np.int32)], False, 1, wide, shift=3)
    return maps


def sample(pages: list[Page], bank: list[Line], seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One training picture, normalised (1, SIDE, SIDE), and its maps."""
    rng = np.random.default_rng(seed)
    known = rng.random() < 0.4
    page = pages[int(rng.integers(len(pages)))] if known else compose(bank, rng)
    page = decorate(page, rng) if not known or rng.random() < 0.3 else page
    if rng.random() < 0.12:
        page = page._replace(grey=shine_through(page.grey, pages[int(rng.integers(len(pages)))].grey, rng))
    seen = photograph(page, rng)
    return normalise(light(seen.grey, rng))[None], targets(seen.lines)


def page_x_height(grey: np.ndarray, baseline: np.ndarray) -> float:
    """Rows from a baseline up to where the ink of small letters ends; 0 where it cannot be told."""
    columns, down = np.arange(baseline[0, 0], baseline[-1, 0]), np.arange(-60, 20)[:, None]
    places = np.broadcast_arrays(columns, np.interp(columns, *baseline.T) + down)
    strip = cv2.remap(grey, *(at.astype(np.float32) for at in places), cv2.INTER_LINEAR)
    ink = (strip < np.median(strip) - 25).sum(axis=1).astype(float)
    above = cv2.blur(ink[:60][::-1][:, None], (1, 3)).ravel()
    few = np.flatnonzero(above[3:] < 0.5 * above[2:12].max()) + 3
    return float(few[0]) if few.size else 0.0


def read_pages(path: str | Path) -> list[Page]:
    """Pages of a parquet file: training images with baselines (Hooker's), or with a box a line (IAM's)."""
    pages = []
    for row in datasets.Dataset.from_parquet(str(path)).cast_column("image", datasets.Image(decode=False)):
        if row.get("split", "train") != "train":
            continue
        grey = load_page(row["image"]["bytes"])
        if "boxes" in row:
            lines = [np.array([[x, y + 0.72 * h], [x + w, y + 0.72 * h]], float) for x, y, w, h in row["boxes"]]
            sizes = [0.3 * h for *_, h in row["boxes"]]
        else:
            lines = [np.array(sorted(line["baseline"], key=lambda at: at[0]), float) for line in row["lines"]]
            lines = [line for line in lines if len(line) > 1 and np.ptp(line[:, 0]) > 8]
            sizes = [page_x_height(grey, line) for line in lines]
        size = float(np.median([size for size in sizes if size] or [10]))  # one hand wrote them all
        pages.append(Page(grey, [(line, size) for line in lines]))
    return pages


def read_bank(sources: list[str], most: int, rng: np.random.Generator) -> list[Line]:
    """Lines of handwriting, at most so many of each source, and letters as plotters write them."""
    bank = []
    for source in sources:
        rows = load_lines("train", source)
        for row in rows.select(range(0, len(rows), max(1, len(rows) // most))):
            grey = load_page(row["image"])
            short = max(0, grey.shape[0] - grey.shape[1])  # a lone letter gets paper beside it
            bank.append(measure(prepare_pixels(np.pad(grey, ((0, 0), (0, short)), constant_values=255))))
    return [line for line in bank + [lettering(rng) for _ in range(most // 3)] if line]


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
    pages = read_pages(options.hooker) + read_pages(options.iam)[:-10] * 6
    bank = read_bank(options.lines, options.most, np.random.default_rng(options.seed))
    print(f"{len(pages)} pages, {len(bank)} lines", flush=True)
    network = LineMapper().to(memory_format=torch.channels_last)
    if options.init:
        network.load_state_dict(load_file(options.init))
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-3)
    ema = swa_utils.AveragedModel(network, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True)
    began, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        batch = [sample(pages, bank, (options.seed, BATCH * step + k)) for k in range(BATCH)]
        pictures, maps = (torch.from_numpy(np.stack(part)) for part in zip(*batch, strict=True))
        step += 1
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
        done = (time.monotonic() - began) / 60 / options.minutes
        if step % 50 == 0 or done >= 1:
            print(f"step {step}, {done:.3f} done, loss {loss.item():.4f}", flush=True)
            state = ema.module.state_dict()
            save_file({name: part.half().contiguous() for name, part in state.items()}, options.output)


if __name__ == "__main__":
    main()
