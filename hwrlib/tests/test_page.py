"""Every line of the sample page is found, whatever the camera and the paper do to it."""

import io
import json
import struct
import zlib
from importlib import resources

import cv2
import numpy as np
import pytest
from PIL import Image

from hwrlib.data import load_lines
from hwrlib.image_files import ImageError, load_page
from hwrlib.page.ink import find_skew
from hwrlib.page.lines import crop_line, find_lines

SAMPLES = resources.files("hwrlib.samples")
PAGE = load_page((SAMPLES / "page.png").read_bytes())
BOXES = [line["box"] for line in json.loads((SAMPLES / "page.json").read_text())["lines"]]
MIDDLES = [(x + w / 2, y + h / 2) for x, y, w, h in BOXES]
LINE = load_page(load_lines("validation", "sample")[0]["image"])
ROWS, COLUMNS = PAGE.shape
DOWN, ACROSS = np.mgrid[:ROWS, :COLUMNS].astype(np.float32)


def written(rows, height=400, width=700, size=1.6, paper=230, ink=40):
    """A page with a text (from the left, baseline) on each of the given rows."""
    page = np.full((height, width), paper, np.uint8)
    for (left, baseline), text in rows.items():
        cv2.putText(page, text, (left, baseline), cv2.FONT_HERSHEY_SCRIPT_SIMPLEX, size, ink, 3, cv2.LINE_AA)
    return page


def turned(page, degrees, around=(COLUMNS / 2, ROWS / 2)):
    matrix = cv2.getRotationMatrix2D(around, degrees, 1)
    return cv2.warpAffine(page, matrix, page.shape[::-1], borderMode=cv2.BORDER_REPLICATE), matrix


def assert_all_found(page, places=MIDDLES, least=0.75):
    """One line each, in order, over the places given, and the crops as long as the lines."""
    lines = find_lines(page)
    assert len(lines) == len(places)
    for line, (x, y), given in zip(lines, places, BOXES, strict=True):
        left, top, width, height = line.box
        assert left < x < left + width
        assert abs(top + height / 2 - y) < 20
        assert width > least * given[2]
        assert line.image.dtype == np.uint8
        assert line.image.shape[0] < 100  # levelled, whatever the box's height
        assert np.median(line.image) > line.image.min() + 50
    return lines


def test_the_sample_page_is_found_to_the_pixel():
    for line, (x, y, w, h) in zip(assert_all_found(PAGE), BOXES, strict=True):
        left, top, width, height = line.box
        shared = max(0, min(x + w, left + width) - max(x, left)) * max(0, min(y + h, top + height) - max(y, top))
        assert shared / (w * h + width * height - shared) > 0.7


@pytest.mark.parametrize("degrees", [-15, -5, 5, 15])
def test_a_tilted_page(degrees):
    sheet = np.pad(PAGE, 200, mode="edge")  # so that no line is turned out of the picture
    matrix = cv2.getRotationMatrix2D((COLUMNS / 2 + 200, ROWS / 2 + 200), degrees, 1)
    page = cv2.warpAffine(sheet, matrix, sheet.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    matrix[:, 2] += matrix[:, :2] @ (200, 200)
    assert_all_found(page, [tuple(matrix @ (x, y, 1)) for x, y in MIDDLES])


def test_shadow_and_falling_light():
    light = (1 - 0.4 * ACROSS / COLUMNS) * (0.8 + 0.2 * np.tanh((ACROSS - 150) / 20))
    assert_all_found((PAGE * light).astype(np.uint8))


@pytest.mark.parametrize("rule", [0.75, 0.5], ids=["faint", "dark"])
@pytest.mark.parametrize("squares", [False, True], ids=["ruled", "squared"])
def test_rulings_are_no_ink(rule, squares):
    page = PAGE.astype(np.float32)
    step = 40 if squares else 80
    page[30::step] *= rule
    page[31::step] *= rule
    for left in range(20, COLUMNS, step) if squares else (50,):
        page[:, left : left + 2] *= rule
    for line in assert_all_found(page.astype(np.uint8)):
        assert line.box[0] > 55
        assert line.box[2] < 1050


def test_a_curved_page():
    bend = 15 * np.sin(2 * np.pi * ACROSS / COLUMNS)
    page = cv2.remap(PAGE, ACROSS, DOWN + bend.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    assert_all_found(page)


def test_a_dark_desk_around_the_sheet():
    grain = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 60, (ROWS + 300, COLUMNS + 400)), (0, 0), 9, 2)
    desk = (60 + grain).clip(0, 255).astype(np.uint8)
    desk[150:-150, 200:-200] = PAGE
    assert_all_found(desk, [(x + 200, y + 150) for x, y in MIDDLES])


def test_white_on_black():
    lines = assert_all_found(255 - PAGE)
    assert np.median(lines[0].image) > 128


def test_a_phone_photo_is_found_in_its_own_pixels():
    page = cv2.resize(PAGE, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    lines = find_lines(page)
    assert [round((line.box[1] + line.box[3] / 2) / 3, -1) for line in lines] == pytest.approx(
        [y for _, y in MIDDLES], abs=20
    )
    assert lines[0].image.shape[1] > 2 * BOXES[0][2]


def test_exif_rotation():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    file = io.BytesIO()
    Image.fromarray(np.rot90(PAGE)).save(file, "JPEG", exif=exif, quality=90)
    assert_all_found(file.getvalue())


def test_a_note_of_two_lines_and_a_short_last_word():
    assert len(find_lines(written({(40, 80): "Back at noon", (40, 180): "see you"}, height=240))) == 2
    rows = {(40, 80 + 90 * k): "many words in a line" for k in range(4)} | {(40, 440): "end."}
    lines = find_lines(written(rows, height=500, width=1000))
    assert len(lines) == 5
    assert lines[-1].box[2] < 0.4 * lines[0].box[2]


def test_a_single_line():
    page = written({(20, 60): "a single line"}, height=90)
    (line,) = find_lines(page)
    assert line.box == pytest.approx(cv2.boundingRect((page < 128).astype(np.uint8)), abs=4)


def test_stray_marks_are_no_lines():
    page = written({(60, 100): "two lines of text", (60, 220): "and nothing else"}, height=600)
    cv2.circle(page, (400, 450), 3, 40, -1)
    cv2.line(page, (100, 520), (112, 520), 40, 2)
    assert len(find_lines(page)) == 2


def test_touching_lines_are_parted_and_each_crop_holds_its_own_ink_alone():
    alone = [written({at: text}) for at, text in (((40, 120), "gypsy"), ((40, 220), "kettle"))]
    page = np.minimum(*alone)
    page[100:215, 58:62] = 40  # a stroke from the first line into the second
    lines = find_lines(page)
    assert len(lines) == 2
    for line, single in zip(lines, alone, strict=True):
        ink = np.count_nonzero(line.image < 128)
        assert 0.9 < ink / np.count_nonzero(single < 128) < 1.35


def test_the_neighbour_is_painted_out_and_ones_own_loops_are_kept():
    above, below = written({(40, 100): "minimum minimum"}), written({(40, 185): "ours          ours"})
    cv2.line(above, (205, 92), (235, 92), 40, 3)
    cv2.line(above, (220, 92), (220, 180), 40, 3)  # a long tail between the words of the line below
    lines = find_lines(np.minimum(above, below))
    assert len(lines) == 2
    assert lines[0].box[1] + lines[0].box[3] > lines[1].box[1] + 10  # a plain cut would hold both
    for line, alone in zip(lines, (above, below), strict=True):
        assert np.count_nonzero(line.image < 128) == pytest.approx(np.count_nonzero(alone < 128), rel=0.1)


@pytest.mark.parametrize(
    "page",
    [
        np.zeros((1, 1), np.uint8),
        np.full((1, 3000), 255, np.uint8),
        np.full((600, 800), 235, np.uint8),
        np.zeros((600, 800), np.uint8),
        np.random.default_rng(0).integers(0, 256, (600, 800), np.uint8),
        np.random.default_rng(0).normal(200, 4, (600, 800)).clip(0, 255),
        np.tile(np.linspace(20, 250, 800), (600, 1)),
    ],
    ids=["one pixel", "one row", "white", "black", "noise", "grainy paper", "falling light"],
)
def test_what_holds_no_writing_gives_no_lines(page):
    assert find_lines(page) == []


def test_the_page_is_left_as_it_was():
    before = PAGE.copy()
    find_lines(PAGE)
    assert np.array_equal(PAGE, before)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_page_of_over_100_megapixels_is_refused_from_its_header():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 9_000, 8, 0, 0, 0, 0))
    forged = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=r"12000 x 9000.*100 megapixels"):
        find_lines(forged)
    with pytest.raises(ImageError, match="100 megapixels"):
        find_lines(np.broadcast_to(np.uint8(0), (10_001, 10_000)))  # takes no memory


def test_bad_input_is_refused_with_the_reason():
    with pytest.raises(ImageError, match="PDF"):
        find_lines(b"%PDF-1.7\n")
    with pytest.raises(ImageError, match="NoneType"):
        find_lines(None)


def test_the_skew_is_the_angle_of_the_lines():
    page, _ = turned(PAGE, -3.0)
    assert find_skew(page < 128) == pytest.approx(3.0, abs=0.2)


def test_a_lone_tall_letter_comes_out_as_a_line():
    page = np.full((300, 500), 230, np.uint8)
    cv2.putText(page, "two lines", (60, 80), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 40, 3)
    cv2.putText(page, "f", (60, 180), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 40, 3)
    _, line = find_lines(page)
    assert line.box[2] < line.box[3]
    assert line.image.shape[0] <= line.image.shape[1]


@pytest.mark.parametrize("text", ["I", "Of", "Deep"])
def test_a_short_word_in_large_letters_is_one_line(text):
    page = written({(20, 120): text}, height=170, width=400, size=4)
    (line,) = find_lines(page)
    assert line.box == pytest.approx(cv2.boundingRect((page < 128).astype(np.uint8)), abs=4)


def test_strokes_along_a_ruling_stay():
    page, stroke = np.full((400, 700), 230, np.float32), np.full((400, 700), 230, np.uint8)
    cv2.putText(stroke, "HILL", (60, 204), cv2.FONT_HERSHEY_SIMPLEX, 3, 40, 5)
    for start in range(9, 400, 39):
        page[start : start + 2] *= 0.65
    for start in range(18, 700, 39):
        page[:, start : start + 2] *= 0.65
    page = np.minimum(page, stroke).astype(np.uint8)
    (line,) = find_lines(page)
    assert np.count_nonzero(line.image < 128) == pytest.approx(np.count_nonzero(stroke < 128), rel=0.1)


def test_a_tight_line_is_left_alone():
    assert crop_line(LINE) is None
    assert crop_line(np.full((128, 900), 230, np.uint8)) is None


def with_margin(line):
    return np.pad(line, (line.shape[0], 60), constant_values=int(np.median(line)))


def ruled(line, squares):
    page = with_margin(line).astype(np.float32)
    for start in range(20, page.shape[0], 40 if squares else 120):
        page[start : start + 2] *= 0.65
    for start in range(20, page.shape[1] if squares else 0, 40):
        page[:, start : start + 2] *= 0.65
    return page.astype(np.uint8)


def tilted_in_shadow(line):
    page = with_margin(line)
    matrix = cv2.getRotationMatrix2D((page.shape[1] / 2, page.shape[0] / 2), 1.5, 1)
    page = cv2.warpAffine(page, matrix, page.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    return (page * (0.8 + 0.2 * np.tanh((np.arange(page.shape[1]) - 400) / 40))).astype(np.uint8)


@pytest.mark.parametrize(
    "degrade",
    [with_margin, lambda line: ruled(line, False), lambda line: ruled(line, True), tilted_in_shadow],
    ids=["margin", "ruled", "squared", "tilted in a shadow"],
)
def test_a_line_is_cropped_to_its_writing(degrade):
    rows, columns = np.nonzero(LINE < 128)
    crop = crop_line(degrade(LINE)).image
    assert crop.shape == pytest.approx((np.ptp(rows), np.ptp(columns)), abs=0.3 * np.ptp(rows))


def test_a_lone_tall_letter_is_cropped_to_be_wide_enough_but_a_page_is_no_line():
    crop = crop_line(written({(20, 100): "I"}, height=130, width=90, size=3)).image
    assert crop.shape[0] <= crop.shape[1]
    assert crop_line(np.ascontiguousarray(PAGE)) is None
