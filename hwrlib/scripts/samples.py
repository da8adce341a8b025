"""Make the embedded synthetic lines and page again, or more synthetic lines of numbers and names to train on.

The texts are our own (``sentences.txt``); the hands are OFL fonts, fetched with ``npm install @fontsource/...`` into a
temporary folder that is thrown away. Needs npm, and for the woff2 files ``pip install fonttools brotli``, here only.
One seed decides everything, so the same library versions write the same files.
"""

import argparse
import io
import json
import math
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import cv2
import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parents[1] / "samples"
SEED = 1837
FONTS = {  # npm version by hand; "train" hands also write two thirds of the other splits
    "train": "annie-use-your-telescope architects-daughter bad-script beth-ellen caveat cedarville-cursive "
    "covered-by-your-grace dancing-script dawning-of-a-new-day dekko gaegu give-you-glory handlee indie-flower kalam "
    "kristi la-belle-aurore licorice loved-by-the-king mansalva mynerve nanum-pen-script nothing-you-could-do "
    "over-the-rainbow patrick-hand qwigley rouge-script sacramento shadows-into-light sue-ellen-francisco zeyada",
    "validation": "gloria-hallelujah hi-melody marck-script meddon neucha swanky-and-moo-moo waiting-for-the-sunrise",
    "test": "gochi-hand just-me-again-down-here mr-de-haviland pangolin playpen-sans reenie-beanie ruthie",
}
VERSIONS = {"qwigley": "5.2.8"}  # every other package is 5.3.0
PAGE_FONT = "nothing-you-could-do"
EM = 88  # pixels per em while drawing; the line is scaled afterwards
BASELINE = int(2.4 * EM)  # row of the drawing canvas on which the words stand
LONGEST = 64  # characters a line, about
NUMBERS_SEED = 91
MONTHS = "January February March April May June July August September October November December"
UNITS = "miles feet years days hours per-cent tons shillings pence pages people members men houses ships"
SYLLABLES = (
    "al an ar bel ber bur can car dal den dor el er fen ford gar gil ham har hol il in jen ker kin lan lin lor mar mel "
    "mil nor ol or per quin ran ros sel shaw ston ter thor ul van vic wal wen wick win wood york zel"
)


class Writer(NamedTuple):
    """Habits of one hand: gap between words, slant, stroke width, size and stretch, all as factors of the drawing."""

    gap: float
    slant: float
    pen: float
    size: float
    stretch: float


PAGE_WRITER = Writer(gap=1.2, slant=0.08, pen=0.035, size=0.36, stretch=1.0)


def new_writer(rng: np.random.Generator) -> Writer:
    """A writer with habits drawn at random."""
    ranges = {"gap": (0.9, 1.6), "pen": (0.02, 0.05), "size": (0.7, 1.05), "stretch": (0.92, 1.12)}
    return Writer(slant=rng.normal(0.05, 0.14), **{name: rng.uniform(*limits) for name, limits in ranges.items()})


def read_sentences(path: Path = FOLDER / "sentences.txt") -> dict[str, list[str]]:
    """Paragraphs of each section of ``sentences.txt``, by split (and "page")."""
    sections = {}
    for row in path.read_text(encoding="utf-8").splitlines():
        if row.startswith("["):
            section = sections.setdefault(row.strip("[]"), [])
        elif row:
            section.append(row)
    return sections


def wrap(text: str, length: float) -> list[str]:
    """Break a text into lines of about ``length`` characters, evenly, as a writer fills a page."""
    words, lines = text.split(" "), []
    target = len(text) / max(round(len(text) / length), math.ceil(len(text) / LONGEST))
    done = 0
    for word in words:
        middle = done + len(word) / 2
        if not lines or middle > target * len(lines):
            lines.append(word)
        else:
            lines[-1] += " " + word
        done += len(word) + 1
    return lines


def fetch_fonts(folder: Path) -> dict[str, tuple[Path, set[str]]]:
    """Install the font packages in a folder with npm; the ttf file of each font, and the characters that it has.

    Raises:
        ValueError: a font that is not under the OFL.
    """
    from fontTools.ttLib import TTFont

    names = " ".join(FONTS.values()).split()
    (folder / "package.json").write_text('{"private": true}')
    packages = [f"@fontsource/{name}@{VERSIONS.get(name, '5.3.0')}" for name in names]
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", *packages]
    subprocess.run(command, cwd=folder, check=True)
    fonts = {}
    for name in names:
        package = folder / "node_modules" / "@fontsource" / name
        licence = json.loads((package / "package.json").read_text())["license"]
        if licence != "OFL-1.1":
            raise ValueError(f"font {name} is under {licence}, not OFL-1.1: take it off FONTS")
        font = TTFont(package / "files" / f"{name}-latin-400-normal.woff2")
        font.flavor = None
        font.save(folder / f"{name}.ttf")
        fonts[name] = folder / f"{name}.ttf", drawn(font)
    return fonts


def drawn(font) -> set[str]:
    """Characters for which a font (a TTFont) has a drawn glyph, not an empty one."""
    from fontTools.pens.boundsPen import BoundsPen

    glyphs, characters = font.getGlyphSet(), {" "}
    for code, name in font.getBestCmap().items():
        pen = BoundsPen(glyphs)
        glyphs[name].draw(pen)
        if pen.bounds is not None:
            characters.add(chr(code))
    return characters


def smooth(rng: np.random.Generator, shape: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
    """Noise of unit variance over ``shape``, smooth over ``scale`` (rows, columns) pixels: float32."""
    coarse = [max(2, int(n / s) + 2) for n, s in zip(shape, scale, strict=True)]
    noise = rng.standard_normal(coarse).astype(np.float32)
    return cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC)


def draw(text: str, font: ImageFont.FreeTypeFont, writer: Writer, rng: np.random.Generator) -> np.ndarray:
    """Ink of one line, word by word with its own size, height and gap: float32 (H, W), 0 to 1, 1 is ink."""
    canvas = Image.new("L", (int(font.getlength(text) * 1.5) + 8 * EM, 4 * EM), 0)
    gap = font.getlength(" ") * writer.gap + 0.08 * EM
    pen, drift = 2.0 * EM, 0.0
    for word in text.split(" "):
        sized = font.font_variant(size=EM * float(rng.normal(1, 0.025)))
        drift = 0.7 * drift + float(rng.normal(0, 0.02)) * EM
        ImageDraw.Draw(canvas).text((pen, BASELINE + drift), word, font=sized, fill=255, anchor="ls")
        pen += sized.getlength(word) + gap * float(rng.uniform(0.75, 1.3))
    return np.asarray(canvas, np.float32) / 255


def bend(ink: np.ndarray, writer: Writer, rng: np.random.Generator) -> np.ndarray:
    """Bend the ink as a hand would: slant, uneven letter widths, wobbling baseline. The size stays."""
    rows, columns = np.mgrid[: ink.shape[0], : ink.shape[1]].astype(np.float32)
    along = smooth(rng, (1, ink.shape[1]), (1, 1.1 * EM)) * 0.05 * EM  # letter widths and gaps
    wobble = smooth(rng, (1, ink.shape[1]), (1, 3 * EM)) * 0.035 * EM
    slope = (columns[:1] - columns.mean()) * rng.normal(0, 0.003)
    shape = [smooth(rng, ink.shape, (0.35 * EM, 0.35 * EM)) * 0.013 * EM for _ in range(2)]
    x = columns + writer.slant * (rows - BASELINE) + along + shape[0]
    y = rows + wobble + slope + shape[1]
    return cv2.remap(ink, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)


def press(ink: np.ndarray, writer: Writer, rng: np.random.Generator) -> np.ndarray:
    """Thicken or thin the strokes to the writer's pen, uneven along the line: float32, 0 to 1."""
    solid = (ink > 0.5).astype(np.uint8)
    inside = cv2.distanceTransform(solid, cv2.DIST_L2, 3)
    outside = cv2.distanceTransform(1 - solid, cv2.DIST_L2, 3)
    ridge = inside[(inside == cv2.dilate(inside, np.ones((3, 3)))) & (inside > 0)]
    radius = float(np.median(ridge))
    # Thin fonts cannot lose much without breaking, fat ones not gain much without filling their loops.
    change = np.clip(EM * writer.pen - radius, -0.45 * radius, 0.8 * radius)
    uneven = smooth(rng, ink.shape, (0.5 * EM, 0.9 * EM)) * 0.12 * radius
    signed = np.where(solid, 0.5 - inside, outside - 0.5)  # pixels to the edge, negative in the ink
    return np.clip(0.5 - signed + change + uneven, 0, 1).astype(np.float32)


def write(
    text: str, path: Path, writer: Writer, rng: np.random.Generator, lowest: int = 60, margin: int = 4
) -> tuple[np.ndarray, float]:
    """Ink of one line in the font at a path, cropped: float32 (``lowest`` to 140, W), 0 to 1; and its baseline."""
    ink = draw(text, ImageFont.truetype(str(path), EM), writer, rng)
    ink = press(bend(ink, writer, rng), writer, rng)
    rows, columns = (np.flatnonzero(ink.max(axis=axis) > 0.3) for axis in (1, 0))
    top = rows[0] - margin
    ink = ink[top : rows[-1] + margin, columns[0] - margin : columns[-1] + margin]
    height = int(np.clip(ink.shape[0] * writer.size, lowest, 140))
    scale = height / ink.shape[0]
    width = round(ink.shape[1] * scale * writer.stretch)
    return cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA), (BASELINE - top) * scale


def scan(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put ink on paper under a scanner: uint8; one line in four is a 1-bit scan (0 and 255 only)."""
    if rng.random() < 0.25:
        return np.where(cv2.GaussianBlur(ink, (0, 0), 0.6) > rng.uniform(0.35, 0.5), 0, 255).astype(np.uint8)
    paper = rng.uniform(232, 253) + 2.0 * smooth(rng, ink.shape, (60, 200))
    tone = rng.uniform(15, 100) + 14 * smooth(rng, ink.shape, (25, 45))
    ink = cv2.GaussianBlur(ink, (0, 0), rng.uniform(0.4, 0.9))
    image = paper + (tone - paper) * ink
    image += cv2.GaussianBlur(rng.normal(0, 1, ink.shape), (0, 0), 0.7) * rng.uniform(2, 6)
    return np.clip(image, 0, 255).astype(np.uint8)


def encode(image: np.ndarray) -> bytes:
    """Bytes of one line image: WebP, lossless for a 1-bit scan."""
    buffer = io.BytesIO()
    lossless = not np.any((image > 0) & (image < 255))
    Image.fromarray(image).save(buffer, "WEBP", lossless=lossless, quality=100 if lossless else 70, method=6)
    return buffer.getvalue()


def write_rows(rows: list[dict], out: Path) -> None:
    """Write lines (``image`` as encoded bytes, ``text`` and maybe ``font``) to a parquet file."""
    columns = {"image": datasets.Image()} | {name: datasets.Value("string") for name in rows[0] if name != "image"}
    datasets.Dataset.from_list(rows, features=datasets.Features(columns)).to_parquet(out)


def write_split(split: str, paragraphs: list[str], fonts: dict, rng: np.random.Generator) -> None:
    """Write a split's parquet file: each paragraph wrapped into lines, every third in a hand of this split alone."""
    known, own = FONTS["train"].split(), FONTS[split].split()
    rows = []
    for paragraph in paragraphs:
        for text in wrap(paragraph, float(np.clip(rng.normal(42, 9), 24, 60))):
            hands = own if len(rows) % 3 == 2 else known
            font = str(rng.choice([name for name in hands if fonts[name][1] >= set(text)]))
            ink, _ = write(text, fonts[font][0], new_writer(rng), rng)
            rows.append({"image": {"bytes": encode(scan(ink, rng)), "path": None}, "text": text, "font": font})
    write_rows(rows, FOLDER / f"{split}.parquet")


def write_page(
    text: str, path: Path, rng: np.random.Generator, width: int = 1200, top: int = 110, left: int = 80, step: int = 80
) -> None:
    """Write page.png, one text in one hand on unevenly lit paper, and page.json: transcripts and boxes (x, y, w, h)."""
    lines = wrap(text, 56)
    page, boxes = np.zeros((2 * top + step * (len(lines) - 1), width), np.float32), []
    for number, line in enumerate(lines):
        ink, baseline = write(line, path, PAGE_WRITER, rng, lowest=1)
        x, y = left + int(rng.integers(-8, 9)), round(top + step * number - baseline + rng.normal(0, 2))
        height, length = ink.shape
        page[y : y + height, x : x + length] = np.maximum(page[y : y + height, x : x + length], ink)
        boxes.append({"text": line, "box": [x, y, length, height]})
    rows, columns = np.mgrid[-1 : 1 : page.shape[0] * 1j, -1 : 1 : page.shape[1] * 1j]
    paper = 226 - 18 * columns - 14 * rows + 3 * smooth(rng, page.shape, (120, 120))
    image = paper + (48 - paper) * cv2.GaussianBlur(page, (0, 0), 0.6) + rng.normal(0, 1.2, page.shape)
    image = (np.clip(image, 0, 255) / 4).astype(np.uint8) * 4  # 64 grey levels compress well
    Image.fromarray(image).save(FOLDER / "page.png", optimize=True)
    record = {"font": path.stem, "synthetic": True, "size": [width, page.shape[0]], "lines": boxes}
    (FOLDER / "page.json").write_text(json.dumps(record, indent=1) + "\n")


def number(rng: np.random.Generator) -> str:
    """A number as IAM's writers write them: small or large, a year, a share, a time, a fraction, a range."""
    kind = rng.integers(9)
    large = int(10 ** rng.uniform(0, 6))
    kinds = [
        f"{rng.integers(1, 100)}",
        f"{rng.integers(1, 100)}",
        f"{rng.integers(1500, 2030)}",
        f"{large:,}",
        f"{rng.uniform(0, 100):.1f}",
        f"{rng.integers(1, 13)}.{rng.integers(0, 60):02d}",
        f"{rng.integers(1, 4)}/{rng.integers(2, 9)}",
        f"{rng.integers(1, 20)}-{rng.integers(20, 99)}",
        f"{rng.integers(100, 1000)}",
    ]
    return kinds[kind]


def surname(rng: np.random.Generator) -> str:
    """A name of one to three syllables, with a title or an initial at times."""
    word = "".join(rng.choice(SYLLABLES.split(), int(rng.integers(1, 4)))).capitalize()
    if rng.random() < 0.1:
        return f"Mr. {word}"
    if rng.random() < 0.05:
        return f"Dr. {word}"
    return f"{chr(65 + rng.integers(26))}. {word}" if rng.random() < 0.15 else word


def phrase(rng: np.random.Generator, words: list[str]) -> str:
    """A few words with a number, a date, a name or capitals in them, spaced as IAM's transcripts are."""
    match rng.integers(12):
        case 0:
            return f"{number(rng)} {rng.choice(UNITS.split()).replace('-', ' ')}"
        case 1:
            return f"{rng.choice(MONTHS.split())} {rng.integers(1, 32)} , {rng.integers(1500, 2030)}"
        case 2:
            return f"in {rng.integers(1500, 2030)} ,"
        case 3:
            return f"( {number(rng)} )"
        case 4:
            return f"No. {rng.integers(1, 300)}"
        case 5:
            return f"Fig. {rng.integers(1, 40)}"
        case 6:
            return surname(rng)
        case 7:
            return f"{surname(rng)} and {surname(rng)}"
        case 8:
            return f"{surname(rng)}'s"
        case 9:
            return f"{rng.choice(words).upper()} {rng.choice(words).upper()}"
        case 10:
            return f"{rng.choice(words).capitalize()} {rng.choice(words)}"
        case _:
            return f"{number(rng)} {rng.choice(words)}"


def number_line(rng: np.random.Generator, words: list[str]) -> str:
    """A line of what IAM is short of, among common words: numbers, dates, prices, names, capitals."""
    text, target = "", rng.uniform(20, 52)
    while len(text) < target:
        common = rng.random() >= 0.55
        text += " " + (" ".join(rng.choice(words, int(rng.integers(1, 3)))) if common else phrase(rng, words))
        if rng.random() < 0.12:
            text += rng.choice([" ,", " .", " ;", " :", " ?", " !", " -", " &", ' "'])
    return text.strip()[:LONGEST].strip()


def write_numbers(out: Path, count: int, fonts: dict) -> None:
    """Write such lines in the hands of the training split; the first lines are the same for any count.

    Arguments:
        out: the parquet file, for ``python -m hwrlib train --extra``.
        count: lines.
        fonts: from :func:`fetch_fonts`.
    """
    rng = np.random.default_rng(NUMBERS_SEED)
    words = sorted({w for text in read_sentences()["train"] for w in text.split() if w.isalpha() and w.islower()})
    rows = []
    while len(rows) < count:
        text, font = number_line(rng, words), str(rng.choice(FONTS["train"].split()))
        if fonts[font][1] >= set(text):
            ink, _ = write(text, fonts[font][0], new_writer(rng), rng)
            rows.append({"image": {"bytes": encode(scan(ink, rng)), "path": None}, "text": text})
    write_rows(rows, out)


def main(arguments: list[str] | None = None) -> None:
    """Fetch the fonts and write the embedded files, or the lines of numbers alone."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.samples", description=__doc__)
    parser.add_argument("--numbers", type=Path, metavar="OUT.parquet", help="write these lines, nothing else")
    parser.add_argument("--count", type=int, default=1600, help="how many of them (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count {options.count}: at least one line is needed")
    sentences = read_sentences()
    with tempfile.TemporaryDirectory() as folder:
        fonts = fetch_fonts(Path(folder))
        if options.numbers:
            write_numbers(options.numbers, options.count, fonts)
            return
        for part, split in enumerate(("train", "validation", "test")):
            write_split(split, sentences[split], fonts, np.random.default_rng([SEED, part]))
        write_page(sentences["page"][0], fonts[PAGE_FONT][0], np.random.default_rng([SEED, 3]))


if __name__ == "__main__":
    main()
