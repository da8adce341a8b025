"""The n-gram is a distribution, learns, and survives its file."""

import unicodedata

import numpy as np
import pytest

from hwrlib.alphabet import IAM, Alphabet
from hwrlib.language import BOUNDARY, EMBEDDED, CharNgram, train_ngram

ABC = Alphabet("abc ")


def test_probabilities_sum_to_one_also_from_its_file(tmp_path):
    for seed in range(36):
        rng, order = np.random.default_rng(seed), 1 + seed % 6
        texts = ["".join(rng.choice(list("abc "), rng.integers(1, 20))) for _ in range(rng.integers(1, 20))]
        texts += ["a" * 20_000] * (seed == 1)  # almost always the same after it
        ngram = train_ngram(texts, ABC, order=order, prune=seed % 3)
        ngram.save(tmp_path / "ngram.npz")
        loaded = CharNgram.load(tmp_path / "ngram.npz")
        assert (loaded.alphabet, loaded.order) == (ABC, order) and np.array_equal(loaded.prior, ngram.prior)
        for context in ("", "a", BOUNDARY, BOUNDARY + "ab c", "".join(rng.choice(list("abc "), 8))):
            for one in (ngram, loaded):
                probabilities = np.exp(one.row(context))
                assert probabilities.shape == (ABC.classes,) and (probabilities > 0).all()
                assert probabilities.sum() == pytest.approx(1)
        # Shares are stored in 16 bits.
        assert loaded.log_probability("abc a") == pytest.approx(ngram.log_probability("abc a"), rel=0.01)


def test_it_predicts_what_it_saw_longer_contexts_help_and_kneser_ney_counts_contexts():
    lines = ["the cat sat on the mat", "the rat sat on the cat", "a cat on a mat"] * 3
    bits = [train_ngram(lines, order=order, prune=0).bits(["the cat on the mat"]) for order in range(1, 5)]
    assert bits == sorted(bits, reverse=True)
    assert train_ngram(lines).row("the ca").argmax() == IAM.encode("t")[0]
    # "c" is frequent but follows only "b"; "a" follows three different characters.
    ngram = train_ngram(["bcbcbcbcbc", "aa", "ba", "ca"], Alphabet("abc"), order=2)
    unigram = CharNgram(ngram.alphabet, ngram.tables[:1], ngram.prior).row("")
    assert unigram[1] > unigram[3]
    ngram = train_ngram(["abb", "b"], Alphabet("abc"), order=1)
    assert ngram.prior.tolist() == pytest.approx([3 / 10, 2 / 10, 4 / 10, 1 / 10])  # each counted once more


def test_the_embedded_one_knows_english_composed_characters_are_alike_and_bad_input_refused():
    ngram = CharNgram.load()
    assert (ngram.alphabet, ngram.order) == (IAM, 6) and EMBEDDED.stat().st_size < 3_000_000
    assert ngram.log_probability("of the house") > ngram.log_probability("fo teh huose") + 10
    composed, apart = "éa", unicodedata.normalize("NFD", "éa")
    ngram = train_ngram([apart], Alphabet("aé"), order=2)
    assert ngram.log_probability(composed) == ngram.log_probability(apart)
    with pytest.raises(ValueError, match="not in the alphabet"):
        train_ngram(["abé"], ABC)
    with pytest.raises(ValueError, match="at least one line"):
        train_ngram(["", ""], ABC)
