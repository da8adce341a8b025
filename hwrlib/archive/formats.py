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
from numpy.polynomial import Polynomial

from hwrlib.archive import FORMATS
from hwrlib.archive.sources import DPI, Page
from hwrlib.ctc import Character, Reading
from hwrlib.files import write_whole
from hwrlib.page.lines import Box, bounding_box, turn_back

SWITCHES = dict.fromkeys(("autoescape", "trim_blocks", "lstrip_blocks", "keep_trailing_newline"), True)
LOADER = jinja2.FileSystemLoader(Path(__file__).parent)
TEMPLATES = jinja2.Environment(loader=LOADER, undefined=jinja2.StrictUndefined, **SWITCHES)
NOT_IN_XML = r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # which a file's name can hold
NEEDLESS_SPACE = r" +(?=[.,;:!?)\]])|(?<=[(\[]) +"
GAP = 0.25  # of the size of the font: the least space between two words of a PDF
QUALITY = 85  # of the JPEG in a PDF


class Word(NamedTuple):
    """One word of a line: its confidence is the mean of its characters', its box (x, y, width, height) in pixels."""

    text: str
    confidence: float
    box: Box
    characters: tuple[Character, ...]


def split_words(reading: Reading) -> list[Word]:
    """The words of a line that was read on a page, in order."""
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
    characters = tuple(character for k, character in enumerate(reading.characters) if k not in needless)
    return dataclasses.replace(reading, text="".join(c.text for c in characters), characters=characters)


def plain_words(reading: Reading) -> list[dict]:
    """The words of a line for JSON and for parquet: text, confidence and box of each."""
    return [{"text": word.text, "confidence": word.confidence, "box": word.box} for word in split_words(reading)]


def render(page: Page, name: str) -> bytes:
    """A page in one of ``hwrlib.archive.FORMATS``, its texts as :func:`close_spaces` leaves them; or a ValueError."""
    page = dataclasses.replace(page, readings=[close_spaces(reading) for reading in page.readings])
    height, width = page.pixels.shape
    if name == "pdf":
        return _pdf(page)
    if name == "text":
        return "".join(f"{reading.text}\n" for reading in page.readings).encode()
    if name == "json":
        lines = [dataclasses.asdict(reading) | {"words": plain_words(reading)} for reading in page.readings]
        return (json.dumps({"image": page.name, "width": width, "height": height, "lines": lines}) + "\n").encode()
    about = {"name": page.name, "width": width, "height": height, "now": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"}
    about["box"] = bounding_box([reading.box for reading in page.readings] or [(0, 0, width, height)])
    about["rotation"] = page.readings[0].rotation if page.readings else 0
    about["lines"] = [dataclasses.asdict(reading) | {"words": split_words(reading)} for reading in page.readings]
    made = TEMPLATES.get_template(FORMATS[name][1:] + ".j2").render(about)
    return re.sub(NOT_IN_XML, "\ufffd", made).encode()


def write_page(page: Page, name: str, folder: Path) -> Path:
    """Write a page as :func:`render` does to its :func:`page_file` in a folder, whole or not at all."""
    path, content = page_file(page.name, name, folder), render(page, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda new: new.write_bytes(content))
    return path


def page_file(page: str, name: str, folder: Path) -> Path:
    """The file of a page in a format: no two pages of an archive have the same, and none lies outside the folder."""
    path = Path(re.sub(r"#(\d+)$", r"-\1", page))
    path = folder.joinpath(*[part for part in path.parts if part not in (path.anchor, "..", ".")] or ["page"])
    return path.with_name(path.name + FORMATS[name])


def _pdf(page: Page) -> bytes:
    """A searchable PDF: the page's picture, grey and upright, and under it the words where they stand, invisible."""
    import fpdf

    rotation = page.readings[0].rotation if page.readings else 0
    pixels = np.ascontiguousarray(np.rot90(page.pixels, -rotation // 90))
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    point = 72 / (page.dpi or DPI)  # one pixel
    sheet = pixels.shape[1] * point, pixels.shape[0] * point
    pdf = fpdf.FPDF(unit="pt", format=sheet)
    pdf.set_title(re.sub(NOT_IN_XML, "\ufffd", page.name))
    pdf.add_page(format=sheet)
    pdf.image(io.BytesIO(jpeg.tobytes()), 0, 0, *sheet)
    pdf.set_font("helvetica")
    with pdf.local_context(text_mode="INVISIBLE"):
        for reading in page.readings:
            if lacking := sorted({c for c in reading.text if not c.isprintable() or ord(c) > 255}):  # they have Latin-1
                raise ValueError(f"{page.name}: a PDF's own fonts lack {''.join(lacking)!r}; take another format")
            if not (words := split_words(reading)):
                continue
            boxes = [turn_back(word.box, page.pixels.shape, -rotation % 360) for word in words]
            size = float(max(height for *_, height in boxes))
            middles = np.array([(x + width / 2, y + height / 2) for x, y, width, height in boxes])
            line = Polynomial.fit(*middles.T, deg=1 if len(boxes) > 2 else 0)  # all words stand on one straight line
            ends = [*(x for x, *_ in boxes[1:]), pixels.shape[1]]
            for word, (x, _, width, _), end, row in zip(words, boxes, ends, line(middles[:, 0]).tolist(), strict=True):
                room = max(end - GAP * size - x, 0.1 * size)  # readers of PDF find words by the gaps between them
                pdf.set_font_size(size * point)
                pdf.set_stretching(100)
                pdf.set_stretching(100 * min(width, room) * point / pdf.get_string_width(word.text))
                pdf.text(x * point, (row + 0.3 * size) * point, word.text + " ")
    return bytes(pdf.output())
