"""Prefix beam search and its language model, against brute force: every path of small cases, enumerated."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest

from hwrlib.alphabet import Alphabet, AlphabetError
from hwrlib.beam import Fusion, PrefixBeam
from hwrlib.ctc import greedy
from hwrlib.language import BOUNDARY, train_ngram
from hwrlib.tests.test_ctc import AB, collapse, random_log_probs

ABC = Alphabet("abc ")
CORPUS = ["abba ab", "ab ab", "b a", "baab", "a bab b"]


def enumerate_texts(log_probs):
    """Log-probability of every text, from the probability of every path."""
    texts = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[2]), repeat=log_probs.shape[1]):
        texts[collapse(path)] += math.exp(sum(log_probs[0, t, k] for t, k in enumerate(path)))
    return {text: math.log(p) for text, p in texts.items()}


def read(decode, log_probs, alphabet=AB):
    return decode(log_probs, [log_probs.shape[1]], alphabet)[0]


def test_a_wide_beam_equals_enumeration_with_language_as_well():
    wide = {"width": 10**6, "floor": -math.inf}
    for seed in range(60):
        log_probs = random_log_probs(seed, 1 + seed % 5)
        texts = enumerate_texts(log_probs)
        reading = read(PrefixBeam(**wide, best=3), log_probs)
        found = dict([(reading.text, reading.log_probability), *reading.alternatives])
        assert list(found) == sorted(texts, key=texts.get, reverse=True)[:3]
        assert found == pytest.approx({text: texts[text] for text in found})
        options = {"language": train_ngram(CORPUS, AB, order=1 + 2 * (seed % 2), prune=0), "alpha": 0.7, "beta": 0.4}
        weight, reading = Fusion(AB, **options).log_weight, read(PrefixBeam(**wide, **options), log_probs)
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
