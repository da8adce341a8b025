"""The error rates, the alignment and the analyses built on it."""

import json
import unicodedata

import jiwer
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from hwrlib import metrics

TEXT = st.text("abcrnm dl.,", max_size=12) | st.text(max_size=8)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6)


def nfc(text):
    return unicodedata.normalize("NFC", text)


def some_lines(count=60, seed=3):
    """Made-up lines and readings of them: words of which each may lose or change a letter."""
    rng = np.random.default_rng(seed)
    words = ["turn", "clear", "The", "1961", ",", "modern", "art", "."]
    references = [" ".join(rng.choice(words, size=6)) for _ in range(count)]
    return references, ["".join(c for c in line if rng.random() > 0.05) for line in references]


def test_spaces_count():
    assert metrics.cer([" a  b "], ["a b"]) == 3 / 6
    assert metrics.wer([" a  b "], ["a b"]) == 0


def test_rates_are_micro_averaged():
    references, predictions = ["abcd", "ab"], ["abcd", "xx"]
    assert metrics.cer(references, predictions) == 2 / 6
    assert metrics.wer(references, predictions) == 1 / 2


def test_an_empty_reference_adds_its_insertions():
    assert metrics.cer(["abcd", ""], ["abcd", "xy"]) == 2 / 4
    assert metrics.wer(["ab cd", ""], ["ab cd", "x y"]) == 2 / 2


def test_an_empty_prediction_misses_all():
    assert metrics.cer(["abc", "de"], ["", ""]) == 1
    assert metrics.wer(["abc de"], [""]) == 1


def test_no_reference_at_all_has_no_rate():
    with pytest.raises(ValueError, match="at least one reference character"):
        metrics.cer(["", ""], ["", "x"])
    with pytest.raises(ValueError, match="at least one reference word"):
        metrics.wer([" "], ["x"])
    assert metrics.cer([""], [""]) == 0


@pytest.mark.parametrize(
    "rate", [metrics.cer, metrics.wer, metrics.score, metrics.edits, metrics.per_line, metrics.report]
)
@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [
        ([], [], "at least one line"),
        (["a"], ["a", "b"], "1 references but 2 predictions"),
        ("abc", ["abc"], "references is a single string"),
        (["abc"], "abc", "predictions is a single string"),
        (["a", None], ["a", "b"], r"references\[1\] is NoneType"),
        (["a"], [b"a"], r"predictions\[0\] is bytes"),
    ],
)
def test_bad_input_is_named(rate, references, predictions, message):
    with pytest.raises(ValueError, match=message):
        rate(references, predictions)


def test_combining_characters_are_composed():
    assert metrics.cer(["cafe\u0301"], ["caf\u00e9"]) == 0
    assert metrics.cer(["cafe\u0301"], ["cafe"]) == 1 / 4
    assert metrics.align("e\u0301", "e") == [("substitute", "\u00e9", "e")]
    assert metrics.character_class("\u0301") == "other"


@given(PAIRS)
def test_rates_agree_with_rapidfuzz(pairs):
    references, predictions = zip(*pairs, strict=True)
    length = sum(len(nfc(reference)) for reference in references)
    errors = sum(Levenshtein.distance(nfc(r), nfc(p)) for r, p in pairs)
    if length:
        assert metrics.cer(references, predictions) == errors / length
    elif errors:
        with pytest.raises(ValueError, match="at least one"):
            metrics.cer(references, predictions)


@given(TEXT, TEXT)
def test_operations_rebuild_both_strings(reference, prediction):
    steps = metrics.align(reference, prediction)
    assert "".join(left for _, left, _ in steps) == nfc(reference)
    assert "".join(right for _, _, right in steps) == nfc(prediction)
    assert sum(kind != "equal" for kind, _, _ in steps) == Levenshtein.distance(nfc(reference), nfc(prediction))
    for kind, left, right in steps:
        expected = {"equal": left == right, "delete": right == "", "insert": left == ""}
        assert expected.get(kind, left != right and len(left) == len(right) == 1)


@settings(max_examples=50)
@given(PAIRS)
def test_tables_agree_with_each_other(pairs):
    references, predictions = zip(*pairs, strict=True)
    table, lines = metrics.edits(references, predictions), metrics.per_line(references, predictions)
    for column in ("errors", "characters"):
        assert table[column].sum() == lines[column].sum()
    assert metrics.confusions(table)["count"].sum() == table["errors"].sum()
    assert table["place"].between(0, 1).all()
    assert (lines["cer"].isna() == (lines["characters"] == 0)).all()
    groups = metrics.rate_by(lines, "line") if len(lines) > 1 else metrics.rate_by(lines, ["all"])
    assert groups["errors"].sum() == lines["errors"].sum()


def test_words_agree_with_jiwer_where_its_transforms_change_nothing():
    references, predictions = some_lines()
    predictions = [" ".join(line.split()) for line in predictions]
    assert metrics.wer(references, predictions) == jiwer.wer(references, predictions)
    lines = metrics.per_line(references, predictions)
    assert lines["word_errors"].sum() / lines["words"].sum() == jiwer.wer(references, predictions)


def test_confusions_are_counted_and_ranked():
    table = metrics.edits(["eat", "eel", "ab"], ["cat", "ccl", "abx"])
    assert metrics.confusions(table).to_numpy().tolist() == [["e", "c", 3], ["", "x", 1]]


@pytest.mark.parametrize(
    ("reference", "prediction", "found"),
    [
        ("turn", "tum", [["rn", "m", 1]]),
        ("dear", "clear", [["d", "cl", 1]]),
        ("with", "vvith", [["w", "vv", 1]]),
        ("mill", "rriill", [["m", "rri", 1]]),
        ("the cat", "th cat", []),
        ("cat", "cut", []),
        ("cat", "cuts", []),
        ("a whole line", "x", []),
    ],
)
def test_merges_are_found(reference, prediction, found):
    assert metrics.merges(metrics.edits([reference], [prediction])).to_numpy().tolist() == found


def test_merges_stop_at_the_end_of_a_line():
    assert metrics.merges(metrics.edits(["ar", "no"], ["am", "o"])).empty


def test_perfect_lines_have_no_confusions():
    table = metrics.edits(["abc", ""], ["abc", ""])
    assert metrics.confusions(table).empty
    assert metrics.merges(table).empty


def test_rate_by_counts_errors_characters_and_lines():
    lines = metrics.per_line(["abcd", "abcd", "ab"], ["abcd", "abxx", "ab"])
    rates = metrics.rate_by(lines, ["grey", "bin", "grey"])
    assert rates.loc["bin", ["errors", "characters", "lines", "rate"]].tolist() == [2, 4, 1, 0.5]
    assert rates.loc["grey", ["errors", "characters", "lines", "rate"]].tolist() == [0, 6, 2, 0]
    assert (rates["low"] <= rates["rate"]).all()
    assert (rates["high"] >= rates["rate"]).all()


def test_rate_by_takes_bins_in_order():
    lines = metrics.per_line(*some_lines())
    rates = metrics.rate_by(lines, pd.qcut(lines["characters"], 3))
    assert list(rates.index) == sorted(rates.index)
    assert rates["lines"].sum() == len(lines)
    assert rates["characters"].sum() == lines["characters"].sum()


def test_rate_by_refuses_rows_without_a_group():
    lines = metrics.per_line(["ab", "a long line"], ["ab", "a long line"])
    with pytest.raises(ValueError, match="1 rows belong to no group"):
        metrics.rate_by(lines, pd.cut(lines["characters"], [0, 5]))


def test_insertions_alone_have_no_rate():
    rates = metrics.rate_by(metrics.edits(["ab"], ["ab7"]), "class")
    assert rates.loc["digit", "errors"] == 1
    assert np.isnan(rates.loc["digit", "rate"])
    assert rates.loc["lower", "rate"] == 0


def test_accuracy_by_class():
    table = metrics.edits(["Ab 1.", "AB"], ["ab 1", "ABx"])
    accuracy = metrics.accuracy_by(table, "class")
    expected = {"lower": 1, "upper": 2 / 3, "space": 1, "digit": 1, "punctuation": 0}
    assert accuracy["accuracy"].to_dict() == pytest.approx(expected)
    assert accuracy["characters"].sum() == 7
    assert metrics.accuracy_by(table, "reference").loc["A", "accuracy"] == 0.5


def test_the_interval_holds_the_rate_and_narrows_with_more_lines():
    few, many = (metrics.score(*some_lines(count))["cer"] for count in (40, 1000))
    assert few["low"] < few["rate"] < few["high"]
    assert many["high"] - many["low"] < (few["high"] - few["low"]) / 3
    assert few == metrics.score(*some_lines(40))["cer"]


def test_the_interval_has_the_width_of_theory():
    """Lines of one character, right or wrong: the interval of a share is 1.96 * sqrt(p (1 - p) / n) to each side."""
    wrong = np.arange(2000) % 5 == 0
    score = metrics.score(["a"] * 2000, ["b" if is_wrong else "a" for is_wrong in wrong])["cer"]
    half = 1.96 * np.sqrt(0.2 * 0.8 / 2000)
    assert score["rate"] == 0.2
    assert [score["low"], score["high"]] == pytest.approx([0.2 - half, 0.2 + half], abs=0.2 * half)


def test_compare_is_paired():
    references, first = some_lines(200)
    second = [r if index % 10 == 0 else p for index, (r, p) in enumerate(zip(references, first, strict=True))]
    result = metrics.compare(references, first, second)
    assert result["difference"] == metrics.cer(references, second) - metrics.cer(references, first)
    assert result["low"] < result["difference"] < result["high"] < 0
    assert result["improved"] == 1
    # The two intervals overlap: only the pairing shows that the small gain is real.
    assert metrics.score(references, second)["cer"]["high"] > metrics.score(references, first)["cer"]["low"]


def test_compare_of_identical_systems_is_zero():
    references, first = some_lines(20)
    result = metrics.compare(references, first, first, unit="word")
    assert result == {"difference": 0, "low": 0, "high": 0, "improved": 0}


def test_the_second_row_forgives_only_spaces_before_punctuation():
    report = metrics.report(["He said , no .", "a b"], ["He said, no.", "ab"])
    assert report["cer"]["rate"] == 3 / 17
    assert report["without_spaces_before_punctuation"]["cer"]["rate"] == 1 / 15


def test_report_is_json_and_holds_no_line():
    references, predictions = some_lines()
    report = metrics.report(references, predictions)
    text = json.dumps(report, allow_nan=False)
    assert report["cer"]["rate"] == metrics.cer(references, predictions)
    assert report["lines"] == 60
    assert report["equal"] + report["substitute"] + report["delete"] == report["reference_characters"]
    assert sum(row["characters"] for row in report["classes"].values()) == report["reference_characters"]
    assert sum(row["characters"] for row in report["characters"].values()) == report["reference_characters"]
    assert all(len(side) <= 3 for row in report["confusions"] + report["merges"] for side in row[:2])
    assert not any(word in text for word in ("modern art", "turn clear", "1961"))
