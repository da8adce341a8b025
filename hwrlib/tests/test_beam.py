"""Prefix beam search and its language model, against brute force: every path of small cases, enumerated."""

import itertools
import math
import unicodedata
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwrlib.alphabet import Alphabet, AlphabetError
from hwrlib.beam import WORD_BONUS, Fusion, PrefixBeam, expand_beam
from hwrlib.ctc import greedy
from hwrlib.language import BOUNDARY, train

AB, ABC = Alphabet("ab "), Alphabet("abc ")
CORPUS = ["abba ab", "ab ab", "b a", "baab", "a bab b"]


def random_log_probs(seed, count=None, classes=4):
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
    return PrefixBeam(width=10**6, floor=-math.inf, best=3, **options)(log_probs, [log_probs.shape[1]], AB)[0]


@pytest.mark.parametrize("seed", range(200))
def test_a_wide_beam_equals_enumeration(seed):
    log_probs = random_log_probs(seed)
    expected = sorted(enumerate_texts(log_probs).items(), key=lambda item: -item[1])[:3]
    reading = exact(log_probs)
    assert [text for text, _ in expected] == [reading.text, *(text for text, _ in reading.alternatives)]
    found = [reading.log_probability, *(p for _, p in reading.alternatives)]
    assert found == pytest.approx([p for _, p in expected])


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("order", [1, 3])
def test_a_wide_beam_with_language_and_words_equals_enumeration(seed, order):
    log_probs, language = random_log_probs(seed), train(CORPUS, AB, order=order, prune=0)
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
    log_probs = random_log_probs(seed)
    reading = PrefixBeam(width=1, floor=-math.inf)(log_probs, [log_probs.shape[1]], AB)[0]
    text, log_probability = greedy_by_prefix(log_probs)
    assert reading.text == text
    assert reading.log_probability == pytest.approx(log_probability)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 40), st.booleans())
def test_a_beam_of_16_never_scores_below_greedy(seed, count, modelled):
    log_probs, lengths = random_log_probs(seed, count), [count]
    first = greedy(log_probs, lengths, AB)[0]
    options = {"language": train(CORPUS, AB, order=3, prune=0), "alpha": 0.8, "beta": 0.3} if modelled else {}
    reading = PrefixBeam(width=16, **options)(log_probs, lengths, AB)[0]
    weight = Fusion(AB, **options).log_weight
    assert reading.log_probability + weight(reading.text) >= first.log_probability + weight(first.text) - 1e-9


def test_the_beam_grows_to_probabilities_of_at_most_one():
    log_probs = random_log_probs(3, 30)
    for beam, scale in expand_beam(log_probs[0], AB, 8, -math.inf):
        masses = [sum(masses) for masses in beam.values()]
        assert masses == sorted(masses, reverse=True) and masses[0] == pytest.approx(1)
        assert math.log(sum(masses)) + scale <= 1e-9
        assert all(prefix[0] == BOUNDARY for prefix in beam)


def test_known_words_are_preferred_and_unknown_ones_still_read():
    log_probs = np.log(np.array([[[0.01, 0.5, 0.48, 0.01], [0.97, 0.01, 0.01, 0.01], [0.01, 0.01, 0.97, 0.01]]]))
    assert PrefixBeam()(log_probs, [3], AB)[0].text == "ab"
    assert PrefixBeam(words=["bb"])(log_probs, [3], AB)[0].text == "bb"
    assert PrefixBeam(words=["ba"])(log_probs, [3], AB)[0].text == "ab"


def test_certain_frames_outweigh_any_language_model():
    # The only path spells "ba b", which the language model holds to be impossible.
    path = [2, 0, 1, 3, 2]
    log_probs = np.where(np.eye(4)[path] == 1, 0.0, -np.inf)[None]
    language = train(["aaaa"] * 50, AB, order=3)
    assert PrefixBeam(language=language, alpha=5, beta=0)(log_probs, [5], AB)[0].text == "ba b"


def test_words_and_text_are_composed():
    accents = Alphabet("aé ")
    log_probs = np.log(np.array([[[0.01, 0.5, 0.48, 0.01]]]))
    assert PrefixBeam(words=[unicodedata.normalize("NFD", "é")])(log_probs, [1], accents)[0].text == "é"


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="width 0"):
        PrefixBeam(width=0)
    with pytest.raises(ValueError, match="best 0"):
        PrefixBeam(best=0)
    with pytest.raises(AlphabetError, match="not in the alphabet"):
        PrefixBeam(train(["ab"], Alphabet("ab"), order=2))(random_log_probs(0, 5), [5], AB)


def test_a_language_model_of_more_characters_serves_a_smaller_alphabet():
    language = train(["ab ba", "z"], Alphabet("z ba"), order=3)
    log_probs = random_log_probs(5)
    assert set(PrefixBeam(language)(log_probs, [log_probs.shape[1]], AB)[0].text) <= set(AB.characters)


def test_it_says_whose_confidence_it_gives():
    language = train(CORPUS, AB, order=2)
    names = [PrefixBeam().name, PrefixBeam(language).name, PrefixBeam(words=["ab"]).name, greedy.name]
    assert names == ["beam", "language", "language", "greedy"]


def test_one_beam_serves_many_alphabets():
    language, words = train(["abc cab"], ABC, order=3), ["a", "ba", "c"]
    decode = PrefixBeam(language, words=iter(words))
    for alphabet in (AB, ABC, AB):
        log_probs, alone = random_log_probs(7, 9, alphabet.classes), PrefixBeam(language, words=words)
        assert decode(log_probs, [9], alphabet) == alone(log_probs, [9], alphabet)


@settings(max_examples=50, deadline=None)
@given(st.text("abc ", max_size=10), st.sampled_from([None, ["a", "Bc"]]), st.booleans())
def test_the_weight_of_a_line_adds_up_characters_known_words_and_the_end_of_its_last_word(text, words, modelled):
    language = train(["ab ab", "ca"], ABC, order=3) if modelled else None
    expected = WORD_BONUS * sum(word.lower() in {w.lower() for w in words or ()} for word in text.split(" "))
    if modelled:
        after = language.row(BOUNDARY + text)  # of the line's end, and of a space in its place
        over = np.logaddexp(after[0], after[ABC.encode(" ")[0]])
        expected += 0.6 * (language.log_probability(text) - after[0] + over)
        expected -= 0.9 * np.log(language.prior[ABC.encode(text)]).sum()
    assert Fusion(ABC, language, 0.6, 0.9, words).log_weight(text) == pytest.approx(expected)
