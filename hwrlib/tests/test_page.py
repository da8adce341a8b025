"""Every line of the sample page is found, whatever the camera and the paper do to it, and what is on it has a place."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from hwrlib import SAMPLE
from hwrlib.ctc import Character, Reading
from hwrlib.data import load_lines
from hwrlib.images import ImageError, load_page, prepare_pixels
from hwrlib.page.baselines import Baseline
from hwrlib.page.ink import level_ink
from hwrlib.page.lines import PageLine, cut_lines, find_lines, place_characters, place_reading

PAGE = load_page(SAMPLE / "page.png")
BOXES = [line["box"] for line in json.loads((SAMPLE / "page.json").read_text())["lines"]]
MIDDLES = [(x + w / 2, y + h / 2) for x, y, w, h in BOXES]
LINE = load_page(load_lines("validation", "sample")[0]["image"])
ROWS, COLUMNS = PAGE.shape
DOWN, ACROSS = np.mgrid[:ROWS, :COLUMNS].astype(np.float32)


def written(rows, height=400, width=700, size=1.6, font=cv2.FONT_HERSHEY_SCRIPT_SIMPLEX):
    """A page with a text (from the left, baseline) on each of the given rows."""
    page = np.full((height, width), 230, np.uint8)
    for place, text in rows.items():
        cv2.putText(page, text, place, font, size, 40, 3, cv2.LINE_AA)
    return page


def tilted(page, degrees, dx=0, dy=0):
    """The page, with dx and dy more pixels on each side, turned; and the matrix that did it."""
    page = np.pad(page, ((dy, dy), (dx, dx)), mode="edge")
    matrix = cv2.getRotationMatrix2D((page.shape[1] / 2, page.shape[0] / 2), degrees, 1)
    page = cv2.warpAffine(page, matrix, page.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    matrix[:, 2] += matrix[:, :2] @ (dx, dy)
    return page, matrix


def baseline_rows(line):
    reading = place_reading(Reading("", 0.0, 1.0, ()), line, prepare_pixels(line.image), 0)
    return np.array(reading.baseline)[:, 1]


def assert_all_found(page, places=MIDDLES):
    """One line each, in order, over the places given, the crops as long as the lines, the baseline in each."""
    lines = find_lines(page)
    assert len(lines) == len(places)
    for line, (x, y), given in zip(lines, places, BOXES, strict=True):
        left, top, width, height = line.box
        assert left < x < left + width and abs(top + height / 2 - y) < 20
        assert width > 0.75 * given[2]
        assert line.image.shape[0] < 125  # levelled, whatever the box's height
        assert np.median(line.image) > line.image.min() + 50
        (upper, lower), baseline = line.outline[..., 1], baseline_rows(line)
        assert (upper < baseline).all() and (baseline < lower).all()
    return lines


def ruled(page, across, down, darkness, thick=2):
    """The page with some rows of each ``across`` and some columns of each ``down`` darkened."""
    page = page.astype(np.float32)
    for start in range(20, page.shape[0], across):
        page[start : start + thick] *= darkness
    for start in range(20, page.shape[1], down):
        page[:, start : start + thick] *= darkness
    return page.astype(np.uint8)


def test_the_sample_page_is_found_to_the_pixel():
    for line, (x, y, w, h) in zip(assert_all_found(PAGE), BOXES, strict=True):
        left, top, width, height = line.box
        shared = max(0, min(x + w, left + width) - max(x, left)) * max(0, min(y + h, top + height) - max(y, top))
        assert shared / (w * h + width * height - shared) > 0.7


def test_tilted_curved_shadowed_ruled_white_on_black_on_a_desk_or_in_a_photo_of_a_phone():
    for degrees in (-15, -5, 5, 15):
        page, matrix = tilted(PAGE, degrees, 200, 200)
        assert_all_found(page, [tuple(matrix @ (x, y, 1)) for x, y in MIDDLES])
    light = (1 - 0.4 * ACROSS / COLUMNS) * (0.8 + 0.2 * np.tanh((ACROSS - 150) / 20))
    assert_all_found((PAGE * light).astype(np.uint8))
    half = PAGE * (0.78 + 0.22 * np.tanh((ACROSS + 0.4 * DOWN - 0.6 * COLUMNS) / 25))  # in a hard shadow
    assert np.median(assert_all_found(half.astype(np.uint8))[0].image) > 128  # and not taken for white on black
    bend = (15 * np.sin(2 * np.pi * ACROSS / COLUMNS)).astype(np.float32)
    assert_all_found(cv2.remap(PAGE, ACROSS, DOWN + bend, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    for darkness in (0.75, 0.5):
        assert_all_found(ruled(PAGE, 80, COLUMNS, darkness))
        assert_all_found(ruled(PAGE, 40, 40, darkness))
    clean, squared = (assert_all_found(page) for page in (PAGE, ruled(PAGE, 30, 30, 0.65, 1)))
    for line, other in zip(clean, squared, strict=True):  # nothing of so thin a grid is left, nor of the writing gone
        assert np.count_nonzero(other.image < 180) == pytest.approx(np.count_nonzero(line.image < 180), rel=0.1)
    assert np.median(assert_all_found(255 - PAGE)[0].image) > 128
    grain = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 60, (ROWS + 300, COLUMNS + 400)), (0, 0), 9, 2)
    desk = (60 + grain).clip(0, 255).astype(np.uint8)
    desk[150:-150, 200:-200] = PAGE
    assert_all_found(desk, [(x + 200, y + 150) for x, y in MIDDLES])
    page = cv2.resize(PAGE, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    lines = find_lines(page)  # in its own pixels
    middles = [(line.box[1] + line.box[3] / 2) / 3 for line in lines]
    assert middles == pytest.approx([y for _, y in MIDDLES], abs=20)
    assert lines[0].image.shape[1] > 2 * BOXES[0][2]


def test_short_notes_single_lines_and_large_words_and_letters_stand_on_the_baseline():
    assert len(find_lines(written({(40, 80): "Back at noon", (40, 180): "see you"}, height=240))) == 2
    rows = {(40, 80 + 90 * k): "many words in a line" for k in range(4)} | {(40, 440): "end."}
    lines = find_lines(written(rows, height=500, width=1000))
    assert len(lines) == 5 and lines[-1].box[2] < 0.4 * lines[0].box[2]
    pages = [written({(20, 60): "a single line"}, height=90)]
    pages += [written({(20, 120): text}, height=170, width=400, size=4) for text in ("To", "Of", "Deep")]
    for page in pages:
        (line,) = find_lines(page)
        assert line.box == pytest.approx(cv2.boundingRect((page < 128).astype(np.uint8)), abs=4)
    page = written({(60, 80): "two gypsy lines", (60, 200): "Ab 12"}, font=cv2.FONT_HERSHEY_SIMPLEX)
    for line, row in zip(find_lines(page), (80, 200), strict=True):
        assert baseline_rows(line) == pytest.approx(row, abs=4)


def test_columns_and_the_pages_of_a_book_are_read_one_after_the_other_and_two_lines_of_a_strip_are_two():
    both = find_lines(np.hstack([PAGE, PAGE]))
    assert [line.box[0] > COLUMNS for line in both] == [False] * len(BOXES) + [True] * len(BOXES)
    tops = [line.box[1] for line in both]
    assert tops == sorted(tops[: len(BOXES)]) + sorted(tops[len(BOXES) :])
    (_, first, *_), (_, second, _, height) = BOXES[:2]
    strip = np.pad(PAGE[first - 12 : second + height + 12], ((0, 0), (0, 400)), mode="edge")
    assert strip.shape[1] > 5 * strip.shape[0] and len(find_lines(strip)) == 2


def test_a_short_line_under_an_indented_one_is_read_after_it():
    letter = {(300, 80): "of the United States", (40, 160): "Sir :", (220, 240): "The undersigned", (40, 320): "says"}
    tops = [line.box[1] for line in find_lines(written(letter, width=800))]
    assert len(tops) == 4 and tops == sorted(tops)


def test_lines_that_a_gap_parts_are_read_across_and_columns_of_three_lines_one_after_the_other():
    for rows, columns in ((2, [0, 1, 0, 1]), (3, [0, 0, 0, 1, 1, 1])):
        parts = {(x, 80 * k): text for x, text in ((40, "some words"), (560, "the others")) for k in range(1, rows + 1)}
        places = [(int(line.box[0] > 500), line.box[1]) for line in find_lines(written(parts, width=900))]
        assert [column for column, _ in places] == columns
        for side in (0, 1):
            tops = [top for column, top in places if column == side]
            assert tops == sorted(tops)


def test_dithered_peppered_and_empty_below():
    grey = np.minimum(PAGE, 250).astype(np.float32)
    pepper = np.random.default_rng(0).random(PAGE.shape)
    assert_all_found(np.asarray(Image.fromarray(PAGE).convert("1")))  # Floyd and Steinberg's dithering
    assert_all_found(np.where(pepper < 0.005, 0, grey).astype(np.uint8))
    longer = np.pad(ruled(PAGE, 40, COLUMNS, 0.7), ((0, ROWS), (0, 0)), mode="reflect")
    longer[ROWS:] = ruled(np.full_like(PAGE, np.median(PAGE)), 40, COLUMNS, 0.7)
    assert_all_found(longer)


def test_each_crop_holds_its_own_ink_alone_and_all_of_it_and_stray_marks_are_no_lines():
    alone = [written({at: text}) for at, text in (((40, 120), "gypsy"), ((40, 220), "kettle"))]
    page = np.minimum(*alone)
    page[100:215, 58:62] = 40  # a stroke from the first line into the second
    for line, single in zip(find_lines(page), alone, strict=True):
        assert 0.9 < np.count_nonzero(line.image < 128) / np.count_nonzero(single < 128) < 1.35
    above, below = written({(40, 100): "minimum minimum"}), written({(40, 170): "ours          ours"})
    cv2.line(above, (205, 92), (235, 92), 40, 3)
    cv2.line(above, (220, 92), (220, 160), 40, 3)  # a long tail between the words of the line below
    lines = find_lines(np.minimum(above, below))
    assert lines[0].box[1] + lines[0].box[3] > lines[1].box[1] + 10  # a plain cut would hold both
    for line, single in zip(lines, (above, below), strict=True):
        assert np.count_nonzero(line.image < 128) == pytest.approx(np.count_nonzero(single < 128), rel=0.1)
    stroke = np.full((400, 700), 230, np.uint8)
    cv2.putText(stroke, "HILL", (60, 204), cv2.FONT_HERSHEY_SIMPLEX, 3, 40, 5)
    (line,) = find_lines(np.minimum(ruled(np.full_like(stroke, 230), 39, 39, 0.65), stroke))
    assert np.count_nonzero(line.image < 128) == pytest.approx(np.count_nonzero(stroke < 128), rel=0.1)
    pale = np.full((200, 900), 230, np.uint8)
    for x in range(40, 860, 24):
        pale[70:130, x : x + 4] = 150
    pale[120:125, 10:890] = 30  # as a form's field has it
    (line,) = cut_lines(level_ink(pale, [Baseline(np.arange(40, 860, 8), np.full(103, 122.0), 40.0, 1.0)]))
    assert np.count_nonzero(line.image < 100) < 500 < 8000 < np.count_nonzero(line.image < 200)
    page = written({(60, 100): "two lines of text", (60, 220): "and nothing else"}, height=600)
    cv2.circle(page, (400, 450), 3, 40, -1)
    cv2.line(page, (100, 520), (112, 520), 40, 2)
    assert len(find_lines(page)) == 2


def test_what_holds_no_writing_gives_no_lines_and_what_is_no_page_is_refused():
    noise = np.random.default_rng(0)
    pages = [np.zeros((1, 1), np.uint8), np.full((1, 3000), 255, np.uint8), np.full((600, 800), 235, np.uint8)]
    pages += [np.zeros((600, 800), np.uint8), noise.integers(0, 256, (600, 800), np.uint8)]
    pages += [noise.normal(200, 4, (600, 800)).clip(0, 255), np.tile(np.linspace(20, 250, 800), (600, 1))]
    assert [find_lines(page) for page in pages] == [[]] * len(pages)
    for bad, reason in ((np.broadcast_to(np.uint8(0), (10_001, 10_000)), "pixels"), (b"%PDF-1.7\n", "PDF")):
        with pytest.raises(ImageError, match=reason):  # the first takes no memory
            find_lines(bad)


def with_margin(line):
    return np.pad(line, (line.shape[0], 60), constant_values=int(np.median(line)))


def tilted_in_shadow(line):
    page, _ = tilted(with_margin(line), 1.5)
    return (page * (0.8 + 0.2 * np.tanh((np.arange(page.shape[1]) - 400) / 40))).astype(np.uint8)


PAPERS = [with_margin, tilted_in_shadow]
PAPERS += [lambda line, steps=steps: ruled(with_margin(line), *steps, 0.65) for steps in ((120, 10_000), (40, 40))]


def test_a_line_is_cropped_to_its_writing_where_it_is_not_tight():
    for whole in (LINE, np.full((128, 900), 230, np.uint8), PAGE.copy()):  # tight, blank, a page
        (line,) = find_lines(whole, "line")
        assert np.array_equal(line.image, whole)
    rows, columns = np.nonzero(LINE < 128)
    for paper in PAPERS:
        (line,) = find_lines(paper(LINE), "line")
        assert line.image.shape == pytest.approx((np.ptp(rows), np.ptp(columns)), abs=0.3 * np.ptp(rows))
    (line,) = find_lines(written({(20, 100): "b"}, height=130, width=90, size=3), "line")
    assert line.image.shape[0] <= line.image.shape[1]  # a lone tall letter is a line, too


def test_a_mark_takes_its_own_ink_and_a_letter_what_is_in_its_columns():
    pixels, line = np.full((128, 200), 255, np.uint8), PageLine.whole(np.zeros((64, 100), np.uint8))
    pixels[20:90, 10:60] = 0  # two letters that hang together
    pixels[80:100, 66:72] = 0  # a comma, which CTC saw behind its own ink, as it saw the space before it
    spans = (("a", 4, 5), ("b", 11, 12), (" ", 16, 17), (",", 20, 21))
    letters = tuple(Character(text, 0.9, begin, end) for text, begin, end in spans)
    a, b, _, comma = (character.box for character in place_characters(letters, pixels, line.outline))
    assert (a[1], a[3], b[1], b[3]) == (10, 35, 10, 35) and a[0] + a[2] == b[0]
    assert comma == (33, 40, 3, 10)
    reading = place_reading(Reading("ab ,", -1.0, 0.9, letters), line, pixels, 0)
    assert reading.box == line.box and reading.characters[-1].box == comma
    assert reading.outline == ((0, 0), (100, 0), (100, 64), (0, 64))
    assert reading.baseline == ((0, 45), (100, 45))
