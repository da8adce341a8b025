"""Error rates of readings, with intervals, alignments and confusions: what is wrong, how often, how surely (chapter 6).

Texts are compared as they are, spaces and case included, after Unicode NFC on both sides ("é" is one character
however it was typed). Rates are micro-averaged: all errors over all reference characters (or words). They can exceed 1;
an empty reference adds insertions and no length.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest

import jiwer
import numpy as np
import pandas as pd

Texts = Sequence[str]  # one for each line
SAMPLES, SEED, QUANTILES = 1000, 0, [0.025, 0.975]  # of every bootstrap
# jiwer's own transforms strip and collapse spaces; these two only split.
UNITS = {"character": jiwer.ReduceToListOfListOfChars(), "word": jiwer.ReduceToListOfListOfWords()}


def _pair(references: Texts, predictions: Texts) -> list[list[str]]:
    if isinstance(references, str) or isinstance(predictions, str) or not 0 < len(references) == len(predictions):
        counts = f"{len(references)} references, {len(predictions)} predictions"
        raise ValueError(f"{counts}: pass two lists with one text for each line, at least one.")
    return [[unicodedata.normalize("NFC", text) for text in texts] for texts in (references, predictions)]


def _align(references: Texts, predictions: Texts, unit: str = "character") -> list[list[tuple]]:
    """Each line's alignment with the fewest errors, in steps (kind, reference, prediction) of one unit."""
    output, lines = jiwer.process_words(*_pair(references, predictions), UNITS[unit], UNITS[unit]), []
    for left, right, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True):
        lines.append([])
        for chunk in chunks:
            sides = left[chunk.ref_start_idx : chunk.ref_end_idx], right[chunk.hyp_start_idx : chunk.hyp_end_idx]
            lines[-1] += [(chunk.type, *step) for step in zip_longest(*sides, fillvalue="")]
    return lines


def _count(references: Texts, predictions: Texts, unit: str) -> np.ndarray:
    """Errors and reference lengths (2, lines), in units."""
    lines = [[kind for kind, _, _ in steps] for steps in _align(references, predictions, unit)]
    return np.array([[len(kinds) - kinds.count(other) for kinds in lines] for other in ("equal", "insert")])


def _rate(errors: np.ndarray, lengths: np.ndarray) -> float:
    return float(errors.sum() / max(lengths.sum(), 1))  # what was read where nothing was written counts, as in jiwer


def cer(references: Texts, predictions: Texts) -> float:
    """Character error rate: insertions, deletions and substitutions (Levenshtein, 1966) over reference characters.

    >>> [cer(["hello"], [text]) for text in ("helo", "hallo", "helloo", "hello")]  # helloo: 1/5, not 1/6
    [0.2, 0.2, 0.2, 0.0]
    """
    return _rate(*_count(references, predictions, "character"))


def wer(references: Texts, predictions: Texts) -> float:
    """Word error rate: :func:`cer` counted in words, which are what stands between spaces."""
    return _rate(*_count(references, predictions, "word"))


def without_spaces_before_punctuation(text: str) -> str:
    """The text without the spaces before ``. , ; : ! ? )``: done to both sides for the second scoring row.

    >>> without_spaces_before_punctuation("Well , he said ( once ) .")
    'Well, he said ( once).'
    """
    return re.sub(r" +(?=[.,;:!?)])", "", text)


def align(reference: str, prediction: str) -> list[tuple[str, str, str]]:
    """The alignment of two texts with the fewest errors, in steps (kind, reference, prediction) of one character.

    A kind is equal, substitute, delete or insert; a missing side is the empty string.

    >>> align("cat", "at")
    [('delete', 'c', ''), ('equal', 'a', 'a'), ('equal', 't', 't')]
    """
    return _align([reference], [prediction])[0]


def character_class(character: str) -> str:
    """One of lower, upper, digit, space, punctuation or, for anything else (a lone accent, say), other."""
    tests = {"lower": str.islower, "upper": str.isupper, "digit": str.isdigit, "space": str.isspace}
    last = "punctuation" if unicodedata.category(character)[0] in "PS" else "other"
    return next((name for name, test in tests.items() if test(character)), last)


def edits(references: Texts, predictions: Texts) -> pd.DataFrame:
    """The alignments of all lines as one table, the ground of the analyses below: a row for each step.

    Its columns are line, kind, reference, prediction, class (of the reference character, or of the inserted one),
    errors (0 or 1), characters (0 for an insertion, else 1) and place (0 to 1, how far along the reference).
    """
    rows = [(line, *step) for line, steps in enumerate(_align(references, predictions)) for step in steps]
    table = pd.DataFrame(rows, columns=["line", "kind", "reference", "prediction"])
    table["class"] = [character_class(left or right) for _, _, left, right in rows]
    table["errors"] = (table["kind"] != "equal").astype(int)
    table["characters"] = (table["reference"] != "").astype(int)
    read = table.groupby("line")["characters"]
    table["place"] = (read.cumsum() - table["characters"]) / read.transform("sum").clip(lower=1)
    return table


def per_line(references: Texts, predictions: Texts) -> pd.DataFrame:
    """A row for each line: line, reference, prediction, errors, characters, word_errors, words, cer (maybe NaN)."""
    references, predictions = _pair(references, predictions)
    table = pd.DataFrame({"line": range(len(references)), "reference": references, "prediction": predictions})
    table["errors"], table["characters"] = _count(references, predictions, "character")
    table["word_errors"], table["words"] = _count(references, predictions, "word")
    return table.assign(cer=table["errors"] / table["characters"].replace(0, np.nan))


def confusions(table: pd.DataFrame) -> pd.DataFrame:
    """How often :func:`edits` has each character as another: reference, prediction, count, most frequent first."""
    counts = table[table["errors"] == 1].groupby(["reference", "prediction"]).size().rename("count").reset_index()
    return counts.sort_values("count", ascending=False, kind="stable", ignore_index=True)


def merges(table: pd.DataFrame) -> pd.DataFrame:
    """One character read as two or three ("d" as "cl"), or the reverse, from errors of :func:`edits` in a row."""
    wrong = table[table["errors"] == 1]
    run = ((table["errors"] == 0) | (table["line"] != table["line"].shift())).cumsum()[wrong.index]
    joined = wrong.groupby(run)[["reference", "prediction"]].agg("".join)
    lengths = joined["reference"].str.len(), joined["prediction"].str.len()
    return confusions(joined[(np.minimum(*lengths) == 1) & np.maximum(*lengths).isin([2, 3])].assign(errors=1))


def _resample(errors: np.ndarray, lengths: np.ndarray) -> pd.DataFrame:
    """Rates (SAMPLES, groups) of lines drawn with replacement, from counts (lines, groups) or (lines,)."""
    weights = np.random.default_rng(SEED).multinomial(len(errors), np.full(len(errors), 1 / len(errors)), size=SAMPLES)
    lengths = weights @ lengths
    return pd.DataFrame((weights @ errors) / np.where(lengths > 0, lengths, np.nan))


def rate_by(table: pd.DataFrame, by: str | Sequence) -> pd.DataFrame:
    """The error rate of each group with its 95 % interval, from a bootstrap over lines (Bisani and Ney, 2004).

    The table is from :func:`edits` or :func:`per_line`; ``by`` is a column's name, or one label or bin for each row.
    The result has errors, characters, lines, rate, low and high; a group of insertions alone has no rate (NaN).
    """
    groups = table[by] if isinstance(by, str) else pd.Series(np.asarray(by), index=table.index)
    if groups.isna().any():
        raise ValueError(f"{groups.isna().sum()} rows belong to no group: widen the bins or fill the column.")
    counts = table.groupby([table["line"], groups])[["errors", "characters"]].sum()
    errors, characters = (counts[name].unstack(fill_value=0) for name in counts)
    low, high = _resample(errors.to_numpy(), characters.to_numpy()).quantile(QUANTILES).to_numpy()
    result = counts.assign(lines=1).groupby(level=1).sum()
    return result.assign(rate=result["errors"] / result["characters"].replace(0, np.nan), low=low, high=high)


def accuracy_by(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """The share of :func:`edits`' reference characters read right: accuracy in place of :func:`rate_by`'s rate."""
    rates = rate_by(table[table["characters"] == 1], by).rename(columns={"rate": "accuracy"})
    return rates.assign(accuracy=1 - rates["accuracy"], low=1 - rates["high"], high=1 - rates["low"])


def score(references: Texts, predictions: Texts) -> dict[str, dict[str, float]]:
    """``{"cer": ..., "wer": ...}``, each with rate, low and high (95 % interval, bootstrap over lines)."""
    result = {}
    for name, unit in (("cer", "character"), ("wer", "word")):
        errors, lengths = _count(references, predictions, unit)
        low, high = _resample(errors, lengths)[0].quantile(QUANTILES).tolist()
        result[name] = {"rate": _rate(errors, lengths), "low": low, "high": high}
    return result


def compare(references: Texts, first: Texts, second: Texts, unit: str = "character") -> dict[str, float]:
    """How much a second reading of the same lines differs from a first, by a paired bootstrap (Bisani and Ney, 2004).

    The unit is "character" or "word". The result has difference (the second's rate less the first's), low and high of
    its 95 % interval, and improved: the share of draws in which the second has the lower rate (identical readings: 0).
    """
    (before, lengths), (after, _) = _count(references, first, unit), _count(references, second, unit)
    difference = _rate(after, lengths) - _rate(before, lengths)
    draws = _resample(after - before, lengths)[0]
    low, high = draws.quantile(QUANTILES).tolist()
    return {"difference": difference, "low": low, "high": high, "improved": float((draws < 0).mean())}


def report(references: Texts, predictions: Texts) -> dict:
    """What may be published of a reading, as JSON: counts, rates, intervals, mistakes of three characters at most."""
    table, lines = edits(references, predictions), per_line(references, predictions)
    closed = [list(map(without_spaces_before_punctuation, texts)) for texts in (references, predictions)]
    return {
        "lines": len(lines),
        "lines_without_error": int((lines["errors"] == 0).sum()),
        **{f"reference_{unit}": int(lines[unit].sum()) for unit in ("characters", "words")},
        **{kind: int((table["kind"] == kind).sum()) for kind in ("equal", "substitute", "delete", "insert")},
        **score(references, predictions),
        "without_spaces_before_punctuation": score(*closed),
        "classes": accuracy_by(table, "class").to_dict("index"),
        "characters": accuracy_by(table, "reference").to_dict("index"),
        "confusions": confusions(table).head(100).to_numpy().tolist(),
        "merges": merges(table).head(25).to_numpy().tolist(),
        "bootstrap": {"samples": SAMPLES, "seed": SEED},
    }
