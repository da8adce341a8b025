"""The error rates, the alignment and the analyses built on it."""

import functools
import json
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from hwrlib import metrics

TEXT = st.text("abcrnm dl.,", max_size=12) | st.text(max_size=8)
nfc = functools.partial(unicodedata.normalize, "NFC")
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6)


def some_lines(count=60, seed=3):
    """Made-up lines and readings of them: words of which each may lose or change a letter."""
    rng = np.random.default_rng(seed)
    words = ["turn", "clear", "The", "1961", ",", "modern", "art", "."]
    references = [" ".join(rng.choice(words, size=6)) for _ in range(count)]
    return references, ["".join(c for c in line if rng.random() > 0.05) for line in references]


def test_rates_by_hand_and_bad_input_is_named():
    for references, predictions, cer, wer in [
        (["The magnificent castle stood tall"], ["The magnifcent castle stood tall"], 1 / 33, 1 / 5),  # 33, not 34
        ([" a  b "], ["a b"], 3 / 6, 0),  # spaces count
        (["abcd", "ab"], ["abcd", "xx"], 2 / 6, 1 / 2),  # micro-averaged
        (["ab cd", ""], ["ab cd", "x y"], 3 / 5, 2 / 2),  # an empty reference adds its insertions
        (["abc", "de"], ["", ""], 1, 1),
        ([""], [""], 0, 0),
        (["cafe\u0301"], ["caf\u00e9"], 0, 0),  # composed
        (["cafe\u0301"], ["cafe"], 1 / 4, 1),
    ]:
        assert (metrics.cer(references, predictions), metrics.wer(references, predictions)) == (cer, wer)
    assert metrics.align("e\u0301", "e") == [("substitute", "\u00e9", "e")]
    classes = ["lower", "upper", "digit", "space", "punctuation", "other"]
    assert [metrics.character_class(c) for c in "aÉ7 ,\u0301"] == classes
    for rate in (metrics.cer, metrics.wer, metrics.score, metrics.edits, metrics.per_line, metrics.report):
        for references, predictions in [([], []), (["a"], ["a", "b"]), ("abc", ["abc"]), (["abc"], "abc"), ("a", "b")]:
            with pytest.raises(ValueError, match="pass two lists with one text for each line, at least one"):
                rate(references, predictions)


@settings(max_examples=50)
@given(PAIRS)
def test_alignments_rebuild_both_texts_and_all_tables_agree(pairs):
    references, predictions = zip(*pairs, strict=True)
    for reference, prediction in pairs:
        steps = metrics.align(reference, prediction)
        assert "".join(left for _, left, _ in steps) == nfc(reference)
        assert "".join(right for _, _, right in steps) == nfc(prediction)
        assert sum(kind != "equal" for kind, _, _ in steps) == Levenshtein.distance(nfc(reference), nfc(prediction))
        for kind, left, right in steps:
            expected = {"equal": left == right, "delete": right == "", "insert": left == ""}
            assert expected.get(kind, left != right and len(left) == len(right) == 1)
    table, lines = metrics.edits(references, predictions), metrics.per_line(references, predictions)
    for column in ("errors", "characters"):
        assert table[column].sum() == lines[column].sum()
    assert metrics.cer(references, predictions) == lines["errors"].sum() / max(lines["characters"].sum(), 1)
    assert metrics.confusions(table)["count"].sum() == table["errors"].sum()
    assert table["place"].between(0, 1).all()
    assert (lines["cer"].isna() == (lines["characters"] == 0)).all()
    assert metrics.rate_by(lines, ["all"] * len(lines))["errors"].sum() == lines["errors"].sum()


def test_confusions_and_merges_are_counted_and_ranked_and_groups_have_rates_and_accuracies():
    table = metrics.edits(["eat", "eel", "ab"], ["cat", "ccl", "abx"])
    assert metrics.confusions(table).to_numpy().tolist() == [["e", "c", 3], ["", "x", 1]]
    table = metrics.edits(["turn", "modern art", "dear"], ["tum", "modem art", "clear"])
    assert metrics.merges(table).to_numpy().tolist() == [["rn", "m", 2], ["d", "cl", 1]]
    table = metrics.edits(["mill", "cat", "the cat", "a whole line"], ["rriill", "cuts", "th cat", "x"])
    assert metrics.merges(table).to_numpy().tolist() == [["m", "rri", 1]]
    assert metrics.merges(metrics.edits(["ar", "no"], ["am", "o"])).empty  # the end of a line parts errors
    assert metrics.confusions(metrics.edits(["abc", ""], ["abc", ""])).empty

    lines = metrics.per_line(["abcd", "abcd", "ab"], ["abcd", "abxx", "ab"])
    rates = metrics.rate_by(lines, ["grey", "bin", "grey"])
    assert rates.loc["bin", ["errors", "characters", "lines", "rate"]].tolist() == [2, 4, 1, 0.5]
    assert rates.loc["grey", ["errors", "characters", "lines", "rate"]].tolist() == [0, 6, 2, 0]
    assert (rates["low"] <= rates["rate"]).all() and (rates["high"] >= rates["rate"]).all()
    insertion = metrics.rate_by(metrics.edits(["ab"], ["ab7"]), "class").loc["digit"]
    assert insertion["errors"] == 1 and np.isnan(insertion["rate"])
    table = metrics.edits(["Ab 1.", "AB"], ["ab 1", "ABx"])
    expected = {"lower": 1, "upper": 2 / 3, "space": 1, "digit": 1, "punctuation": 0}
    assert metrics.accuracy_by(table, "class")["accuracy"].to_dict() == pytest.approx(expected)
    lines = metrics.per_line(*some_lines())
    rates = metrics.rate_by(lines, pd.qcut(lines["characters"], 3))
    assert list(rates.index) == sorted(rates.index) and rates["lines"].sum() == len(lines)
    with pytest.raises(ValueError, match="60 rows belong to no group"):
        metrics.rate_by(lines, pd.cut(lines["characters"], [0, 5]))


def test_the_interval_has_the_width_of_theory_and_compare_is_paired():
    """Lines of one character, right or wrong: the interval of a share is 1.96 * sqrt(p (1 - p) / n) to each side."""
    for count in (200, 2000):
        score = metrics.score(["a"] * count, ["b" if k % 5 == 0 else "a" for k in range(count)])["cer"]
        half = 1.96 * np.sqrt(0.2 * 0.8 / count)
        assert score["rate"] == 0.2
        assert [score["low"], score["high"]] == pytest.approx([0.2 - half, 0.2 + half], abs=0.2 * half)
    references, first = some_lines(200)
    second = [r if index % 10 == 0 else p for index, (r, p) in enumerate(zip(references, first, strict=True))]
    result = metrics.compare(references, first, second)
    assert result["difference"] == metrics.cer(references, second) - metrics.cer(references, first)
    assert result["low"] < result["difference"] < result["high"] < 0 and result["improved"] == 1
    # The two intervals overlap: only the pairing shows that the small gain is real.
    assert metrics.score(references, second)["cer"]["high"] > metrics.score(references, first)["cer"]["low"]
    same = metrics.compare(references, first, first, unit="word")
    assert same == {"difference": 0, "low": 0, "high": 0, "improved": 0}


def test_report_is_json_and_holds_no_line():
    references, predictions = some_lines()
    report = metrics.report(references, predictions)
    text = json.dumps(report, allow_nan=False)
    assert report["cer"]["rate"] == metrics.cer(references, predictions) and report["lines"] == 60
    for table in ("classes", "characters"):
        assert sum(row["characters"] for row in report[table].values()) == report["reference_characters"]
    assert all(len(side) <= 3 for row in report["confusions"] + report["merges"] for side in row[:2])
    assert not any(word in text for word in ("modern art", "turn clear", "1961"))
    report = metrics.report(["He said , no .", "a b"], ["He said, no.", "ab"])
    assert report["cer"]["rate"] == 3 / 17  # the second row forgives spaces before punctuation, and no others
    assert report["without_spaces_before_punctuation"]["cer"]["rate"] == 1 / 15
