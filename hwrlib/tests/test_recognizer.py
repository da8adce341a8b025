"""Reading: one line like many, in the order given, from anything that can be prepared."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from hwrlib import SAMPLE
from hwrlib.alphabet import Alphabet
from hwrlib.beam import PrefixBeam
from hwrlib.ctc import STRIDE, Reading, frames, greedy
from hwrlib.data import load_lines
from hwrlib.images import ImageError, load_page, prepare_pixels
from hwrlib.metrics import cer
from hwrlib.page.lines import turn_back
from hwrlib.recognizer import Recognizer, calibrated, mean_confidence
from hwrlib.scripts.words import cut_words
from hwrlib.tests.conftest import strokes, untrained
from hwrlib.tests.test_page import LINE, PAPERS, written

LINES = [strokes(width, seed=seed) for seed, width in enumerate((40, 61, 33, 57, 60))]


def page(*rows):
    return written({(60, y): "two lines" for y in rows}, 300, 500, 1.5, cv2.FONT_HERSHEY_SIMPLEX)


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer(untrained(Alphabet("abc "), 2.0), "fp32")


@pytest.fixture(scope="module")
def reader():
    return Recognizer.from_pretrained(precision="fp32")


@pytest.fixture(scope="module")
def row():
    return load_lines("validation", "sample")[0]


@pytest.mark.parametrize("decoder", ["greedy", "beam"])  # a beam sees these lines slanted, too
def test_one_by_one_reads_as_in_batches_of_any_size_and_order(recognizer, decoder, monkeypatch):
    recognizer = Recognizer(recognizer.model, "fp32", decoder)
    alone = [recognizer.read(line) for line in LINES]
    assert len({round(reading.log_probability, 2) for reading in alone}) > 1 and any(r.text for r in alone)
    for batch_size, order in ((2, 1), (16, -1)):
        monkeypatch.setattr(recognizer, "batch_size", batch_size)
        for one, many in zip(alone[::order], recognizer.read_lines(LINES[::order]), strict=True):
            assert many.text == one.text
            assert many.log_probability == pytest.approx(one.log_probability, abs=1e-3)
    assert recognizer.read_lines([]) == []
    log_probs, _ = Recognizer(recognizer.model, "bf16").log_probabilities([prepare_pixels(LINES[0])])
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(log_probs.shape[:2]), atol=1e-3)  # in float32


def test_it_reads_files_images_and_arrays_and_names_what_it_refuses(recognizer, tmp_path):
    Image.fromarray(LINES[0]).save(tmp_path / "line.png")
    given = (tmp_path / "line.png", (tmp_path / "line.png").read_bytes(), Image.fromarray(LINES[0]), LINES[0])
    prepared = recognizer.read_prepared([prepare_pixels(LINES[0], width_divisor=2.0)])
    assert {recognizer.read(image).text for image in given} == {prepared[0].text}
    with pytest.raises(ImageError, match="taller than wide"):
        recognizer.read_lines([LINES[0], np.zeros((300, 200), np.uint8)])
    Image.fromarray(np.full((10, 2000), 255, np.uint8)).save(tmp_path / "long.png")
    for read in (recognizer.read, recognizer.read_page):
        with pytest.raises(ImageError, match=r"long\.png"):
            read(tmp_path / "long.png")


def test_a_picture_is_decoded_once_and_a_decoder_is_given_what_greedy_has_read(reader, monkeypatch):
    opened, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *file, **about: opened.append(file) or open_image(*file, **about))

    def decode(log_probs, lengths, alphabet, firsts):
        assert firsts == greedy(log_probs, lengths, alphabet)  # no decoder needs to read greedily again
        return firsts

    decode.name = "greedy"
    (reading,) = Recognizer(reader.model, "fp32", decode).read_page(SAMPLE / "line.png")
    assert reading.text and len(opened) == 1


def test_a_beam_is_offered_each_line_slanted_both_ways_with_room_for_it_and_a_dense_line_widened(reader):
    asked = []

    class Looking(PrefixBeam):
        def __call__(self, log_probs, lengths, alphabet, firsts, views):
            asked.append([len(frames_of) - lengths[0] for frames_of in views(0)])
            return firsts

    line = reader.prepare(SAMPLE / "line.png")
    for pixels in (line, line[:, ::2]):  # half as wide: dense
        Recognizer(reader.model, "fp32", Looking()).read_prepared([pixels])
    assert asked == [[4, 4]] * 2  # 16 px


def test_a_confidence_is_calibrated_as_the_network_says_for_its_decoder_and_the_mean_counts_characters():
    model = untrained(Alphabet("abc "), 2.0)
    raw = Recognizer(model, "fp32").read(LINES[1]).confidence
    model.calibration = {"greedy": [0.5, 1.7], "beam": [-3.0, 1.0]}
    found = Recognizer(model, "fp32").read(LINES[1]).confidence
    assert found == pytest.approx(calibrated(raw, 0.5, 1.7)) and found != pytest.approx(raw)
    readings = [Reading("aaa", 0.0, 0.9, ()), Reading("b", 0.0, 0.5, ()), Reading("", 0.0, 1.0, ())]
    assert mean_confidence(readings) == pytest.approx(0.8) and mean_confidence(readings[2:]) is None


def test_what_the_network_learns_later_has_no_effect_on_a_recognizer():
    recognizer = Recognizer(untrained(Alphabet("abc "), 2.0), "fp32")
    before = recognizer.read(LINES[0])
    with torch.no_grad():
        for weights in recognizer.model.parameters():
            weights.neg_()
    assert recognizer.read(LINES[0]) == before


def test_it_is_made_from_a_folder_and_a_decoders_name(recognizer, tmp_path):
    recognizer.model.save_pretrained(tmp_path)
    loaded = Recognizer.from_pretrained(tmp_path, "fp32", "beam")
    assert (loaded.model.width_divisor, loaded.decoder.name) == (2.0, "beam")
    assert Recognizer.from_pretrained(tmp_path, "fp32").decoder is greedy and not loaded.model.training


def test_a_page_is_read_from_top_to_bottom_with_places_what_is_a_line_is_one_and_kind_decides_otherwise(recognizer):
    readings = recognizer.read_page(page(80, 200))
    for reading, row in zip(readings, (80, 200), strict=True):
        assert row - 50 < reading.box[1] < row
        assert all(abs(y - row) < 6 for _, y in reading.baseline) and len(reading.outline) == 34
    (alone,) = recognizer.read_page(page(200))
    assert alone.text == readings[1].text and alone.box == pytest.approx(readings[1].box, abs=2)
    assert recognizer.read_page(page()) == recognizer.read_page(np.full((1, 1), 255, np.uint8)) == []
    line = np.pad(LINES[1], ((0, 0), (0, 5 * 32 - LINES[1].shape[1])), constant_values=255)
    (reading,) = recognizer.read_page(line)
    assert reading.text == recognizer.read(line).text
    (reading,) = recognizer.read_page(LINE)
    height, width = LINE.shape
    assert reading.outline == ((0, 0), (width, 0), (width, height), (0, height))
    assert all(0.5 * height < y < 0.75 * height for _, y in reading.baseline)
    wide = np.pad(page(80, 200), ((0, 0), (0, 1200)), constant_values=230)
    assert [len(recognizer.read_page(wide, kind)) for kind in (None, "line", "page")] == [2, 1, 2]
    (blank,) = recognizer.read_page(np.full((32, 400), 255, np.uint8))
    assert (blank.text, blank.confidence, len(blank.baseline)) == ("", 1.0, 2)


def test_dense_lines_read_better_than_the_network_sees_them_and_their_characters_lie_where_they_were(reader, row):
    width = round(2.2 * STRIDE * len(row["text"]))
    narrow = cv2.resize(reader.prepare(row["image"]), (width, 128), interpolation=cv2.INTER_AREA)
    (first,) = greedy(*reader.log_probabilities([narrow]), reader.model.alphabet)
    (reading,) = reader.read_prepared([narrow])
    assert cer([row["text"]], [reading.text]) < cer([row["text"]], [first.text])
    ends = [character.end for character in reading.characters]
    assert ends == sorted(ends) and 0.9 * frames(width) < ends[-1] <= frames(width)


def test_a_line_is_read_whatever_its_paper_and_a_short_word_as_when_one_says_that_it_is_a_line(reader, row):
    line = load_page(row["image"])
    texts = [reader.read(paper(line)).text for paper in PAPERS]
    assert max(cer([reader.read(line).text], [text]) for text in texts) < 0.05
    line = prepare_pixels(row["image"])
    cut = [(word, text) for word, text in cut_words(line, row["text"]) if 1 < len(text) < 9 and text.isalpha()]
    assert len(cut) > 2
    for word, _ in cut:
        picture = np.pad(word, 60, constant_values=255)
        (reading,) = reader.read_page(picture)
        (as_line,) = reader.read_page(picture, "line")
        assert reading.text == as_line.text


def test_a_page_is_turned_until_it_can_be_read(reader):
    upright, language = load_page(SAMPLE / "page.png")[:280], Recognizer(reader.model, "fp32", "language")
    (*_, state) = language.iter_page(np.rot90(upright, 2))  # a language model makes sense of a page upside down
    assert state.rotation == 180
    expected = reader.read_page(upright)
    assert len(expected) > 2 and {reading.rotation for reading in expected} == {0}
    for rotation in (90, 180, 270):
        given = np.rot90(upright, rotation // 90)  # counter-clockwise, so that this rotation undoes it
        states = list(reader.iter_page(given))
        readings = states[-1].readings
        assert {reading.rotation for reading in readings} == {states[-1].rotation} == {rotation}
        again = sum(len(state.readings) for state in states if state.rotation != rotation)
        assert again <= 1 + 2 + 3  # at most three lines are read before it is turned
        assert cer([r.text for r in expected], [r.text for r in readings]) < 0.02
        for reading, there in zip(readings, expected, strict=True):
            assert turn_back(reading.box, given.shape, 360 - rotation) == pytest.approx(there.box, abs=4)


def test_a_dithered_or_peppered_page_reads_as_the_clean_one(reader):
    sheet, language = load_page(SAMPLE / "page.png")[:220], Recognizer(reader.model, "fp32", "language")
    pepper = np.where(np.random.default_rng(0).random(sheet.shape) < 0.005, 0, sheet).astype(np.uint8)
    dithered = Image.fromarray(sheet).convert("1")
    clean, *others = ("\n".join(r.text for r in language.read_page(image)) for image in (sheet, pepper, dithered))
    assert clean.count("\n") == 1 and all(cer([clean], [other]) < 0.08 for other in others)
