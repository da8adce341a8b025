"""Prefix beam search and its language model, against brute force: every path of small cases, enumerated."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest

from hwrlib.alphabet import Alphabet, AlphabetError
from hwrlib.beam import Fusion, PrefixBeam, expand_beam
from hwrlib.ctc import greedy
from hwrlib.language import BOUNDARY, train_ngram

AB, ABC = Alphabet("ab "), Alphabet("abc ")
CORPUS = ["abba ab", "ab ab", "b a", "baab", "a bab b"]


def random_log_probs(seed, count=None, classes=4):
    """Random log-probabilities (1, T, C), T 1 to 5 where no count is given."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (1, count or rng.integers(1, 6), classes))
    return logits - np.log(np.exp(logits).sum(2, keepdims=True))


def enumerate_texts(log_probs):
    """Log-probability of every text, from the probability of every path."""
    texts = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[2]), repeat=log_probs.shape[1]):
        text = "".join(AB.characters[k - 1] for k, _ in itertools.groupby(path) if k)
        texts[text] += math.exp(sum(log_probs[0, t, k] for t, k in enumerate(path)))
    return {text: math.log(p) for text, p in texts.items()}


def read(decode, log_probs, alphabet=AB):
    return decode(log_probs, [log_probs.shape[1]], alphabet)[0]


def test_a_wide_beam_equals_enumeration():
    for seed in range(60):
        log_probs = random_log_probs(seed)
        expected = sorted(enumerate_texts(log_probs).items(), key=lambda item: -item[1])[:3]
        reading = read(PrefixBeam(width=10**6, floor=-math.inf, best=3), log_probs)
        found = [(reading.text, reading.log_probability), *reading.alternatives]
        assert [text for text, _ in expected] == [text for text, _ in found]
        assert [p for _, p in expected] == pytest.approx([p for _, p in found])


def test_a_wide_beam_with_language_equals_enumeration():
    for seed in range(60):
        log_probs, language = random_log_probs(seed), train_ngram(CORPUS, AB, order=1 + 2 * (seed % 2), prune=0)
        options = {"language": language, "alpha": 0.7, "beta": 0.4}
        texts, weight = enumerate_texts(log_probs), Fusion(AB, **options).log_weight
        reading = read(PrefixBeam(width=10**6, floor=-math.inf, **options), log_probs)
        assert reading.text == max(texts, key=lambda text: texts[text] + weight(text))
        assert reading.log_probability == pytest.approx(texts[reading.text])  # the language model has no share in it


def test_a_beam_of_16_never_scores_below_greedy():
    language = train_ngram(CORPUS, AB, order=3, prune=0)
    weight = Fusion(AB, language, 0.8, 0.3).log_weight
    for seed in range(40):
        log_probs = random_log_probs(seed, seed + 1)
        first, alone = read(greedy, log_probs), read(PrefixBeam(width=16), log_probs)
        modelled = read(PrefixBeam(language, 16, 0.8, 0.3), log_probs)
        assert alone.log_probability >= first.log_probability - 1e-9
        least = first.log_probability + weight(first.text) - 1e-9
        assert modelled.log_probability + weight(modelled.text) >= least


def test_the_beam_grows_to_probabilities_of_at_most_one():
    for beam, scale in expand_beam(random_log_probs(3, 30)[0], AB, 8, -math.inf):
        masses = [sum(masses) for masses in beam.values()]
        assert masses == sorted(masses, reverse=True) and masses[0] == pytest.approx(1)
        assert math.log(sum(masses)) + scale <= 1e-9
        assert all(prefix[0] == BOUNDARY for prefix in beam)


def test_certain_frames_outweigh_any_language_model():
    # The only path spells "ba b", which the language model holds to be impossible.
    log_probs = np.where(np.eye(4)[[2, 0, 1, 3, 2]] == 1, 0.0, -np.inf)[None]
    language = train_ngram(["aaaa"] * 50, AB, order=3)
    assert read(PrefixBeam(language, alpha=5, beta=0), log_probs).text == "ba b"


def test_one_beam_serves_each_alphabet_that_its_language_model_covers():
    language = train_ngram(["abc cab"], ABC, order=3)
    decode = PrefixBeam(language)
    for alphabet in (AB, ABC, AB):
        log_probs = random_log_probs(7, 9, alphabet.classes)
        assert read(decode, log_probs, alphabet) == read(PrefixBeam(language), log_probs, alphabet)
    with pytest.raises(AlphabetError, match="not in the alphabet"):
        read(decode, random_log_probs(0), Alphabet("abd"))
    assert [decoder.name for decoder in (greedy, PrefixBeam(), decode)] == ["greedy", "beam", "language"]


def test_the_weight_of_a_line_adds_up_its_characters_and_the_end_of_its_last_word():
    language = train_ngram(["ab ab", "ca"], ABC, order=3)
    for text in ("", "ab", "c a", "ab ", "cab abc"):
        after = language.row(BOUNDARY + text)  # of the line's end, and of a space in its place
        expected = 0.6 * (language.log_probability(text) - after[0] + np.logaddexp(after[0], after[4]))
        expected -= 0.9 * np.log(language.prior[ABC.encode(text)]).sum()
        assert Fusion(ABC, language, 0.6, 0.9).log_weight(text) == pytest.approx(expected)
