"""Frames, decoders, alignment and the language model's weight, against brute force: every path of small cases."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from hwrlib.alphabet import Alphabet
from hwrlib.beam import Fusion, PrefixBeam
from hwrlib.ctc import (
    Character,
    forced_align,
    frames,
    greedy,
    path_confidence,
    required_frames,
    text_log_probabilities,
)
from hwrlib.language import BOUNDARY, train_ngram

AB, ABC = Alphabet("ab "), Alphabet("abc ")
CORPUS = ["abba ab", "ab ab", "b a", "baab", "a bab b"]
DECODERS = pytest.mark.parametrize("decode", [greedy, PrefixBeam()], ids=["greedy", "beam"])


def random_log_probs(seed, count=5, classes=4):
    """Random log-probabilities (1, count, classes)."""
    logits = np.random.default_rng(seed).normal(0, 2, (1, count, classes))
    return logits - np.log(np.exp(logits).sum(2, keepdims=True))


def paths(log_probs):
    """The text of every path of labels, with repeats merged and blanks dropped, and the path's log-probability."""
    for path in itertools.product(range(log_probs.shape[2]), repeat=log_probs.shape[1]):
        text = "".join(AB.characters[k - 1] for k, _ in itertools.groupby(path) if k)
        yield text, sum(log_probs[0, t, k] for t, k in enumerate(path))


def read(decode, log_probs, alphabet=AB):
    return decode(log_probs, [log_probs.shape[1]], alphabet)[0]


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
        peaks = [math.exp(log_probs[0, c.begin : c.end, AB.encode(c.text)[0]].max()) for c in reading.characters]
        assert [c.confidence for c in reading.characters] == pytest.approx(peaks, rel=1e-5)
        assert reading.confidence == path_confidence(reading.log_probability, len(reading.text))
    assert path_confidence(math.log(0.25), 2) == pytest.approx(0.5)  # per character, and between 0 and 1
    assert [path_confidence(*case) for case in ((1e-6, 3), (0.0, 0), (-1e6, 1))] == [1, 1, 0]


def test_alignment_is_the_best_path_of_the_text():
    for seed in range(15):
        log_probs, best = random_log_probs(seed), defaultdict(lambda: -math.inf)
        for text, score in paths(log_probs):
            best[text] = max(best[text], score)
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


def test_a_wide_beam_equals_enumeration_with_language_as_well():
    wide = {"width": 10**6, "floor": -math.inf}
    for seed in range(60):
        log_probs, texts = random_log_probs(seed, 1 + seed % 5), defaultdict(lambda: -math.inf)
        for text, score in paths(log_probs):
            texts[text] = np.logaddexp(texts[text], score)
        reading = read(PrefixBeam(**wide, best=3), log_probs)
        found = dict([(reading.text, reading.log_probability), *reading.alternatives])
        assert list(found) == sorted(texts, key=texts.get, reverse=True)[:3]
        assert found == pytest.approx({text: texts[text] for text in found})
        exact = text_log_probabilities(log_probs[0], [AB.encode(text) for text in texts])
        assert exact == pytest.approx(list(texts.values()))
        options = {"language": train_ngram(CORPUS, AB, order=1 + 2 * (seed % 2), prune=0), "alpha": 0.7, "beta": 0.4}
        weight, reading = Fusion(AB, **options).log_weight, read(PrefixBeam(**wide, **options), log_probs)
        assert reading.text == max(texts, key=lambda text: texts[text] + weight(text))
        assert reading.log_probability == pytest.approx(texts[reading.text])  # the language model has no share in it


def test_a_beam_of_2_never_scores_below_greedy():
    language = train_ngram(CORPUS, AB, order=3, prune=0)
    weight = Fusion(AB, language, 0.8, 0.3).log_weight
    for seed in range(40):
        log_probs = random_log_probs(seed, seed + 1)
        first, alone = read(greedy, log_probs), read(PrefixBeam(width=2), log_probs)
        modelled = read(PrefixBeam(language, 2, 0.8, 0.3), log_probs)
        assert alone.log_probability >= first.log_probability - 1e-9
        least = first.log_probability + weight(first.text) - 1e-9
        assert modelled.log_probability + weight(modelled.text) >= least


def test_views_decide_where_two_texts_are_close_and_only_there():
    close, far = np.log([[[0.1, 0.5, 0.3, 0.1]] * 2, [[0.01, 0.97, 0.01, 0.01]] * 2])
    other, asked = np.log([[0.2, 0.1, 0.6, 0.1]] * 3), []

    def views(k):
        asked.append(k)
        return [other, other]

    first, second = PrefixBeam()(np.stack([close, far]), [2, 2], AB, views=views)
    assert (first.text, second.text, asked) == ("b", "a", [0])
    on_both = [text_log_probabilities(view, [[2]])[0] for view in (close, other)]
    assert first.log_probability == pytest.approx((on_both[0] + 2 * on_both[1]) / 3)
    assert [c.text for c in first.characters] == ["b"]  # placed on the line itself
    assert read(PrefixBeam(), close[None]).text == "a"


def test_one_beam_serves_each_alphabet_that_its_language_model_covers():
    language = train_ngram(["abc cab"], ABC, order=3)
    decode = PrefixBeam(language)
    for alphabet in (AB, ABC, AB):
        log_probs = random_log_probs(7, 9, alphabet.classes)
        assert read(decode, log_probs, alphabet) == read(PrefixBeam(language), log_probs, alphabet)
    with pytest.raises(ValueError, match="not in the alphabet"):
        read(decode, random_log_probs(0), Alphabet("abd"))
    assert [decoder.name for decoder in (greedy, PrefixBeam(), decode)] == ["greedy", "beam", "language"]


def test_the_weight_of_a_line_adds_up_its_characters_and_the_end_of_its_last_word():
    language = train_ngram(["ab ab", "ca"], ABC, order=3)
    for text in ("", "ab", "c a", "ab ", "cab abc"):
        after = language.row(BOUNDARY + text)  # of the line's end, and of a space in its place
        expected = 0.6 * (language.log_probability(text) - after[0] + np.logaddexp(after[0], after[4]))
        expected -= 0.9 * np.log(language.prior[ABC.encode(text)]).sum()
        assert Fusion(ABC, language, 0.6, 0.9).log_weight(text) == pytest.approx(expected)
