"""Frames, greedy decoding and alignment, against brute force: every path of small cases, enumerated."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwrlib.alphabet import IAM, Alphabet
from hwrlib.beam import PrefixBeam
from hwrlib.ctc import check_fits, forced_align, frames, greedy, path_confidence, required_frames

AB = Alphabet("ab ")
DECODERS = pytest.mark.parametrize("decode", [greedy, PrefixBeam()], ids=["greedy", "beam"])


def random_log_probs(seed, count=None, classes=4):
    """Random log-probabilities (1, T, C), T 1 to 5 where no count is given."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (1, count or rng.integers(1, 6), classes))
    return logits - np.log(np.exp(logits).sum(2, keepdims=True))


def collapse(path):
    """CTC's map from a path of labels to a text: merge repeats, drop blanks."""
    return "".join(AB.characters[k - 1] for k, _ in itertools.groupby(path) if k)


@pytest.mark.parametrize(("width", "count"), [(8, 1), (11, 1), (12, 2), (1700, 424)])
def test_frames_of_a_width_or_of_many(width, count):
    assert frames(width) == count
    assert frames(torch.tensor([width, 8])).tolist() == [count, 1]


def test_frames_that_ctc_needs():
    assert required_frames([]) == 0
    assert required_frames([4]) == 1
    assert required_frames([4, 4, 4]) == 5
    check_fits(28, "hello", IAM)
    with pytest.raises(ValueError, match=r"27 px give 5 frames, but CTC needs 6 for 'hello'.*28 px"):
        check_fits(27, "hello", IAM)


def test_required_frames_is_what_ctc_loss_says():
    for labels in ([1, 2, 3], [1, 1, 2], [2, 2, 2]):
        for count in range(1, 7):
            log_probs = torch.randn(count, 1, 4).log_softmax(-1)
            loss = torch.nn.functional.ctc_loss(log_probs, torch.tensor([labels]), [count], [len(labels)])
            assert bool(loss.isfinite()) == (count >= required_frames(labels))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 30))
def test_greedy_is_its_own_alignment(seed, count):
    log_probs = random_log_probs(seed, count)
    reading = greedy(log_probs, [count], AB)[0]
    score, spans = forced_align(log_probs[0], AB.encode(reading.text))
    assert score == pytest.approx(reading.log_probability)
    assert spans == [(c.begin, c.end) for c in reading.characters]
    assert "".join(c.text for c in reading.characters) == reading.text
    assert all(0 < c.confidence <= 1 for c in reading.characters)
    assert reading.confidence == path_confidence(reading.log_probability, len(reading.text))


@pytest.mark.parametrize("seed", range(50))
def test_alignment_is_the_best_path_of_the_text(seed):
    log_probs = random_log_probs(seed, 5)
    best = defaultdict(lambda: -math.inf)
    for path in itertools.product(range(4), repeat=5):
        score = sum(log_probs[0, t, k] for t, k in enumerate(path))
        best[collapse(path)] = max(best[collapse(path)], score)
    for text, score in best.items():
        found, spans = forced_align(log_probs[0], AB.encode(text))
        assert found == pytest.approx(score)
        assert all(begin < end for begin, end in spans)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


@DECODERS
def test_padding_and_company_change_nothing(decode):
    log_probs = np.concatenate([random_log_probs(1, 12), random_log_probs(2, 12)])
    log_probs[0, 7:] = np.nan
    alone = decode(log_probs[:1, :7], [7], AB)
    together = decode(torch.tensor(log_probs), torch.tensor([7, 12]), AB)
    assert together[0].text == alone[0].text
    assert together[0].log_probability == pytest.approx(alone[0].log_probability, abs=1e-5)


@DECODERS
def test_a_line_without_frames_is_an_empty_text(decode):
    reading = decode(random_log_probs(0, 3), [0], AB)[0]
    assert (reading.text, reading.log_probability, reading.characters) == ("", 0.0, ())


@DECODERS
def test_a_repeat_needs_a_blank(decode):
    twice = np.log(np.array([[[0.02, 0.96, 0.01, 0.01]] * 2]))
    between = np.insert(twice, 1, np.log([0.97, 0.01, 0.01, 0.01]), axis=1)
    assert decode(twice, [2], AB)[0].text == "a"
    assert decode(between, [3], AB)[0].text == "aa"


@DECODERS
@pytest.mark.parametrize(
    ("log_probs", "lengths", "message"),
    [
        (np.zeros((0, 5, 4)), np.zeros(0, int), "at least one line"),
        (random_log_probs(0, 5)[0], [5], "pass \\(lines, frames, classes\\)"),
        (random_log_probs(0, 5), [6], "0 to 5 frames"),
        (random_log_probs(0, 5), [-1], "0 to 5 frames"),
        (random_log_probs(0, 5), [5, 5], "for each of 1 lines"),
        (random_log_probs(0, 5), [5.0], "whole number"),
        (random_log_probs(0, 5, classes=80), [5], "80 classes, the alphabet 4"),
        (np.where(np.arange(20).reshape(1, 5, 4) == 9, np.nan, random_log_probs(0, 5)), [5], "line 0, frame 2: NaN"),
        (np.exp(random_log_probs(0, 5)), [5], "above 0"),
        (np.full((1, 5, 4), -np.inf), [5], "all zero"),
    ],
)
def test_bad_input_is_named(decode, log_probs, lengths, message):
    with pytest.raises(ValueError, match=message):
        decode(log_probs, lengths, AB)


def test_bad_alignments_are_named():
    with pytest.raises(ValueError, match="too few"):
        forced_align(random_log_probs(0, 5)[0], [1, 1, 1, 1])
    with pytest.raises(ValueError, match="no probability"):
        forced_align(np.log(np.array([[1.0, 1e-300]])) * [1, np.inf], [1])


def test_confidence_is_per_character_and_between_0_and_1():
    assert path_confidence(math.log(0.25), 2) == pytest.approx(0.5)
    assert path_confidence(1e-6, 3) == path_confidence(0.0, 0) == 1
    assert path_confidence(-1e6, 1) == 0


@DECODERS
def test_columns_lie_in_the_line(decode):
    reading = decode(random_log_probs(0, 99, classes=IAM.classes), [99], IAM)[0]
    assert all(0 <= c.columns[0] < c.columns[1] <= 4 * (99 + 1) for c in reading.characters)
