"""Make the embedded synthetic lines and page again: ``pip install fonttools brotli``.

The texts are our own, the hands OFL fonts that npm fetches. The same library versions write the same files.
"""

import argparse
import io
import json
import math
import re
import subprocess
import tempfile
from pathlib import Path

import cv2
import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hwrlib.data import load_lines

FOLDER = Path(__file__).parents[1] / "samples"
SEED = 1837
EXAMPLE = 57  # the validation line that line.png shows
FONTS = {  # npm packages by hand; "train" hands also write two thirds of the other splits
    "train": "annie-use-your-telescope architects-daughter bad-script beth-ellen caveat cedarville-cursive "
    "covered-by-your-grace dancing-script dawning-of-a-new-day dekko gaegu give-you-glory handlee indie-flower kalam "
    "kristi la-belle-aurore licorice loved-by-the-king mansalva mynerve nanum-pen-script nothing-you-could-do "
    "over-the-rainbow patrick-hand qwigley rouge-script sacramento shadows-into-light sue-ellen-francisco zeyada",
    "validation": "gloria-hallelujah hi-melody marck-script meddon neucha swanky-and-moo-moo waiting-for-the-sunrise",
    "test": "gochi-hand just-me-again-down-here mr-de-haviland pangolin playpen-sans reenie-beanie ruthie",
}
PAGE_FONT = "nothing-you-could-do"
EM, BASELINE = 88, 211  # pixels per em while drawing, and the row of the drawing on which the words stand
LINE_LENGTH = 64  # characters a line, about
# Habits of a hand, as factors of the drawing: gap between words, slant, pen width, size and stretch.
PAGE_WRITER = {"gap": 1.2, "slant": 0.08, "pen": 0.035, "size": 0.36, "stretch": 1.0}
HABITS = {"gap": (0.9, 1.6), "pen": (0.02, 0.05), "size": (0.7, 1.05), "stretch": (0.92, 1.12)}  # of any other


def read_sentences() -> dict[str, list[str]]:
    """Paragraphs of each section of ``sentences.txt``, by split (and "page")."""
    sections = re.split(r"^\[(\w+)\]$", (FOLDER / "sentences.txt").read_text(encoding="utf-8"), flags=re.M)[1:]
    return {name: text.strip().split("\n") for name, text in zip(sections[::2], sections[1::2], strict=True)}


def wrap(text: str, length: float) -> list[str]:
    """Break a text into lines of about ``length`` characters, evenly, as a writer fills a page."""
    lines, done = [[]], 0
    target = len(text) / max(round(len(text) / length), math.ceil(len(text) / LINE_LENGTH))
    for word in text.split(" "):
        if done + len(word) / 2 > target * len(lines) and lines[0]:
            lines.append([])
        lines[-1].append(word)
        done += len(word) + 1
    return [" ".join(line) for line in lines]


def fetch_fonts(folder: Path) -> dict[str, tuple[Path, set[str]]]:
    """Install the font packages with npm; the ttf file of each font, and the characters that have a drawn glyph."""
    from fontTools.pens.boundsPen import BoundsPen
    from fontTools.ttLib import TTFont

    fonts, names = {}, " ".join(FONTS.values()).split()
    (folder / "package.json").write_text('{"private": true}')
    packages = [f"@fontsource/{name}@{'5.2.8' if name == 'qwigley' else '5.3.0'}" for name in names]
    subprocess.run(["npm", "install", "--ignore-scripts", "--silent", *packages], cwd=folder, check=True)
    for name in names:
        font = TTFont(folder / "node_modules" / "@fontsource" / name / "files" / f"{name}-latin-400-normal.woff2")
        font.flavor = None
        font.save(folder / f"{name}.ttf")
        glyphs, characters = font.getGlyphSet(), {" "}
        for code, glyph in font.getBestCmap().items():
            pen = BoundsPen(glyphs)
            glyphs[glyph].draw(pen)
            characters |= {chr(code)} if pen.bounds else set()
        fonts[name] = folder / f"{name}.ttf", characters
    return fonts


def smooth(rng: np.random.Generator, shape: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
    """Noise of unit variance over ``shape``, smooth over ``scale`` (rows, columns) pixels: float32."""
    noise = rng.standard_normal([max(2, int(n / s) + 2) for n, s in zip(shape, scale, strict=True)])
    return cv2.resize(noise.astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)


def draw(text: str, font: ImageFont.FreeTypeFont, writer: dict, rng: np.random.Generator) -> np.ndarray:
    """Ink of one line (H, W), 1 is ink: each word with its own size, height and gap, slanted, bent and wobbling."""
    canvas = Image.new("L", (int(font.getlength(text) * 1.5) + 8 * EM, 4 * EM), 0)
    gap = font.getlength(" ") * writer["gap"] + 0.08 * EM
    pen, drift = 2.0 * EM, 0.0
    for word in text.split(" "):
        sized = font.font_variant(size=EM * float(rng.normal(1, 0.025)))
        drift = 0.7 * drift + float(rng.normal(0, 0.02)) * EM
        ImageDraw.Draw(canvas).text((pen, BASELINE + drift), word, font=sized, fill=255, anchor="ls")
        pen += sized.getlength(word) + gap * float(rng.uniform(0.75, 1.3))
    ink = np.asarray(canvas, np.float32) / 255
    rows, columns = np.mgrid[: ink.shape[0], : ink.shape[1]].astype(np.float32)
    along = smooth(rng, (1, ink.shape[1]), (1, 1.1 * EM)) * 0.05 * EM  # letter widths and gaps
    wobble = smooth(rng, (1, ink.shape[1]), (1, 3 * EM)) * 0.035 * EM
    slope = (columns[:1] - columns.mean()) * rng.normal(0, 0.003)
    shape = [smooth(rng, ink.shape, (0.35 * EM, 0.35 * EM)) * 0.013 * EM for _ in range(2)]
    x = columns + writer["slant"] * (rows - BASELINE) + along + shape[0]
    y = rows + wobble + slope + shape[1]
    return cv2.remap(ink, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)


def press(ink: np.ndarray, writer: dict, rng: np.random.Generator) -> np.ndarray:
    """Thicken or thin the strokes to the writer's pen, uneven along the line: float32, 0 to 1."""
    solid = (ink > 0.5).astype(np.uint8)
    inside, outside = (cv2.distanceTransform(part, cv2.DIST_L2, 3) for part in (solid, 1 - solid))
    radius = float(np.median(inside[(inside == cv2.dilate(inside, np.ones((3, 3)))) & (inside > 0)]))
    # Thin fonts cannot lose much without breaking, fat ones not gain much without filling their loops.
    change = np.clip(EM * writer["pen"] - radius, -0.45 * radius, 0.8 * radius)
    uneven = smooth(rng, ink.shape, (0.5 * EM, 0.9 * EM)) * 0.12 * radius
    signed = np.where(solid, 0.5 - inside, outside - 0.5)  # pixels to the edge, negative in the ink
    return np.clip(0.5 - signed + change + uneven, 0, 1).astype(np.float32)


def write(text: str, path: Path, writer: dict, rng: np.random.Generator, lowest: int) -> tuple[np.ndarray, float]:
    """Ink of one line in the font at a path, cropped: float32 (``lowest`` to 140, W), 0 to 1; and its baseline."""
    ink = press(draw(text, ImageFont.truetype(str(path), EM), writer, rng), writer, rng)
    rows, columns = (np.flatnonzero(ink.max(axis=axis) > 0.3) for axis in (1, 0))
    top = rows[0] - 4
    ink = ink[top : rows[-1] + 4, columns[0] - 4 : columns[-1] + 4]
    height = int(np.clip(ink.shape[0] * writer["size"], lowest, 140))
    scale = height / ink.shape[0]
    size = round(ink.shape[1] * scale * writer["stretch"]), height
    return cv2.resize(ink, size, interpolation=cv2.INTER_AREA), (BASELINE - top) * scale


def new_row(text: str, font: Path, rng: np.random.Generator) -> dict:
    """A line written by a new writer and scanned, as a row of WebP and text; one in four is a 1-bit scan, lossless."""
    writer = {"slant": rng.normal(0.05, 0.14)} | {name: rng.uniform(*limits) for name, limits in HABITS.items()}
    ink, _ = write(text, font, writer, rng, lowest=60)
    if lossless := rng.random() < 0.25:
        image = np.where(cv2.GaussianBlur(ink, (0, 0), 0.6) > rng.uniform(0.35, 0.5), 0, 255)
    else:
        paper = rng.uniform(232, 253) + 2.0 * smooth(rng, ink.shape, (60, 200))
        tone = rng.uniform(15, 100) + 14 * smooth(rng, ink.shape, (25, 45))
        image = paper + (tone - paper) * cv2.GaussianBlur(ink, (0, 0), rng.uniform(0.4, 0.9))
        image += cv2.GaussianBlur(rng.normal(0, 1, ink.shape), (0, 0), 0.7) * rng.uniform(2, 6)
    image, buffer = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)), io.BytesIO()
    image.save(buffer, "WEBP", lossless=lossless, quality=100 if lossless else 70, method=6)
    return {"image": {"bytes": buffer.getvalue(), "path": None}, "text": text}


def write_split(split: str, paragraphs: list[str], fonts: dict, rng: np.random.Generator) -> None:
    """Write a split's parquet file: each paragraph wrapped into lines, every third in a hand of this split alone."""
    known, own, rows = FONTS["train"].split(), FONTS[split].split(), []
    for paragraph in paragraphs:
        for text in wrap(paragraph, float(np.clip(rng.normal(42, 9), 24, 60))):
            hands = own if len(rows) % 3 == 2 else known
            font = str(rng.choice([name for name in hands if fonts[name][1] >= set(text)]))
            rows.append(new_row(text, fonts[font][0], rng) | {"font": font})
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(FOLDER / f"{split}.parquet")


def write_page(text: str, path: Path, rng: np.random.Generator) -> None:
    """Write page.png, one text in one hand on unevenly lit paper, and page.json: transcripts and boxes (x, y, w, h)."""
    lines, width, top, left, step = wrap(text, 56), 1200, 110, 80, 80
    page, boxes = np.zeros((2 * top + step * (len(lines) - 1), width), np.float32), []
    for k, line in enumerate(lines):
        ink, baseline = write(line, path, PAGE_WRITER, rng, lowest=1)
        x, y = left + int(rng.integers(-8, 9)), round(top + step * k - baseline + rng.normal(0, 2))
        height, length = ink.shape
        np.maximum(place := page[y : y + height, x : x + length], ink, out=place)
        boxes.append({"text": line, "box": [x, y, length, height]})
    rows, columns = np.mgrid[-1 : 1 : page.shape[0] * 1j, -1 : 1 : page.shape[1] * 1j]
    paper = 226 - 18 * columns - 14 * rows + 3 * smooth(rng, page.shape, (120, 120))
    image = paper + (48 - paper) * cv2.GaussianBlur(page, (0, 0), 0.6) + rng.normal(0, 1.2, page.shape)
    image = (np.clip(image, 0, 255) / 4).astype(np.uint8) * 4  # 64 grey levels compress well
    Image.fromarray(image).save(FOLDER / "page.png", optimize=True)
    record = {"font": path.stem, "synthetic": True, "size": [width, page.shape[0]], "lines": boxes}
    (FOLDER / "page.json").write_text(json.dumps(record, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Fetch the fonts and write the embedded files."""
    argparse.ArgumentParser(prog="python -m hwrlib.scripts.samples", description=__doc__).parse_args(arguments)
    sentences = read_sentences()
    with tempfile.TemporaryDirectory() as folder:
        fonts = fetch_fonts(Path(folder))
        for part, split in enumerate(("train", "validation", "test")):
            write_split(split, sentences[split], fonts, np.random.default_rng([SEED, part]))
        write_page(sentences["page"][0], fonts[PAGE_FONT][0], np.random.default_rng([SEED, 3]))
    load_lines("validation", "sample")[EXAMPLE]["image"].save(FOLDER / "line.png", optimize=True)


if __name__ == "__main__":
    main()
