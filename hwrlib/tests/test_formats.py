"""Files that other tools read: valid, with every word where it stands, and the same words in each of them."""

import dataclasses
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from hwrlib.archive.formats import FORMATS, FormatError, ReadPage, split_words, write_page
from hwrlib.archive.sources import DPI, iter_pages
from hwrlib.ctc import Character, Reading
from hwrlib.data import SAMPLE
from hwrlib.image_files import load_page
from hwrlib.page.lines import PageLine
from hwrlib.page.places import cut_columns, place_characters, turn_line_back
from hwrlib.recognizer import Recognizer

etree = pytest.importorskip("lxml.etree")
pypdfium2 = pytest.importorskip("pypdfium2")
pytest.importorskip("fpdf")
SCHEMAS = Path(__file__).parent / "schemas"
TILTED = cv2.getRotationMatrix2D((600, 250), 6, 1)


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer.from_pretrained(precision="no")


@pytest.fixture(scope="module")
def pages(recognizer):
    """Three lines of the embedded page: level, tilted by 6 degrees, on their side; and a page without writing."""
    level = load_page(SAMPLE / "page.png")[70:330]
    high = np.full((500, 1200), 215, np.uint8)
    high[120:380] = level
    given = {
        "level.png": level,
        "tilted.png": cv2.warpAffine(high, TILTED, high.shape[::-1], borderValue=215),
        "sub/side.tif#2": np.ascontiguousarray(np.rot90(level)),
        'blank "<&>\x07.png': np.full((300, 300), 230, np.uint8),
    }
    return [ReadPage(name, pixels, recognizer.read_page(pixels)) for name, pixels in given.items()]


def words_of(page):
    return [word for reading in page.readings for word in split_words(reading)]


def test_the_pages_were_read_as_they_lie(pages):
    assert [len(page.readings) for page in pages] == [3, 3, 3, 0]
    assert [page.readings[0].rotation for page in pages[:3]] == [0, 0, 90]
    assert [word.text for word in words_of(pages[0])] == [word.text for word in words_of(pages[2])]


def test_each_character_is_placed_on_its_ink_level_tilted_or_turned(pages):
    """Nearly all boxes hold ink, nearly all ink lies in a box, and no word is as high as a tilted line."""
    for page in pages[:3]:
        ink = cv2.morphologyEx(page.pixels, cv2.MORPH_BLACKHAT, np.ones((31, 31), np.uint8)) > 60
        inside, empty, letters = np.zeros_like(ink), 0, 0
        for word in words_of(page):
            for letter in word.characters:
                x, y, width, height = letter.box
                empty += not ink[y : y + height, x : x + width].any()
                letters += 1
            x, y, width, height = word.box
            inside[y : y + height, x : x + width] = True
        assert (ink & inside).sum() > 0.98 * ink.sum(), page.name
        assert empty <= 0.03 * letters, page.name  # CTC may find a full stop in the gap behind it
    tilted = pages[1].readings[0]
    assert max(word.box[3] for word in split_words(tilted)) < 0.6 * tilted.box[3]


def test_a_line_is_cut_half_way_between_its_characters():
    a, b = Character("a", 1, 10, 11), Character("b", 1, 20, 22)
    assert cut_columns((a, b), 200) == [(0, 64), (64, 134)]
    assert cut_columns((a,), 48) == [(32, 48)]


def test_a_character_without_ink_gets_the_place_between_its_neighbours():
    pixels = np.full((128, 160), 255, np.uint8)
    pixels[40:90, 10:30] = pixels[40:90, 130:150] = 0
    line = PageLine((0, 0, 80, 64), pixels)
    letters = (Character("i", 1, 4, 5), Character(" ", 1, 18, 19), Character("l", 1, 34, 35))
    placed = place_characters(letters, pixels, line.outline)
    assert [c.box for c in placed] == [(5, 20, 10, 25), (24, 0, 30, 64), (65, 20, 10, 25)]
    turned = turn_line_back(line, (64, 80), 1)  # as if the page had been turned clockwise to be (64, 80)
    assert turned.box == (0, 0, 64, 80)
    assert place_characters(letters, pixels, turned.outline)[0].box == (20, 65, 25, 10)


@pytest.mark.parametrize(("name", "schema"), [("alto", "alto-4-3"), ("page", "pagecontent-2019-07-15")])
def test_xml_is_valid_and_has_every_word(pages, name, schema):
    schema = etree.XMLSchema(etree.parse(SCHEMAS / f"{schema}.xsd"))
    for page in pages:
        root = etree.fromstring(FORMATS[name].write(page))
        schema.assertValid(root)
        found = {
            "alto": root.xpath("//*[local-name()='String']/@CONTENT"),
            "page": root.xpath("//*[local-name()='Word']/*[local-name()='TextEquiv']/*/text()"),
        }
        assert found[name] == [word.text for word in words_of(page)]


def test_a_line_that_nothing_was_read_on_is_valid_as_well():
    page = ReadPage("a.png", np.zeros((20, 90), np.uint8), [Reading("", 0.0, 1.0, (), box=(1, 2, 30, 10))])
    for name, schema in (("alto", "alto-4-3"), ("page", "pagecontent-2019-07-15")):
        etree.XMLSchema(etree.parse(SCHEMAS / f"{schema}.xsd")).assertValid(etree.fromstring(FORMATS[name].write(page)))
    assert FORMATS["pdf"].write(page).startswith(b"%PDF")


def test_places_and_confidences_are_the_same_in_alto_page_and_hocr(pages):
    page = pages[0]
    word = words_of(page)[1]
    x, y, width, height = word.box
    alto, xml, hocr = (FORMATS[name].write(page).decode() for name in ("alto", "page", "hocr"))
    wc = f"{word.confidence:.4f}"
    assert f'HPOS="{x}" VPOS="{y}" WIDTH="{width}" HEIGHT="{height}" CONTENT="{word.text}" WC="{wc}"' in alto
    assert f'points="{x},{y} {x + width},{y} {x + width},{y + height} {x},{y + height}"' in xml
    assert f'conf="{wc}"' in xml
    assert f'"bbox {x} {y} {x + width} {y + height}; x_wconf {round(100 * word.confidence)}">{word.text}<' in hocr


def test_hocr_is_well_formed_and_a_page_on_its_side_says_so(pages):
    for page in pages:
        root = etree.fromstring(FORMATS["hocr"].write(page))
        assert root.xpath("//*[@class='ocrx_word']/text()") == [word.text for word in words_of(page)]
    assert b"textangle 90" in FORMATS["hocr"].write(pages[2])


def test_json_has_the_page_its_lines_and_their_words(pages):
    found = json.loads(FORMATS["json"].write(pages[1]))
    assert (found["image"], found["width"], found["height"]) == ("tilted.png", 1200, 500)
    assert [line["text"] for line in found["lines"]] == [reading.text for reading in pages[1].readings]
    assert [w["text"] for line in found["lines"] for w in line["words"]] == [w.text for w in words_of(pages[1])]
    assert FORMATS["text"].write(pages[1]).decode().splitlines() == [reading.text for reading in pages[1].readings]


def test_a_pdf_has_the_words_of_the_json_where_they_stand(pages, tmp_path):
    for page in pages[:3]:
        data = FORMATS["pdf"].write(page)
        words = [word for line in json.loads(FORMATS["json"].write(page))["lines"] for word in line["words"]]
        sheet = pypdfium2.PdfDocument(data)[0]
        text = sheet.get_textpage()
        assert text.get_text_range().split() == [word["text"] for word in words]
        if shutil.which("pdftotext"):
            (tmp_path / "page.pdf").write_bytes(data)
            for option in (
                "-raw",
                "-layout",
            ):  # as they are stored; as they are seen, in which a tilted line falls apart
                command = ["pdftotext", option, str(tmp_path / "page.pdf"), "-"]
                made = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                order = sorted if option == "-layout" and page is pages[1] else list
                assert order(made) == order(word["text"] for word in words)
        width, height = sheet.get_size()
        upright = page.size if page.readings[0].rotation == 0 else page.size[::-1]
        assert (width, height) == pytest.approx(np.array(upright) * 72 / DPI, abs=0.1)
    x, y, w, h = words_of(pages[0])[3].box  # of a level page
    page = pypdfium2.PdfDocument(FORMATS["pdf"].write(pages[0]))[0]
    left, right = x * 72 / DPI, (x + w) * 72 / DPI
    middle = page.get_height() - (y + h / 2) * 72 / DPI
    found = page.get_textpage().get_text_bounded(left=left - 1, right=right + 1, bottom=middle - 4, top=middle + 4)
    assert found.strip() == words_of(pages[0])[3].text


def test_a_pdf_shows_the_page_and_none_of_the_text(pages):
    (pixels,) = iter_pages(FORMATS["pdf"].write(pages[0]), "made.pdf")
    expected = cv2.resize(pages[0].pixels, pixels.shape[::-1])
    assert np.abs(pixels.astype(int) - expected).mean() < 3


def test_a_character_that_a_pdf_cannot_show_is_named(pages):
    reading = dataclasses.replace(pages[0].readings[0], text="Łódź")
    with pytest.raises(FormatError, match=r"level\.png.*Ł"):
        FORMATS["pdf"].write(dataclasses.replace(pages[0], readings=[reading]))


def test_a_file_is_named_after_its_page_and_stays_in_its_folder(pages, tmp_path):
    assert write_page(pages[2], "alto", tmp_path) == tmp_path / "sub" / "side.tif-2.alto.xml"
    outside = dataclasses.replace(pages[3], name="/etc/../../passwd")
    assert write_page(outside, "text", tmp_path) == tmp_path / "etc" / "passwd.txt"
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["passwd.txt", "side.tif-2.alto.xml"]


def pdf(*sizes, picture=None):
    """A PDF of pages so many points large."""
    import fpdf

    made = fpdf.FPDF(unit="pt")
    for size in sizes:
        made.add_page(format=size)
        if picture is not None:
            made.image(picture, 0, 0, *size)
    return bytes(made.output())


def test_the_pages_of_a_pdf_are_rendered_at_200_dpi(tmp_path):
    line = Image.fromarray(np.tile(np.repeat(np.array([[0, 255]], np.uint8), 50, axis=1), (50, 1)))
    path = tmp_path / "two.pdf"
    path.write_bytes(pdf((72, 36), (36, 72), picture=line))
    first, second = iter_pages(str(path), "two.pdf")
    assert (first.shape, second.shape) == ((100, 200), (200, 100))
    assert first.dtype == np.uint8 and first[50, 40] < 10 and first[50, 160] > 245


def test_what_is_wrong_with_a_pdf_is_said_before_anything_is_drawn():
    (error,) = iter_pages(pdf((72, 72))[:200], "cut.pdf")
    assert re.match(r"cut\.pdf cannot be opened", str(error))
    fine, huge = iter_pages(pdf((72, 72), (14_000, 14_000)), "huge.pdf")
    assert fine.shape == (200, 200)
    assert re.match(r"huge\.pdf, page 2, .*38889 x 38889", str(huge))
    (many,) = iter_pages(pdf(*[(72, 72)] * 1001), "many.pdf")
    assert "1,001 pages" in str(many)


def test_a_small_page_with_a_gigantic_picture_in_it_is_refused():
    data = pdf((72, 72), picture=Image.new("L", (10, 10)))
    data = data.replace(b"/Width 10", b"/Width 90000").replace(b"/Height 10", b"/Height 90000")
    (error,) = iter_pages(data, "bomb.pdf")
    assert re.match(r"bomb\.pdf, page 1, .*90000 x 90000", str(error)), error


def test_pages_of_a_tiff_come_one_by_one_and_what_is_broken_names_its_file():
    buffer = io.BytesIO()
    Image.new("L", (30, 20), 255).save(buffer, "TIFF", save_all=True, append_images=[Image.new("L", (10, 10))])
    assert [page.shape for page in iter_pages(buffer.getvalue(), "a.tif")] == [(20, 30), (10, 10)]
    for data in (b"", b"no image"):
        (error,) = iter_pages(data, "b.png")
        assert str(error).startswith("b.png: ") and "bytes" not in str(error)
    (error,) = iter_pages("nowhere.png", "nowhere.png")
    assert "nowhere.png" in str(error)
