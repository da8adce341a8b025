"""The reranker, with models that are made here in the place of the Hub's."""

import re
import sys

import numpy as np
import pytest

from hwrlib.__main__ import main
from hwrlib.alphabet import Alphabet
from hwrlib.beam import Candidate, PrefixBeam
from hwrlib.recognizer import Recognizer
from hwrlib.rerank import MODEL, CausalModel, Reranker
from hwrlib.tests.conftest import strokes, untrained

AB, END = Alphabet("ab"), "<|endoftext|>"
LINE = np.log([[[0.1, 0.5, 0.4], [0.9, 0.05, 0.05], [0.1, 0.6, 0.3]]])  # blank, a, b: most probably "aa"


@pytest.fixture
def folder(tmp_path):
    """A folder with a model of random weights that has a token for each byte."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    level = tokenizers.pre_tokenizers.ByteLevel
    vocabulary = {byte: k for k, byte in enumerate([END, *sorted(level.alphabet())])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = level(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END).save_pretrained(tmp_path)
    transformers.set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(vocabulary), initializer_range=0.5, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


class Watched(list):
    """In the place of a model: prefers texts with many a "b", and is the list of what it was asked."""

    def log_probabilities(self, texts, before=""):
        self.append((texts, before))
        return np.array([float(text.count("b")) for text in texts])


def reranker(model, **options):
    return Reranker(None, best=8, model=model, **options)


def test_a_texts_probability_is_that_of_its_tokens_one_after_the_other_in_any_batch(folder):
    model, texts = CausalModel(folder), ["a", "baa", "", "abab b"]
    model.model.float()
    together, one_by_one = model.log_probabilities(texts), [model.log_probabilities([text])[0] for text in texts]
    after = model.log_probabilities(["b", "baa"], "abba")
    whole = model.log_probabilities(["abba b", "abba baa"]) - model.log_probabilities(["abba"])
    np.testing.assert_allclose([*together, *after], [*one_by_one, *whole], atol=1e-4)
    assert together[2] == 0 and (together[[0, 1, 3]] < 0).all()
    assert reranker(model)(np.log([[[1.0, 1e-9, 1e-9]]]), [1], AB)[0].text == ""


def test_of_the_beams_texts_the_one_that_the_model_prefers_is_read_as_the_beam_would():
    (plain,), (found,) = PrefixBeam()(LINE, [3], AB), PrefixBeam(best=8).candidates(LINE, [3], AB)
    (reading,) = reranker(Watched(), weights=(1, 5, 0))(LINE, [3], AB)
    assert (plain.text, reading.text) == ("aa", "bb") and len(reading.alternatives) == 4
    assert reading.log_probability == {c.text: c.log_probability for c in found}["bb"]
    assert [(c.text, c.begin, c.end) for c in reading.characters] == [("b", 0, 1), ("b", 2, 3)]
    assert reranker(Watched(), weights=(1, 0, 0))(LINE, [3], AB)[0].characters == plain.characters


def test_the_model_sees_usual_spacing_and_on_a_page_the_lines_above():
    candidates, model = [Candidate('" a " .', 0, 0), Candidate("b", 0, 0)], Watched()
    assert Reranker(model=model, above=["( a ) ,"] * 4).rank(candidates) == candidates[::-1]
    assert model == [(['"a".', "b"], "(a), (a), (a),")]
    reader = Recognizer(untrained(AB), "fp32", reranker(model))
    lines = [reader.prepare(strokes(width)) for width in (400, 300)]
    alone, below = reader.read_prepared(lines), reader.read_prepared(lines, above=["a"])
    assert [before for _, before in model[1:]] == ["", "", "a", f"a {below[0].text}"] and alone == below


def test_a_missing_package_is_one_sentence_with_the_models_name(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["read", "--decoder", "reranked"]) == 1
    assert re.search(rf"^hwrlib: .*{MODEL}.*pip install", capsys.readouterr().err, re.MULTILINE)


def test_a_model_that_cannot_be_had_is_named(folder):
    (folder / "model.safetensors").write_bytes(b"damaged")
    for source in (folder, folder / "nowhere"):
        with pytest.raises(ValueError, match=rf"{source} cannot be had: .*HWR_RERANKER"):
            CausalModel(source)


def test_a_model_in_a_folder_that_the_environment_names_serves_reading(folder, monkeypatch, capsys):
    monkeypatch.setenv("HWR_RERANKER", str(folder))
    assert main(["read", "--decoder", "reranked", "--precision", "fp32"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
