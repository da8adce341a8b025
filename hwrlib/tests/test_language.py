"""The n-gram is a distribution, learns, and survives its file."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hwrlib
from hwrlib.alphabet import IAM, Alphabet, AlphabetError
from hwrlib.language import BOUNDARY, Language, train

SHIPPED = Path(hwrlib.__file__).parent / "weights" / "language.npz"
ABC = Alphabet("abc ")
TEXTS = st.lists(st.text("abc ", min_size=1, max_size=20), min_size=1, max_size=20)


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.text("abc ", max_size=8), st.integers(1, 6), st.integers(0, 2))
def test_probabilities_sum_to_one(texts, context, order, prune):
    language = train(texts, ABC, order=order, prune=prune)
    for start in ("", BOUNDARY):
        probabilities = np.exp(language.row(start + context))
        assert probabilities.shape == (ABC.classes,)
        assert (probabilities > 0).all()  # every character stays possible
        assert probabilities.sum() == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(TEXTS, st.integers(1, 6))
def test_a_file_keeps_it(tmp_path_factory, texts, order):
    path = tmp_path_factory.mktemp("language") / "language.npz"
    language = train(texts, ABC, order=order)
    language.save(path)
    loaded = Language.load(path)
    assert (loaded.alphabet, loaded.order) == (ABC, order)
    for text in ("abc a", "c", ""):
        # Shares are stored in 16 bits.
        assert loaded.log_probability(text) == pytest.approx(language.log_probability(text), abs=0.05)
        assert np.exp(loaded.row(BOUNDARY + text)).sum() == pytest.approx(1)


def test_it_predicts_what_it_saw_and_longer_contexts_help():
    lines = ["the cat sat on the mat", "the rat sat on the cat", "a cat on a mat"] * 3
    bits = [train(lines, IAM, order=order, prune=0).bits(["the cat on the mat"]) for order in range(1, 5)]
    assert bits == sorted(bits, reverse=True)
    assert train(lines, IAM).row("the ca").argmax() == IAM.encode("t")[0]


def test_kneser_ney_counts_contexts_where_plain_counts_would_mislead():
    # "c" is frequent but follows only "b"; "a" follows three different characters.
    language = train(["bcbcbcbcbc", "aa", "ba", "ca"], Alphabet("abc"), order=2)
    unigram = np.exp(Language(language.alphabet, language.tables[:1], language.prior).row(""))
    assert unigram[1] > unigram[3]


def test_log_probability_is_the_product_of_the_rows():
    language = train(["ab ab", "ca"], ABC, order=3)
    line = BOUNDARY + "ab"
    expected = sum(language.row(line[: i + 1])[k] for i, k in enumerate([*ABC.encode("ab"), 0]))
    assert language.log_probability("ab") == pytest.approx(expected)


def test_the_prior_counts_characters_and_ends_of_lines_and_is_saved(tmp_path):
    language = train(["abb", "b"], Alphabet("abc"), order=1)
    assert language.prior.tolist() == pytest.approx([3 / 10, 2 / 10, 4 / 10, 1 / 10])  # each counted once more
    language.save(tmp_path / "language.npz")
    assert np.array_equal(Language.load(tmp_path / "language.npz").prior, language.prior)


def test_pruning_leaves_out_rare_long_ones():
    models = [train(["abcabc", "abcabc", "cab ab"], ABC, prune=prune) for prune in (0, 1, 9)]
    none, some, most = (sum(len(keys) for keys, _ in model.tables) for model in models)
    assert none > some > most


def test_the_shipped_model_is_small_and_knows_english():
    assert SHIPPED.stat().st_size < 3_000_000
    language = Language.load(SHIPPED)
    assert (language.alphabet, language.order) == (IAM, 6)
    assert language.log_probability("of the house") > language.log_probability("fo teh huose") + 10
    assert language.row(BOUNDARY + "the").argmax() == IAM.encode(" ")[0]


def test_composed_characters_and_bad_input():
    accents = Alphabet("aé")
    composed, apart = "éa", unicodedata.normalize("NFD", "éa")
    language = train([apart], accents, order=2)
    assert language.log_probability(composed) == language.log_probability(apart)
    with pytest.raises(AlphabetError, match="not in the alphabet"):
        train(["abé"], ABC)
    with pytest.raises(ValueError, match="at least one line"):
        train(["", ""], ABC)
    with pytest.raises(ValueError, match="order 7"):
        train(["ab"], ABC, order=7)
