"""Reading: one line like many, in the order given, from anything that can be prepared."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from hwrlib.alphabet import Alphabet
from hwrlib.ctc import STRIDE, Character, Reading, frames, greedy
from hwrlib.data import SAMPLE, load_lines
from hwrlib.image_files import ImageError, load_page
from hwrlib.images import prepare_pixels
from hwrlib.metrics import cer
from hwrlib.model import CRNN
from hwrlib.page.lines import find_lines
from hwrlib.page.places import turn_back
from hwrlib.recognizer import DENSE, MARGIN, WIDENED, WIDEST, Recognizer, place, widen
from hwrlib.tests.test_page import ruled, tilted_in_shadow, with_margin
from hwrlib.winograd import WinogradConv2d


def drawn(width, seed):
    pixels = np.full((32, width), 255, np.uint8)
    for x in np.random.default_rng(seed).integers(2, width - 4, width // 8):
        pixels[6:26, x : x + 2] = 0
    return pixels


@pytest.fixture(scope="module")
def recognizer():
    torch.manual_seed(0)
    model = CRNN(Alphabet("abc "), width_divisor=2.0)
    with torch.no_grad():
        model(torch.rand(2, 1, 128, 64) * 2 - 1)
        model.fc.weight.mul_(20)  # an untrained network that is sure of something
        model.fc.bias.zero_()
    return Recognizer(model, "no")


@pytest.fixture(scope="module")
def lines():
    return [drawn(width, seed) for seed, width in enumerate((40, 61, 33, 57, 60))]


def test_one_by_one_reads_as_in_batches_of_any_size(recognizer, lines, monkeypatch):
    alone = [recognizer.read(line) for line in lines]
    assert any(reading.text for reading in alone)
    for batch_size in (2, 16):
        monkeypatch.setattr(recognizer, "batch_size", batch_size)
        for one, many in zip(alone, recognizer.read_lines(lines), strict=True):
            assert many.text == one.text
            assert many.log_probability == pytest.approx(one.log_probability, abs=1e-3)
            assert many.confidence == pytest.approx(one.confidence, abs=1e-3)


def test_log_probabilities_of_a_line_do_not_depend_on_its_company(recognizer, lines):
    pixels = [prepare_pixels(line, width_divisor=2.0) for line in lines]
    together, lengths = recognizer.log_probabilities(pixels)
    for k, line in enumerate(pixels):
        alone, length = recognizer.log_probabilities([line])
        assert length[0] == lengths[k] == frames(line.shape[1] + MARGIN)
        assert torch.allclose(alone[0, : length[0]], together[k, : length[0]], atol=1e-4)


def test_it_prepares_as_its_network_was_trained(recognizer, lines):
    direct = recognizer.read_prepared([prepare_pixels(line, width_divisor=2.0) for line in lines])
    assert [r.text for r in direct] == [r.text for r in recognizer.read_lines(lines)]


def test_readings_come_in_the_order_of_the_images(recognizer, lines):
    forward, backward = ([r.log_probability for r in recognizer.read_lines(x)] for x in (lines, lines[::-1]))
    assert len({round(x, 2) for x in forward}) > 1
    assert backward[::-1] == pytest.approx(forward, abs=1e-3)
    assert recognizer.read_lines([]) == []


def test_it_reads_paths_pil_images_and_arrays(recognizer, lines, tmp_path):
    Image.fromarray(lines[0]).save(tmp_path / "line.png")
    texts = {recognizer.read(x).text for x in (lines[0], Image.fromarray(lines[0]), tmp_path / "line.png")}
    assert len(texts) == 1


def test_what_cannot_be_prepared_is_refused(recognizer, lines):
    with pytest.raises(ImageError, match="page"):
        recognizer.read_lines([lines[0], np.zeros((300, 200), np.uint8)])


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_precisions_give_normal_log_probabilities(recognizer, lines, precision):
    log_probs, _ = Recognizer(recognizer.model, precision).log_probabilities([prepare_pixels(lines[0])])
    assert log_probs.dtype == torch.float32
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(log_probs.shape[:2]), atol=1e-3)


def test_from_a_folder_and_from_none(recognizer, lines, tmp_path):
    recognizer.model.save_pretrained(tmp_path)
    loaded = Recognizer.from_pretrained(tmp_path, "no")
    assert loaded.model.width_divisor == 2.0
    assert not loaded.model.training
    assert loaded.read(lines[0]).text == recognizer.read(lines[0]).text
    with pytest.raises((ValueError, OSError), match="nowhere"):
        Recognizer.from_pretrained(tmp_path / "nowhere")


def page(*rows):
    paper = np.full((300, 500), 230, np.uint8)
    for y in rows:
        cv2.putText(paper, "two lines", (60, y), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 40, 3)
    return paper


def test_a_page_is_read_from_top_to_bottom_with_boxes(recognizer):
    readings = recognizer.read_page(page(80, 200))
    tops = [reading.box[1] for reading in readings]
    assert len(tops) == 2
    assert 30 < tops[0] < 80 < 150 < tops[1] < 200
    alone = recognizer.read_page(page(200))
    assert alone[0].text == readings[1].text
    assert alone[0].box == readings[1].box


def test_a_page_without_writing_has_no_lines(recognizer):
    assert recognizer.read_page(page()) == []
    assert recognizer.read_page(np.full((1, 1), 255, np.uint8)) == []


def test_what_is_five_times_as_wide_as_high_is_one_line(recognizer, lines):
    line = np.pad(lines[1], ((0, 0), (0, 5 * 32 - lines[1].shape[1])), constant_values=255)
    (reading,) = recognizer.read_page(line)
    assert reading.box == (0, 0, 160, 32)
    assert reading.text == recognizer.read(line).text


def test_an_absurdly_long_line_is_named(recognizer, tmp_path):
    Image.fromarray(np.full((10, 2000), 255, np.uint8)).save(tmp_path / "long.png")
    with pytest.raises(ImageError, match=r"long\.png"):
        recognizer.read_page(tmp_path / "long.png")


def test_a_tall_letter_on_a_page_is_read(recognizer):
    paper = page(80)
    cv2.putText(paper, "f", (60, 180), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 40, 3)
    assert len(recognizer.read_page(paper)) == 2


def test_it_says_on_what_and_how_precisely_it_computes(recognizer):
    assert repr(recognizer) == f"Recognizer(cpu, {torch.get_num_threads()} threads, precision 'no', 4 characters)"


def test_characters_lie_inside_the_line(recognizer):
    def beyond(log_probs, lengths, alphabet):
        return [
            Reading("ab", -1.0, 0.9, (Character("a", 0.9, n - 9, n), Character("b", 0.9, n - 1, n)))
            for n in lengths.tolist()
        ]

    beyond.name = "beyond"
    line = prepare_pixels(drawn(60, 0))
    (reading,) = Recognizer(recognizer.model, "no", beyond).read_prepared([line])
    for character in reading.characters:
        first, stop = character.columns
        assert 0 <= first < stop <= line.shape[1]
        assert character.begin < character.end <= frames(line.shape[1])


def test_a_dense_line_is_widened_and_its_characters_lie_where_they_were(reader, row):
    line = reader.prepare(row["image"])
    narrow = cv2.resize(line, (round(2.2 * STRIDE * len(row["text"])), 128), interpolation=cv2.INTER_AREA)
    reading = reader.read_prepared([narrow])[0]
    first = greedy(*reader.log_probabilities([narrow]), reader.model.alphabet)[0].text
    times = min(WIDENED * len(first) / frames(narrow.shape[1]), WIDEST)
    assert times > 1
    wide = reader.decoder(*reader.log_probabilities([widen(narrow, times)]), reader.model.alphabet)[0]
    assert reading.text == wide.text
    assert cer([row["text"]], [wide.text]) < cer([row["text"]], [first])
    ends = [character.end for character in reading.characters]
    assert ends == sorted(ends) and ends[-1] <= frames(narrow.shape[1]) < wide.characters[-1].end


def test_only_dense_lines_are_read_twice(reader, row):
    line = reader.prepare(row["image"])
    reading = reader.read_prepared([line, widen(line, 0.5)])[0]
    assert frames(line.shape[1]) > DENSE * len(reading.text)
    alone = reader.read_prepared([line])[0]
    assert (alone.text, alone.characters[-1].end) == (reading.text, reading.characters[-1].end)
    assert reading.characters[3] == place(reading.characters[3], frames(line.shape[1]))


def test_the_fused_network_is_the_network(reader, row):
    line = torch.rand(2, 1, 128, 90) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(reader._fused(line), reader.model(line), atol=1e-4, rtol=1e-4)
    assert not [layer for layer in reader._fused.modules() if isinstance(layer, torch.nn.BatchNorm2d)]


def test_in_16_bits_the_convolutions_are_torchs(reader):
    in_16_bits = Recognizer(reader.model, "bf16")
    counts = [sum(isinstance(layer, WinogradConv2d) for layer in r._fused.cnn) for r in (reader, in_16_bits)]
    assert counts == [4, 0]


@pytest.fixture(scope="module")
def reader():
    return Recognizer.from_pretrained(precision="no")


@pytest.fixture(scope="module")
def row():
    return load_lines("validation", "sample")[0]


@pytest.mark.parametrize(
    "degrade",
    [with_margin, lambda line: ruled(line, False), lambda line: ruled(line, True), tilted_in_shadow],
    ids=["margin", "ruled", "squared", "tilted in a shadow"],
)
def test_a_line_is_read_whatever_its_paper(reader, row, degrade):
    line = load_page(row["image"])
    assert cer([reader.read(line).text], [reader.read(degrade(line)).text]) < 0.05


def test_a_short_line_is_one_line_and_kind_decides_otherwise(recognizer):
    word = np.full((130, 260), 230, np.uint8)
    cv2.putText(word, "Of", (10, 120), cv2.FONT_HERSHEY_SIMPLEX, 4.5, 40, 8)
    (reading,) = recognizer.read_page(word)
    assert reading.text == recognizer.read(word).text
    assert len(recognizer.read_page(page(80, 200), kind="line")) == 1
    wide = np.pad(page(80, 200), ((0, 0), (0, 1200)), constant_values=230)
    assert len(recognizer.read_page(wide)) == 1
    assert len(recognizer.read_page(wide, kind="page")) == 2


@pytest.fixture(scope="module")
def upright():
    return load_page(SAMPLE / "page.png")[:280]


@pytest.fixture(scope="module")
def expected(reader, upright):
    return reader.read_page(upright)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_page_is_turned_until_it_can_be_read(reader, upright, expected, rotation):
    assert len(expected) > 2
    assert {reading.rotation for reading in expected} == {0}
    given = np.rot90(upright, rotation // 90)  # counter-clockwise, so that this rotation undoes it
    readings = reader.read_page(given)
    assert {reading.rotation for reading in readings} == {rotation}
    assert cer([r.text for r in expected], [r.text for r in readings]) < 0.02
    for reading, there in zip(readings, expected, strict=True):
        assert turn_back(reading.box, given.shape, 4 - rotation // 90) == pytest.approx(there.box, abs=4)


def test_a_page_comes_line_by_line_all_boxes_first(recognizer):
    states = list(recognizer.iter_page(page(80, 200), quarters=0))
    assert [len(state.readings) for state in states] == [0, 1, 2]
    assert {len(state.lines) for state in states} == {2}
    whole = recognizer.read_page(page(80, 200))
    assert [r.text for r in states[-1].readings] == [r.text for r in whole]
    assert [line.box for line in states[0].lines] == [r.box for r in states[-1].readings]


def test_no_other_turn_is_tried_after_one_that_reads_well(reader, upright):
    tried = [state.quarters for state in reader.iter_page(np.rot90(upright))]
    assert tried == sorted(tried) and set(tried) == {0, 1}


def test_a_page_that_is_said_to_be_turned_is_read_so_alone(recognizer):
    given = np.ascontiguousarray(np.rot90(page(80, 200)))
    states = list(recognizer.iter_page(given, quarters=1))
    assert [len(state.readings) for state in states] == [0, 1, 2]
    for line, other in zip(states[-1].lines, find_lines(page(80, 200)), strict=True):
        assert (line.image == other.image).all()
        assert turn_back(line.box, given.shape, 3) == other.box
    assert {reading.rotation for reading in states[-1].readings} == {90}
