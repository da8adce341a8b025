"""What was read of a page, in formats that other tools take: text, JSON, ALTO, PAGE, hOCR, PDF (chapter 9)."""

import dataclasses
import io
import itertools
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import cv2
import numpy as np

from hwrlib.archive.sources import DPI
from hwrlib.checkpoints import write_whole
from hwrlib.ctc import Character, Reading
from hwrlib.page.places import Box, bounding_box, turn_back

ALTO = "http://www.loc.gov/standards/alto/ns-v4#"
PAGE = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15"
XHTML = "http://www.w3.org/1999/xhtml"
SOFTWARE = "hwrlib"
NOT_IN_XML = r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
GAP = 0.25  # of the size of the font: the least space between two words of a PDF
QUALITY = 85  # of the JPEG in a PDF


class FormatError(ValueError):
    """A page that a format cannot hold; the message says why and which format can."""


@dataclasses.dataclass(frozen=True)
class ReadPage:
    """A page and what was read on it.

    Arguments:
        name: of its file; ``scan.tif#2`` is the second page of one.
        pixels: uint8 (H, W).
        readings: of its lines, from :meth:`hwrlib.recognizer.Recognizer.read_page`.
    """

    name: str
    pixels: np.ndarray
    readings: list[Reading]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


class Word(NamedTuple):
    """One word of a line.

    Arguments:
        text: without spaces.
        confidence: 0 to 1, the mean of its characters' confidences.
        box: (x, y, width, height) in pixels of the page.
        characters: that it is made of.
    """

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


def to_text(page: ReadPage) -> bytes:
    """The text, one row a line."""
    return "".join(f"{reading.text}\n" for reading in page.readings).encode()


def to_json(page: ReadPage) -> bytes:
    """One object: the page's name and size, and its lines with words, characters, boxes and confidences."""
    lines = [dataclasses.asdict(reading) | {"words": plain_words(reading)} for reading in page.readings]
    width, height = page.size
    return (json.dumps({"image": page.name, "width": width, "height": height, "lines": lines}) + "\n").encode()


def to_alto(page: ReadPage) -> bytes:
    """ALTO 4.4 of the Library of Congress: block, lines, words and glyphs, each with its place and confidence."""
    root = ET.Element("alto", xmlns=ALTO, SCHEMAVERSION="4.4")
    about = ET.SubElement(root, "Description")
    ET.SubElement(about, "MeasurementUnit").text = "pixel"
    _below(about, "sourceImageInformation", "fileName").text = _clean(page.name)
    software = _below(ET.SubElement(about, "Processing", ID="reading"), "processingSoftware", "softwareName")
    software.text = SOFTWARE
    whole = _alto_place((0, 0, *page.size))
    sheet = {name: whole[name] for name in ("HEIGHT", "WIDTH")}
    space = _below(root, "Layout", ("Page", {"ID": "page", "PHYSICAL_IMG_NR": "1", **sheet}), ("PrintSpace", whole))
    if page.readings:
        place = _alto_place(bounding_box([reading.box for reading in page.readings]))
        block = ET.SubElement(space, "TextBlock", ID="block", **place, ROTATION=str(page.readings[0].rotation))
    for number, reading in enumerate(page.readings):
        line = ET.SubElement(block, "TextLine", ID=f"line_{number}", **_alto_place(reading.box))
        for k, word in enumerate(split_words(reading)):
            if k:
                ET.SubElement(line, "SP")
            about = {"CONTENT": word.text, "WC": f"{word.confidence:.4f}"}
            string = ET.SubElement(line, "String", ID=f"word_{number}_{k}", **_alto_place(word.box), **about)
            for glyph in word.characters:
                about = {"CONTENT": glyph.text, "GC": f"{glyph.confidence:.4f}"}
                ET.SubElement(string, "Glyph", **_alto_place(glyph.box), **about)
        if not line:
            ET.SubElement(line, "String", CONTENT="", **_alto_place(reading.box))  # ALTO knows no line without a word
    return _xml(root)


def to_page_xml(page: ReadPage) -> bytes:
    """PAGE 2019-07-15 of PRImA: region, lines, words and glyphs, each with its outline and confidence."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    root = ET.Element("PcGts", xmlns=PAGE)
    about = ET.SubElement(root, "Metadata")
    for name, text in (("Creator", SOFTWARE), ("Created", now), ("LastChange", now)):
        ET.SubElement(about, name).text = text
    width, height = map(str, page.size)
    sheet = ET.SubElement(root, "Page", imageFilename=_clean(page.name), imageWidth=width, imageHeight=height)
    if page.readings:
        rotation = page.readings[0].rotation
        turned = str(rotation - 360 if rotation > 180 else rotation)
        region = ET.SubElement(sheet, "TextRegion", id="region", orientation=turned)
        _outline(region, bounding_box([reading.box for reading in page.readings]))
    for number, reading in enumerate(page.readings):
        line = _outline(ET.SubElement(region, "TextLine", id=f"line_{number}"), reading.box)
        for k, word in enumerate(split_words(reading)):
            part = _outline(ET.SubElement(line, "Word", id=f"word_{number}_{k}"), word.box)
            for n, letter in enumerate(word.characters):
                glyph = _outline(ET.SubElement(part, "Glyph", id=f"glyph_{number}_{k}_{n}"), letter.box)
                _text(glyph, letter.text, letter.confidence)
            _text(part, word.text, word.confidence)
        _text(line, reading.text, reading.confidence)
    return _xml(root)


def to_hocr(page: ReadPage) -> bytes:
    """hOCR: a web page of lines and words, each with its place and confidence."""
    root = ET.Element("html", xmlns=XHTML)
    head, body = ET.SubElement(root, "head"), ET.SubElement(root, "body")
    ET.SubElement(head, "title").text = _clean(page.name)
    for name, content in (("ocr-system", SOFTWARE), ("ocr-capabilities", "ocr_page ocr_line ocrx_word")):
        ET.SubElement(head, "meta", name=name, content=content)
    title = f'image "{_clean(page.name).replace(chr(34), chr(39))}"; {_bbox((0, 0, *page.size))}; ppageno 0'
    sheet = ET.SubElement(body, "div", {"class": "ocr_page", "id": "page_1", "title": title})
    sheet.text = "\n"
    for number, reading in enumerate(page.readings):
        turned = f"; textangle {reading.rotation}" if reading.rotation else ""
        about = {"class": "ocr_line", "id": f"line_{number}", "title": _bbox(reading.box) + turned}
        line = ET.SubElement(sheet, "span", about, style="display: block")
        line.text, line.tail = " ", "\n"
        for k, word in enumerate(split_words(reading)):
            title = f"{_bbox(word.box)}; x_wconf {round(100 * word.confidence)}"
            part = ET.SubElement(line, "span", {"class": "ocrx_word", "id": f"word_{number}_{k}", "title": title})
            part.text, part.tail = word.text, " "
    return b"<!DOCTYPE html>\n" + ET.tostring(root, encoding="utf-8") + b"\n"


def to_pdf(page: ReadPage) -> bytes:
    """A searchable PDF: the page's picture, grey and upright, and under it the words where they stand, invisible.

    Raises:
        FormatError: a character that the PDF's own fonts lack (they have Latin-1).
    """
    import fpdf

    quarters = page.readings[0].rotation // 90 if page.readings else 0
    pixels = np.ascontiguousarray(np.rot90(page.pixels, -quarters))
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    width, height = pixels.shape[1] * 72 / DPI, pixels.shape[0] * 72 / DPI
    pdf = fpdf.FPDF(unit="pt", format=(width, height))
    pdf.set_title(_clean(page.name))
    pdf.add_page(format=(width, height))
    pdf.image(io.BytesIO(jpeg.tobytes()), 0, 0, width, height)
    pdf.set_font("helvetica")
    with pdf.local_context(text_mode="INVISIBLE"):
        for reading in page.readings:
            words = [
                (word.text, turn_back(word.box, page.pixels.shape, -quarters % 4)) for word in split_words(reading)
            ]
            if lacking := {c for c in reading.text if not c.isprintable() or ord(c) > 255}:
                raise FormatError(
                    f"{page.name}: a PDF's own fonts lack {''.join(sorted(lacking))!r}; take another format"
                )
            ends = [*(box[0] for _, box in words[1:]), pixels.shape[1]][: len(words)]
            placed = zip(words, *_baselines([box for _, box in words]), ends, strict=True)
            for (text, box), baseline, size, end in placed:
                room = max(end - GAP * size - box[0], 0.1 * size)  # readers of PDF find words by the gaps between them
                pdf.set_font_size(size * 72 / DPI)
                pdf.set_stretching(100)
                natural = pdf.get_string_width(text)
                pdf.set_stretching(100 * min(box[2], room) * 72 / DPI / natural)
                pdf.text(box[0] * 72 / DPI, baseline * 72 / DPI, text + " ")
    return bytes(pdf.output())


class Format(NamedTuple):
    """A format: how the name of its file ends, and what makes the file's bytes."""

    ending: str
    write: Callable[[ReadPage], bytes]


FORMATS = {
    "text": Format(".txt", to_text),
    "json": Format(".json", to_json),
    "alto": Format(".alto.xml", to_alto),
    "page": Format(".page.xml", to_page_xml),
    "hocr": Format(".hocr.html", to_hocr),
    "pdf": Format(".pdf", to_pdf),
}


def write_page(page: ReadPage, name: str, folder: Path) -> Path:
    """Write a page in a format to a folder, whole or not at all; the file is named after the page.

    Arguments:
        page: to be written.
        name: of the format, one of ``FORMATS``.
        folder: made where it is missing; the folders in the page's name are made in it.

    Raises:
        FormatError: a page that the format cannot hold.
        OSError: the file could not be written.
    """
    parts = [part for part in Path(page.name.replace("#", "-")).parts if part not in ("/", "..", ".")]
    path = folder.joinpath(*parts or ["page"])
    path = path.with_name(path.name + FORMATS[name].ending)
    content = FORMATS[name].write(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda new: new.write_bytes(content))
    return path


def plain_words(reading: Reading) -> list[dict]:
    """The words of a line for JSON and for parquet: text, confidence and box of each."""
    return [{"text": w.text, "confidence": w.confidence, "box": w.box} for w in split_words(reading)]


def _baselines(boxes: list[Box]) -> tuple[list[float], list[float]]:
    """The baseline (y) and the size of the font of each word, px: one straight line, as tall as the tallest word."""
    if not boxes:
        return [], []
    middles = np.array([(x + width / 2, y + height / 2) for x, y, width, height in boxes])
    line = np.polynomial.Polynomial.fit(*middles.T, deg=1 if len(boxes) > 2 else 0)
    size = float(max(height for _, _, _, height in boxes))
    return [float(line(x)) + 0.3 * size for x in middles[:, 0]], [size] * len(boxes)


def _clean(text: str) -> str:
    """The text without what XML cannot hold, which a file's name can."""
    return re.sub(NOT_IN_XML, "\ufffd", text)


def _xml(root: ET.Element) -> bytes:
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _below(element: ET.Element, *steps: str | tuple[str, dict]) -> ET.Element:
    """The innermost of new elements, each in the one before."""
    for step in steps:
        name, attributes = (step, {}) if isinstance(step, str) else step
        element = ET.SubElement(element, name, attributes)
    return element


def _alto_place(box: Box) -> dict[str, str]:
    return dict(zip(("HPOS", "VPOS", "WIDTH", "HEIGHT"), map(str, box), strict=True))


def _outline(element: ET.Element, box: Box) -> ET.Element:
    """The element, with its corners in it."""
    x, y, width, height = box
    corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
    ET.SubElement(element, "Coords", points=" ".join(f"{x},{y}" for x, y in corners))
    return element


def _text(element: ET.Element, text: str, confidence: float) -> None:
    _below(element, ("TextEquiv", {"conf": f"{confidence:.4f}"}), "Unicode").text = text


def _bbox(box: Box) -> str:
    x, y, width, height = box
    return f"bbox {x} {y} {x + width} {y + height}"
