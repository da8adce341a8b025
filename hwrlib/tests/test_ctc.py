"""Frames, greedy decoding and alignment, against brute force: every path of small cases, enumerated."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from hwrlib.alphabet import Alphabet
from hwrlib.beam import PrefixBeam
from hwrlib.ctc import Character, forced_align, frames, greedy, path_confidence, required_frames

AB = Alphabet("ab ")
DECODERS = pytest.mark.parametrize("decode", [greedy, PrefixBeam()], ids=["greedy", "beam"])


def random_log_probs(seed, count=5, classes=4):
    """Random log-probabilities (1, count, classes)."""
    logits = np.random.default_rng(seed).normal(0, 2, (1, count, classes))
    return logits - np.log(np.exp(logits).sum(2, keepdims=True))


def collapse(path):
    """CTC's map from a path of labels to a text: merge repeats, drop blanks."""
    return "".join(AB.characters[k - 1] for k, _ in itertools.groupby(path) if k)


def test_frames_of_a_width_or_of_many_and_those_that_ctc_loss_needs():
    assert [frames(width) for width in (8, 11, 12, 1700)] == [1, 1, 2, 424]
    assert frames(torch.tensor([1700, 8])).tolist() == [424, 1]
    assert Character("a", 0.9, 10, 12).columns == (40, 52)
    for labels in ([1, 2, 3], [1, 1, 2], [2, 2, 2]):
        for count in range(1, 7):
            log_probs = torch.randn(count, 1, 4).log_softmax(-1)
            loss = torch.nn.functional.ctc_loss(log_probs, torch.tensor([labels]), [count], [len(labels)])
            assert bool(loss.isfinite()) == (count >= required_frames(labels))


def test_greedy_is_its_own_alignment():
    for seed in range(60):
        log_probs = random_log_probs(seed, seed // 2)
        reading = greedy(torch.tensor(log_probs, requires_grad=True), [seed // 2], AB)[0]
        score, spans = forced_align(log_probs[0], AB.encode(reading.text))
        assert score == pytest.approx(reading.log_probability, rel=1e-5)
        assert spans == [(c.begin, c.end) for c in reading.characters]
        assert "".join(c.text for c in reading.characters) == reading.text
        assert all(0 < c.confidence <= 1 for c in reading.characters)
        assert reading.confidence == path_confidence(reading.log_probability, len(reading.text))
    assert path_confidence(math.log(0.25), 2) == pytest.approx(0.5)  # per character, and between 0 and 1
    assert [path_confidence(*case) for case in ((1e-6, 3), (0.0, 0), (-1e6, 1))] == [1, 1, 0]


def test_alignment_is_the_best_path_of_the_text():
    for seed in range(15):
        log_probs, best = random_log_probs(seed), defaultdict(lambda: -math.inf)
        for path in itertools.product(range(4), repeat=5):
            score = sum(log_probs[0, t, k] for t, k in enumerate(path))
            best[collapse(path)] = max(best[collapse(path)], score)
        for text, score in best.items():
            found, spans = forced_align(log_probs[0], AB.encode(text))
            assert found == pytest.approx(score) and all(begin < end for begin, end in spans)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    with pytest.raises(ValueError, match="5 frames are too few for 4 characters, which need 7"):
        forced_align(random_log_probs(0)[0], [1, 1, 1, 1])


@DECODERS
def test_padding_and_company_change_nothing(decode):
    log_probs = np.concatenate([random_log_probs(1, 12), random_log_probs(2, 12), random_log_probs(3, 12)])
    log_probs[0, 7:] = np.nan
    alone = decode(log_probs[:1, :7], [7], AB)[0]
    together = decode(torch.tensor(log_probs), torch.tensor([7, 12, 0]), AB)
    assert together[0].text == alone.text
    assert together[0].log_probability == pytest.approx(alone.log_probability, abs=1e-5)
    assert (together[2].text, together[2].log_probability, together[2].characters) == ("", 0.0, ())
    case = log_probs[1:], [12, 0], AB
    assert decode(*case, firsts=greedy(*case)) == decode(*case)


@DECODERS
def test_bad_input_is_named(decode):
    good, no_number = random_log_probs(0), random_log_probs(0)
    no_number[0, 2, 1] = np.nan
    for log_probs, lengths, message in [
        (good[0], [5], r"shape \(5, 4\): pass \(lines, frames, 4 classes\)"),
        (random_log_probs(0, classes=80), [5], "4 classes"),
        (good, [6], "how many of 5 frames"),
        (good, [-1], "how many of 5 frames"),
        (good, [5, 5], "each of 1 lines"),
        (no_number, [5], "line 0, frame 2: NaN"),
        (np.exp(good), [5], "no log-probabilities"),
    ]:
        with pytest.raises(ValueError, match=message):
            decode(log_probs, lengths, AB)
