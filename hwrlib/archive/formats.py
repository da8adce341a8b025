"""What was read of a page, in formats that other tools take: text, JSON, ALTO, PAGE, hOCR, PDF (chapter 9)."""

import dataclasses
import io
import itertools
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import cv2
import jinja2
import numpy as np

from hwrlib.archive import FORMATS
from hwrlib.archive.sources import DPI, Page
from hwrlib.ctc import Character, Reading
from hwrlib.files import write_whole
from hwrlib.page.lines import Box, bounding_box, turn_back

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
NOT_IN_XML = r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # which a file's name can hold
NEEDLESS_SPACE = r" +(?=[.,;:!?)\]])|(?<=[(\[]) +"
GAP = 0.25  # of the size of the font: the least space between two words of a PDF
QUALITY = 85  # of the JPEG in a PDF


class FormatError(ValueError):
    """A page that a format cannot hold; the message says why and which format can."""


class Word(NamedTuple):
    """One word of a line: its confidence is the mean of its characters', its box (x, y, width, height) in pixels."""

    text: str
    confidence: float
    box: Box
    characters: tuple[Character, ...]


def split_words(reading: Reading) -> list[Word]:
    """The words of a line that was read on a page, in order.

    >>> a, space, b = (Character(c, 0.5, 0, 1, box=(x, 0, 9, 20)) for x, c in ((0, "a"), (10, " "), (20, "b")))
    >>> [(word.text, word.box) for word in split_words(Reading("a b", 0, 0.5, (a, space, b)))]
    [('a', (0, 0, 9, 20)), ('b', (20, 0, 9, 20))]
    """
    words = []
    for space, group in itertools.groupby(reading.characters, lambda character: character.text.isspace()):
        if not space:
            letters = tuple(group)
            confidence = sum(letter.confidence for letter in letters) / len(letters)
            box = bounding_box([letter.box for letter in letters])
            words.append(Word("".join(letter.text for letter in letters), confidence, box, letters))
    return words


def close_spaces(reading: Reading) -> Reading:
    """The reading without the spaces that IAM's transcripts, and so the network, put around punctuation.

    Double quotes are closed where they are surely a pair: one behind a comma or a full stop may open or close.

    >>> text = 'a " B side " ( mono ) , he said , " well .'
    >>> close_spaces(Reading(text, 0, 0.5, tuple(Character(c, 0.5, 0, 1) for c in text))).text
    'a "B side" (mono), he said, " well.'
    """
    text = reading.text
    needless = {k for match in re.finditer(NEEDLESS_SPACE, text) for k in range(*match.span())}
    for pair in re.finditer(r'"[^"]*"', text):
        if re.search(r"[.,;!?] ?$", text[: pair.start()]):
            break
        needless |= {k for k in (pair.start() + 1, pair.end() - 2) if text[k] == " "}
    kept = [k for k in range(len(text)) if k not in needless]
    characters = tuple(reading.characters[k] for k in kept)
    return dataclasses.replace(reading, text="".join(text[k] for k in kept), characters=characters)


def plain_words(reading: Reading) -> list[dict]:
    """The words of a line for JSON and for parquet: text, confidence and box of each."""
    return [{"text": word.text, "confidence": word.confidence, "box": word.box} for word in split_words(reading)]


def render(page: Page, name: str) -> bytes:
    """A page in one of ``hwrlib.archive.FORMATS``, its texts as :func:`close_spaces` leaves them.

    Raises:
        FormatError: a page that the format cannot hold.
    """
    page = dataclasses.replace(page, readings=[close_spaces(reading) for reading in page.readings])
    height, width = page.pixels.shape
    if name == "pdf":
        return _pdf(page)
    if name == "text":
        return "".join(f"{reading.text}\n" for reading in page.readings).encode()
    if name == "json":
        lines = [dataclasses.asdict(reading) | {"words": plain_words(reading)} for reading in page.readings]
        return (json.dumps({"image": page.name, "width": width, "height": height, "lines": lines}) + "\n").encode()
    made = TEMPLATES.get_template(FORMATS[name][1:] + ".j2").render(
        name=page.name,
        width=width,
        height=height,
        now=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        rotation=page.readings[0].rotation if page.readings else 0,
        box=bounding_box([reading.box for reading in page.readings] or [(0, 0, width, height)]),
        lines=[_line(reading, width, height) for reading in page.readings],
    )
    return re.sub(NOT_IN_XML, "\ufffd", made).encode()


def write_page(page: Page, name: str, folder: Path) -> Path:
    """Write a page in a format to a folder, whole or not at all, under the name that :func:`page_file` gives it.

    Raises:
        FormatError: a page that the format cannot hold.
        OSError: the file could not be written.
    """
    path, content = page_file(page.name, name, folder), render(page, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda new: new.write_bytes(content))
    return path


def page_file(page: str, name: str, folder: Path) -> Path:
    """The file of a page in a format: no two pages of an archive have the same, and none lies outside the folder.

    >>> page_file("/box/../scan.tif#2", "alto", Path("out")).as_posix()
    'out/box/scan.tif-2.alto.xml'
    """
    path = Path(re.sub(r"#(\d+)$", r"-\1", page))
    path = folder.joinpath(*[part for part in path.parts if part not in (path.anchor, "..", ".")] or ["page"])
    return path.with_name(path.name + FORMATS[name])


def _line(reading: Reading, width: int, height: int) -> dict:
    """A line for the templates; no point lies beyond the picture's edges, which PAGE forbids."""
    x, y, w, h = reading.box
    baseline = reading.baseline or ((x, y + h), (x + w, y + h))
    outline = reading.outline or ((x, y), (x + w, y), (x + w, y + h), (x, y + h))
    about = {"text": reading.text, "confidence": reading.confidence, "box": reading.box, "words": split_words(reading)}
    for key, points in (("baseline", baseline), ("outline", outline)):
        about[key] = np.clip(points, 0, (width, height)).tolist()
    return about


def _pdf(page: Page) -> bytes:
    """A searchable PDF: the page's picture, grey and upright, and under it the words where they stand, invisible."""
    import fpdf

    rotation = page.readings[0].rotation if page.readings else 0
    pixels = np.ascontiguousarray(np.rot90(page.pixels, -rotation // 90))
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    point = 72 / (page.dpi or DPI)  # one pixel
    width, height = pixels.shape[1] * point, pixels.shape[0] * point
    pdf = fpdf.FPDF(unit="pt", format=(width, height))
    pdf.set_title(re.sub(NOT_IN_XML, "\ufffd", page.name))
    pdf.add_page(format=(width, height))
    pdf.image(io.BytesIO(jpeg.tobytes()), 0, 0, width, height)
    pdf.set_font("helvetica")
    with pdf.local_context(text_mode="INVISIBLE"):
        for reading in page.readings:
            if lacking := {c for c in reading.text if not c.isprintable() or ord(c) > 255}:  # they have Latin-1
                raise FormatError(
                    f"{page.name}: a PDF's own fonts lack {''.join(sorted(lacking))!r}; take another format"
                )
            words = split_words(reading)
            boxes = [turn_back(word.box, page.pixels.shape, -rotation % 360) for word in words]
            ends = [*(box[0] for box in boxes[1:]), pixels.shape[1]]
            for word, box, end, baseline in zip(words, boxes, ends, _baselines(boxes), strict=False):
                size = float(max(height for *_, height in boxes))
                room = max(end - GAP * size - box[0], 0.1 * size)  # readers of PDF find words by the gaps between them
                pdf.set_font_size(size * point)
                pdf.set_stretching(100)
                pdf.set_stretching(100 * min(box[2], room) * point / pdf.get_string_width(word.text))
                pdf.text(box[0] * point, (baseline + 0.3 * size) * point, word.text + " ")
    return bytes(pdf.output())


def _baselines(boxes: list[Box]) -> list[float]:
    """The row of the middle of each word, px, on one straight line."""
    if not boxes:
        return []
    middles = np.array([(x + width / 2, y + height / 2) for x, y, width, height in boxes])
    return np.polynomial.Polynomial.fit(*middles.T, deg=1 if len(boxes) > 2 else 0)(middles[:, 0]).tolist()
