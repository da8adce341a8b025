"""The decoders against brute force: every path of small cases, enumerated."""

import itertools
import math
import unicodedata
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwrlib.alphabet import IAM, Alphabet, AlphabetError
from hwrlib.decode import align, greedy, grow, prefix_beam, tune
from hwrlib.language import BOUNDARY, Fusion, train

AB = Alphabet("ab ")
CORPUS = ["abba ab", "ab ab", "b a", "baab", "a bab b"]


def frames(seed, count=None, classes=4):
    """Random log-probabilities (1, T, C), T 1 to 5 where no count is given."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (1, count or rng.integers(1, 6), classes))
    return logits - np.log(np.exp(logits).sum(2, keepdims=True))


def collapse(path):
    """CTC's map from a path of labels to a text: merge repeats, drop blanks."""
    return "".join(AB.characters[k - 1] for k, _ in itertools.groupby(path) if k)


def enumerate_texts(log_probs):
    """Log-probability of every text, from the probability of every path."""
    texts = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[2]), repeat=log_probs.shape[1]):
        texts[collapse(path)] += math.exp(sum(log_probs[0, t, k] for t, k in enumerate(path)))
    return {text: math.log(p) for text, p in texts.items()}


def exact(log_probs, **options):
    return prefix_beam(log_probs, [log_probs.shape[1]], AB, width=10**6, floor=-math.inf, best=3, **options)[0]


@pytest.mark.parametrize("seed", range(200))
def test_a_wide_beam_equals_enumeration(seed):
    log_probs = frames(seed)
    expected = sorted(enumerate_texts(log_probs).items(), key=lambda item: -item[1])[:3]
    reading = exact(log_probs)
    assert [text for text, _ in expected] == [reading.text, *(text for text, _ in reading.alternatives)]
    found = [reading.log_probability, *(p for _, p in reading.alternatives)]
    assert found == pytest.approx([p for _, p in expected])


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("order", [1, 3])
def test_a_wide_beam_with_language_and_words_equals_enumeration(seed, order):
    log_probs, language = frames(seed), train(CORPUS, AB, order=order, prune=0)
    options = {"language": language, "alpha": 0.7, "beta": 0.4, "words": ["AB", "b"]}
    weight = Fusion(AB, **options).log_weight
    texts = enumerate_texts(log_probs)
    best = max(texts, key=lambda text: texts[text] + weight(text))
    reading = exact(log_probs, **options)
    assert reading.text == best
    assert reading.log_probability == pytest.approx(texts[best])  # the language model has no share in it


def greedy_by_prefix(log_probs):
    """The one best prefix kept from frame to frame, in logarithms."""
    prefix, blank, character = "", 0.0, -math.inf
    for row in log_probs[0]:
        stay = (np.logaddexp(blank, character) + row[0], character + (row[AB.encode(prefix[-1:])[0]] if prefix else 0))
        grown = {prefix: stay}
        for k, c in enumerate(AB.characters, start=1):
            before = blank if prefix[-1:] == c else np.logaddexp(blank, character)
            grown[prefix + c] = (-math.inf, before + row[k])
        prefix, (blank, character) = max(grown.items(), key=lambda item: np.logaddexp(*item[1]))
    return prefix, np.logaddexp(blank, character)


@pytest.mark.parametrize("seed", range(200))
def test_a_beam_of_one_is_greedy_by_prefix(seed):
    log_probs = frames(seed)
    reading = prefix_beam(log_probs, [log_probs.shape[1]], AB, width=1, floor=-math.inf)[0]
    text, log_probability = greedy_by_prefix(log_probs)
    assert reading.text == text
    assert reading.log_probability == pytest.approx(log_probability)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 40), st.booleans())
def test_a_beam_of_16_never_scores_below_greedy(seed, count, modelled):
    log_probs, lengths = frames(seed, count), [count]
    first = greedy(log_probs, lengths, AB)[0]
    options = {"language": train(CORPUS, AB, order=3, prune=0), "alpha": 0.8, "beta": 0.3} if modelled else {}
    reading = prefix_beam(log_probs, lengths, AB, width=16, **options)[0]
    weight = Fusion(AB, **options).log_weight
    assert reading.log_probability + weight(reading.text) >= first.log_probability + weight(first.text) - 1e-9


def test_the_beam_grows_to_probabilities_of_at_most_one():
    log_probs = frames(3, 30)
    for beam, scale in grow(log_probs[0], AB, 8, -math.inf):
        masses = [sum(masses) for masses in beam.values()]
        assert masses == sorted(masses, reverse=True) and masses[0] == pytest.approx(1)
        assert math.log(sum(masses)) + scale <= 1e-9
        assert all(prefix[0] == BOUNDARY for prefix in beam)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 30))
def test_greedy_is_its_own_alignment(seed, count):
    log_probs = frames(seed, count)
    reading = greedy(log_probs, [count], AB)[0]
    score, spans = align(log_probs[0], AB.encode(reading.text))
    assert score == pytest.approx(reading.log_probability)
    assert spans == [(c.begin, c.end) for c in reading.characters]
    assert "".join(c.text for c in reading.characters) == reading.text
    assert all(0 < c.confidence <= 1 for c in reading.characters) and 0 <= reading.confidence <= 1


@pytest.mark.parametrize("seed", range(50))
def test_alignment_is_the_best_path_of_the_text(seed):
    log_probs = frames(seed, 5)
    best = defaultdict(lambda: -math.inf)
    for path in itertools.product(range(4), repeat=5):
        score = sum(log_probs[0, t, k] for t, k in enumerate(path))
        best[collapse(path)] = max(best[collapse(path)], score)
    for text, score in best.items():
        found, spans = align(log_probs[0], AB.encode(text))
        assert found == pytest.approx(score)
        assert all(begin < end for begin, end in spans)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_padding_and_company_change_nothing():
    log_probs = np.concatenate([frames(1, 12), frames(2, 12)])
    log_probs[0, 7:] = np.nan
    for decode in (greedy, prefix_beam):
        alone = decode(log_probs[:1, :7], [7], AB)
        together = decode(torch.tensor(log_probs), torch.tensor([7, 12]), AB)
        assert together[0].text == alone[0].text
        assert together[0].log_probability == pytest.approx(alone[0].log_probability, abs=1e-5)


def test_a_line_without_frames_is_an_empty_text():
    for decode in (greedy, prefix_beam):
        reading = decode(frames(0, 3), [0], AB)[0]
        assert (reading.text, reading.log_probability, reading.characters) == ("", 0.0, ())


def test_a_repeat_needs_a_blank():
    twice = np.log(np.array([[[0.02, 0.96, 0.01, 0.01]] * 2]))
    between = np.insert(twice, 1, np.log([0.97, 0.01, 0.01, 0.01]), axis=1)
    for decode in (greedy, prefix_beam):
        assert decode(twice, [2], AB)[0].text == "a"
        assert decode(between, [3], AB)[0].text == "aa"


def test_known_words_are_preferred_and_unknown_ones_still_read():
    log_probs = np.log(np.array([[[0.01, 0.5, 0.48, 0.01], [0.97, 0.01, 0.01, 0.01], [0.01, 0.01, 0.97, 0.01]]]))
    assert prefix_beam(log_probs, [3], AB)[0].text == "ab"
    assert prefix_beam(log_probs, [3], AB, words=["bb"])[0].text == "bb"
    assert prefix_beam(log_probs, [3], AB, words=["ba"])[0].text == "ab"


def test_certain_frames_outweigh_any_language_model():
    # The only path spells "ba b", which the language model holds to be impossible.
    path = [2, 0, 1, 3, 2]
    log_probs = np.where(np.eye(4)[path] == 1, 0.0, -np.inf)[None]
    language = train(["aaaa"] * 50, AB, order=3)
    assert prefix_beam(log_probs, [5], AB, language=language, alpha=5, beta=0)[0].text == "ba b"


def test_words_and_text_are_composed():
    accents = Alphabet("aé ")
    log_probs = np.log(np.array([[[0.01, 0.5, 0.48, 0.01]]]))
    assert prefix_beam(log_probs, [1], accents, words=[unicodedata.normalize("NFD", "é")])[0].text == "é"


def test_tune_ranks_the_grid():
    log_probs = np.concatenate([frames(seed, 6) for seed in range(4)])
    table = tune(log_probs, [6] * 4, ["ab", "a", "b", "ba"], AB, train(CORPUS, AB, order=2), [0, 1], [0])
    assert list(table.columns) == ["alpha", "beta", "cer"] and len(table) == 2 and table.cer.is_monotonic_increasing


@pytest.mark.parametrize("decode", [greedy, prefix_beam])
@pytest.mark.parametrize(
    ("log_probs", "lengths", "message"),
    [
        (np.zeros((0, 5, 4)), np.zeros(0, int), "at least one line"),
        (frames(0, 5)[0], [5], "pass \\(lines, frames, classes\\)"),
        (frames(0, 5), [6], "0 to 5 frames"),
        (frames(0, 5), [-1], "0 to 5 frames"),
        (frames(0, 5), [5, 5], "for each of 1 lines"),
        (frames(0, 5), [5.0], "whole number"),
        (frames(0, 5, classes=80), [5], "80 classes, the alphabet 4"),
        (np.where(np.arange(20).reshape(1, 5, 4) == 9, np.nan, frames(0, 5)), [5], "line 0, frame 2: NaN"),
        (np.exp(frames(0, 5)), [5], "above 0"),
        (np.full((1, 5, 4), -np.inf), [5], "all zero"),
    ],
)
def test_bad_input_is_named(decode, log_probs, lengths, message):
    with pytest.raises(ValueError, match=message):
        decode(log_probs, lengths, AB)


def test_bad_options_are_named():
    log_probs = frames(0, 5)
    with pytest.raises(ValueError, match="width 0"):
        prefix_beam(log_probs, [5], AB, width=0)
    with pytest.raises(AlphabetError, match="not in the alphabet"):
        prefix_beam(log_probs, [5], AB, language=train(["ab"], Alphabet("ab"), order=2))
    with pytest.raises(ValueError, match="too few"):
        align(log_probs[0], [1, 1, 1, 1])
    with pytest.raises(ValueError, match="no probability"):
        align(np.log(np.array([[1.0, 1e-300]])) * [1, np.inf], [1])


def test_a_language_model_of_more_characters_serves_a_smaller_alphabet():
    language = train(["ab ba", "z"], Alphabet("z ba"), order=3)
    log_probs = frames(5)
    assert set(prefix_beam(log_probs, [log_probs.shape[1]], AB, language=language)[0].text) <= set(AB.characters)


def test_columns_lie_in_a_line_of_the_iam_alphabet():
    log_probs = frames(0, 99, classes=IAM.classes)
    reading = prefix_beam(log_probs, [99], IAM)[0]
    assert all(0 <= c.columns[0] < c.columns[1] <= 4 * (99 + 1) for c in reading.characters)
