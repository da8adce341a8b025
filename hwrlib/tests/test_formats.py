"""Files that other tools read: valid, with every word where it stands, and the same words in each of them."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pypdfium2
import pytest
from lxml import etree

from hwrlib import SAMPLE
from hwrlib.archive import FORMATS
from hwrlib.archive.formats import close_spaces, render, split_words, write_page
from hwrlib.archive.sources import DPI, Page, iter_pages
from hwrlib.ctc import Character, Reading
from hwrlib.images import load_page
from hwrlib.recognizer import Recognizer

SCHEMAS = {"alto": "alto-4-3", "page": "pagecontent-2019-07-15"}
TILTED = cv2.getRotationMatrix2D((600, 250), 6, 1)


@pytest.fixture(scope="module")
def pages():
    """Three lines of the embedded page: level, tilted by 6 degrees, on their side; and a page without writing."""
    recognizer = Recognizer.from_pretrained(precision="fp32")
    level = load_page(SAMPLE / "page.png")[70:330]
    high = np.full((500, 1200), 215, np.uint8)
    high[120:380] = level
    given = {
        "level.png": level,
        "tilted.png": cv2.warpAffine(high, TILTED, high.shape[::-1], borderValue=215),
        "sub/side.tif#2": np.ascontiguousarray(np.rot90(level)),
        'blank "<&>\x07.png': np.full((300, 300), 230, np.uint8),
    }
    return [Page(name, pixels, readings=recognizer.read_page(pixels)) for name, pixels in given.items()]


def words_of(page):
    return [word for reading in page.readings for word in split_words(close_spaces(reading))]


def reading_of(text, outline=((0, 5), (90, 5), (90, 15), (0, 15))):
    """A reading whose letters are 10 px wide, on one line."""
    letters = tuple(Character(c, 0.5, k, k + 1, box=(10 * k, 5, 9, 20)) for k, c in enumerate(text))
    box = (0, 5, 10 * max(1, len(text)), 20)
    return Reading(text, 0.0, 0.5, letters, box=box, baseline=outline[2:], outline=outline)


def parsed(page, name):
    """The root of a page's XML, which must be valid."""
    root = etree.fromstring(render(page, name))
    if name in SCHEMAS:
        etree.XMLSchema(etree.parse(Path(__file__).parent / "schemas" / f"{SCHEMAS[name]}.xsd")).assertValid(root)
    return root


def test_each_character_is_placed_on_its_ink_level_tilted_or_turned(pages):
    """Nearly all boxes hold ink, nearly all ink lies in a box, and no word is as high as a tilted line."""
    assert [len(page.readings) for page in pages] == [3, 3, 3, 0]
    assert [page.readings[0].rotation for page in pages[:3]] == [0, 0, 90]
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


@pytest.mark.parametrize("name", ["alto", "page", "hocr"])
def test_xml_is_valid_and_has_every_word_the_name_of_the_page_and_lines_as_kraken_wants_them(pages, name):
    """kraken skips a line without a baseline; points are where the ink is, the baseline within the outline."""
    found = {
        "alto": "//*[local-name()='String']/@CONTENT",
        "page": "//*[local-name()='Word']/*[local-name()='TextEquiv']/*/text()",
        "hocr": "//*[@class='ocrx_word']/text()",
    }
    places = {"alto": "//@BASELINE|//@POINTS", "page": "//@points[../../@id[contains(., 'line')]]"}
    for page in pages:
        root = parsed(page, name)
        assert root.xpath(found[name]) == [word.text for word in words_of(page)]
        called = root.xpath("//*[local-name()='fileName']/text()|//@imageFilename|//*[local-name()='title']/text()")
        assert called == [page.name.replace("\x07", "\ufffd")]
        if name in places:
            points = [np.array(at.replace(",", " ").split(), int).reshape(-1, 2) for at in root.xpath(places[name])]
            assert len(points) == 2 * len(page.readings)
            for k in range(0, len(points), 2):
                outline, baseline = sorted(points[k : k + 2], key=len, reverse=True)
                assert len(baseline) >= 2 and (points[k] >= 0).all() and (points[k] <= page.pixels.shape[::-1]).all()
                middle = tuple(baseline[len(baseline) // 2].tolist())
                assert cv2.pointPolygonTest(outline.astype(np.float32), middle, False) > 0
    assert b"textangle 90" in render(pages[2], "hocr")
    assert 'image "blank \'<&>\ufffd.png"' in parsed(pages[3], "hocr").xpath("//@title")[0]


def test_a_line_that_nothing_was_read_on_or_that_fills_the_picture_is_valid_as_well():
    empty = Page("a.png", np.zeros((20, 90), np.uint8), readings=[reading_of("")])
    full = reading_of("<&>\x07", outline=((0, 0), (50, 1), (90, 20), (0, 20)))
    full = Page("b.png", empty.pixels, readings=[full])
    for page in (empty, full):
        for name in ("alto", "page", "hocr"):
            parsed(page, name)
    assert render(empty, "pdf").startswith(b"%PDF")
    assert parsed(full, "alto").xpath("//*[local-name()='String']/@CONTENT") == ["<&>\ufffd"]


def test_iams_spaces_are_closed_in_every_format():
    page = Page("a.png", np.full((40, 900), 255, np.uint8), readings=[reading_of('" Well " , he ( once ) said !')])
    words = ['"Well",', "he", "(once)", "said!"]
    assert render(page, "text") == b'"Well", he (once) said!\n'
    (line,) = json.loads(render(page, "json"))["lines"]
    assert [word["text"] for word in line["words"]] == words and line["text"] == " ".join(words)
    assert line["words"][0]["box"] == [0, 5, 99, 20]
    assert parsed(page, "alto").xpath("//*[local-name()='String']/@CONTENT") == words
    assert pypdfium2.PdfDocument(render(page, "pdf"))[0].get_textpage().get_text_range().split() == words
    for text in ('said . " And then', 'he said , " Come , " and'):
        assert '" ' in close_spaces(reading_of(text)).text  # it may open or close: left as it was read


def test_places_and_confidences_are_the_same_in_alto_page_hocr_and_json(pages):
    page = pages[0]
    word = words_of(page)[1]
    x, y, width, height = word.box
    alto, xml, hocr = (render(page, name).decode() for name in ("alto", "page", "hocr"))
    wc = f"{word.confidence:.4f}"
    assert f'HPOS="{x}" VPOS="{y}" WIDTH="{width}" HEIGHT="{height}" CONTENT="{word.text}" WC="{wc}"' in alto
    assert f'points="{x},{y} {x + width},{y} {x + width},{y + height} {x},{y + height}"' in xml
    assert f'conf="{wc}"' in xml
    assert f'"bbox {x} {y} {x + width} {y + height}; x_wconf {round(100 * word.confidence)}">{word.text}<' in hocr
    found = json.loads(render(page, "json"))
    assert (found["image"], found["width"], found["height"]) == ("level.png", 1200, 260)
    given = [(w.text, list(w.box)) for w in words_of(page)]
    assert [(w["text"], w["box"]) for line in found["lines"] for w in line["words"]] == given
    assert render(page, "text").decode().splitlines() == [line["text"] for line in found["lines"]]
    for line in found["lines"]:
        assert "".join(c["text"] for c in line["characters"]) == line["text"] and 0 <= line["confidence"] <= 1
        assert len(line["baseline"]) >= 2


def test_a_pdf_has_the_words_where_they_stand_is_as_large_as_the_picture_says_and_shows_it(pages):
    for page in pages[:3]:
        words = [word.text for word in words_of(page)]
        sheet = pypdfium2.PdfDocument(render(page, "pdf"))[0]
        assert sheet.get_textpage().get_text_range().split() == words
        height, width = page.pixels.shape if page.readings[0].rotation == 0 else page.pixels.shape[::-1]
        assert sheet.get_size() == pytest.approx((width * 72 / DPI, height * 72 / DPI), abs=0.1)
    word = words_of(pages[0])[3]
    x, y, w, h = (side * 72 / DPI for side in word.box)
    page = pypdfium2.PdfDocument(render(pages[0], "pdf"))[0]
    middle = page.get_height() - y - h / 2
    found = page.get_textpage().get_text_bounded(left=x - 1, right=x + w + 1, bottom=middle - 4, top=middle + 4)
    assert found.strip() == word.text
    made = render(dataclasses.replace(pages[0], dpi=300), "pdf")
    assert pypdfium2.PdfDocument(made)[0].get_width() == pytest.approx(4 * 72)
    (shown,) = iter_pages(made, "made.pdf")
    assert shown.pixels.shape == pytest.approx(pages[0].pixels.shape, abs=1)  # drawn as fine as the picture in it
    assert np.abs(cv2.resize(shown.pixels, (1200, 260)).astype(int) - pages[0].pixels).mean() < 3
    with pytest.raises(ValueError, match=r"level\.png.*Ł"):
        render(dataclasses.replace(pages[0], readings=[reading_of("Łódź")]), "pdf")


def test_a_file_is_named_after_its_page_alone_and_stays_in_its_folder(pages, tmp_path):
    assert write_page(pages[2], "alto", tmp_path) == tmp_path / "sub" / "side.tif-2.alto.xml"
    for name in ("/etc/../../passwd", "page#1.png", "page-1.png"):
        write_page(dataclasses.replace(pages[3], name=name), "text", tmp_path)
    made = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert made == ["etc/passwd.txt", "page#1.png.txt", "page-1.png.txt", "sub/side.tif-2.alto.xml"]
    assert {path.suffix for path in (write_page(pages[3], name, tmp_path) for name in FORMATS)} >= {".pdf", ".html"}
