"""The n-gram is a distribution, learns and survives its file; the fusion adds up; confidences calibrate."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwrlib import confidence
from hwrlib.alphabet import IAM, Alphabet, AlphabetError
from hwrlib.confidence import calibrate, line_confidence, reliability
from hwrlib.decode import prefix_beam
from hwrlib.language import BOUNDARY, KNOWN, Fusion, Language, spaced, train

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
    unigram = np.exp(Language(language.alphabet, language.tables[:1]).row(""))
    assert unigram[1] > unigram[3]


def test_log_probability_is_the_product_of_the_rows():
    language = train(["ab ab", "ca"], ABC, order=3)
    line = BOUNDARY + "ab"
    expected = sum(language.row(line[: i + 1])[k] for i, k in enumerate([*ABC.encode("ab"), 0]))
    assert language.log_probability("ab") == pytest.approx(expected)


def test_pruning_leaves_out_rare_long_ones():
    models = [train(["abcabc", "abcabc", "cab ab"], ABC, prune=prune) for prune in (0, 1, 9)]
    none, some, most = (sum(len(keys) for keys, _ in model.tables) for model in models)
    assert none > some > most


def test_the_shipped_model_is_small_and_knows_english():
    path = Path(confidence.__file__).parent / "weights" / "language.npz"
    assert path.stat().st_size < 3_000_000
    language = Language.load(path)
    assert (language.alphabet, language.order) == (IAM, 6)
    assert language.log_probability("of the house") > language.log_probability("fo teh huose") + 10
    assert language.row(BOUNDARY + "the").argmax() == IAM.encode(" ")[0]


@settings(max_examples=50, deadline=None)
@given(st.text("abc ", max_size=10), st.sampled_from([None, ["a", "Bc"]]), st.booleans())
def test_the_weight_of_a_line_adds_up_characters_known_words_and_the_end_of_its_last_word(text, words, modelled):
    language = train(["ab ab", "ca"], ABC, order=3) if modelled else None
    expected = KNOWN * sum(word.lower() in {w.lower() for w in words or ()} for word in text.split(" "))
    if modelled:
        after = language.row(BOUNDARY + text)  # of the line's end, and of a space in its place
        over = np.logaddexp(after[0], after[ABC.encode(" ")[0]])
        expected += 0.6 * (language.log_probability(text) - after[0] + over) + 0.9 * len(text)
    assert Fusion(ABC, language, 0.6, 0.9, words).log_weight(text) == pytest.approx(expected)


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


def test_spacing_touches_only_sentence_marks():
    assert spaced('He said: "No, Mr. X."') == 'He said : "No , Mr. X."'
    assert spaced("3.5 per cent") == "3.5 per cent"


def test_calibration_mends_confidences_that_are_too_high():
    rng = np.random.default_rng(0)
    shares = rng.uniform(0.5, 1, 400)
    confidences = shares**0.3  # too sure of itself
    offset, slope = calibrate(confidences, shares)
    logits = np.log(confidences / (1 - confidences))
    mended = 1 / (1 + np.exp(-offset - slope * logits))
    table, before = reliability(confidences, shares)
    _, after = reliability(mended, shares)
    assert table.lines.sum() == 400 and after < before / 4
    # Fitted again to what is calibrated already, nothing changes.
    assert calibrate(mended, shares, offset, slope) == pytest.approx([offset, slope], abs=1e-2)


def test_every_decoder_has_a_calibration():
    for decoder in ("greedy", "beam", "language"):
        sure, unsure = line_confidence(-0.1, 40, decoder), line_confidence(-40.0, 40, decoder)
        assert 0 <= unsure < sure <= 1
    reading = prefix_beam(np.zeros((1, 0, ABC.classes)), [0], ABC)[0]
    assert reading.confidence > 0.5
