"""Error rates of readings, with intervals, alignments and confusions: what is wrong, how often, and how surely.

Texts are compared as they are, spaces and case included, after Unicode NFC on both sides ("é" is one character
however it was typed). Rates are micro-averaged: all errors over all reference characters (or words). They can exceed 1.
Chapter 6 teaches it: notebooks/06_analyse_the_errors.ipynb
"""

import re
import unicodedata
from itertools import zip_longest

import jiwer
import numpy as np
import pandas as pd
from rapidfuzz.distance import Levenshtein

SAMPLES, SEED, QUANTILES = 1000, 0, [0.025, 0.975]  # of every bootstrap

# jiwer's default transforms strip and collapse spaces; these two only split.
UNITS = {
    "character": (jiwer.process_characters, jiwer.ReduceToListOfListOfChars()),
    "word": (jiwer.process_words, jiwer.ReduceToListOfListOfWords()),
}


def _pairs(references, predictions):
    """Return both lists in NFC, or say why they cannot be compared."""
    pairs = {"references": references, "predictions": predictions}
    for name, texts in pairs.items():
        if isinstance(texts, str):
            raise ValueError(f"{name} is a single string: pass a list with one string per line.")
        pairs[name] = list(texts)
        for index, text in enumerate(pairs[name]):
            if not isinstance(text, str):
                raise ValueError(f"{name}[{index}] is {type(text).__name__}, not str: pass one transcript per line.")
    references, predictions = ([unicodedata.normalize("NFC", text) for text in texts] for texts in pairs.values())
    if len(references) != len(predictions):
        raise ValueError(f"{len(references)} references but {len(predictions)} predictions: pass one per line.")
    if not references:
        raise ValueError("references and predictions are empty: a rate needs at least one line.")
    return references, predictions


def _counts(references, predictions, unit):
    """Return two arrays (lines,): the edit distance and the reference's length of each line, in `unit`s."""
    process, split = UNITS[unit]
    output = process(*_pairs(references, predictions), split, split)
    errors = [
        sum(max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx) for c in line if c.type != "equal")
        for line in output.alignments
    ]
    return np.array(errors), np.array([len(reference) for reference in output.references])


def _rate(errors, lengths, unit):
    """Return the micro-averaged rate; nothing read from nothing is 0, anything read from nothing has no rate."""
    if lengths.sum() == 0 and errors.sum() > 0:
        raise ValueError(f"references hold no {unit}: a rate needs at least one reference {unit}.")
    return float(errors.sum() / max(lengths.sum(), 1))


def cer(references, predictions):
    """Return the character error rate: insertions, deletions and substitutions over reference characters.

    `references`, `predictions`: lists of strings, one per line (distance: Levenshtein, 1966; computed by jiwer). A line
    with an empty reference adds its insertions and no length. Raises ValueError for lists that differ in length, are
    empty or hold anything but strings, and where all references are empty but something was read (nothing read: 0.0).

    >>> [cer(["hello"], [text]) for text in ("helo", "hallo", "helloo", "hello")]  # helloo: 1/5, not 1/6
    [0.2, 0.2, 0.2, 0.0]
    >>> castle, read = "The magnificent castle stood tall", "The magnifcent castle stood tall"
    >>> len(castle), round(cer([castle], [read]), 4), wer([castle], [read])  # 33 characters, not 34
    (33, 0.0303, 0.2)
    """
    return _rate(*_counts(references, predictions, "character"), "character")


def wer(references, predictions):
    """Return the word error rate: `cer` counted in words, which are what stands between spaces.

    >>> wer(["hello world"], ["helo world"]), wer(["the quick brown fox"], ["the quik brown fox"])
    (0.5, 0.25)
    """
    return _rate(*_counts(references, predictions, "word"), "word")


def without_spaces_before_punctuation(text):
    """Return the text with the spaces before `. , ; : ! ? )` removed: done to both sides for the second scoring row.

    >>> without_spaces_before_punctuation("Well , he said ( once ) .")
    'Well, he said ( once).'
    """
    return re.sub(r" +(?=[.,;:!?)])", "", text)


def align(reference, prediction):
    """Return the alignment of two strings with the fewest errors: a list of (kind, reference, prediction).

    One step a character; `kind` is equal, substitute, delete or insert, a missing side the empty string. Joining a side
    gives its string (in NFC); steps that are not equal are the Levenshtein distance. Between ties rapidfuzz chooses.

    >>> align("cat", "at")
    [('delete', 'c', ''), ('equal', 'a', 'a'), ('equal', 't', 't')]
    """
    (reference,), (prediction,) = _pairs([reference], [prediction])
    return [
        ("substitute" if tag == "replace" else tag, left, right)
        for tag, begin, end, start, stop in Levenshtein.opcodes(reference, prediction)
        for left, right in zip_longest(reference[begin:end], prediction[start:stop], fillvalue="")
    ]


def character_class(character):
    """Return lower, upper, digit, space, punctuation or, for anything else (a lone accent, say), other.

    >>> [character_class(c) for c in "aÉ7 ,"]
    ['lower', 'upper', 'digit', 'space', 'punctuation']
    """
    tests = {"lower": str.islower, "upper": str.isupper, "digit": str.isdigit, "space": str.isspace}
    last = "punctuation" if unicodedata.category(character)[0] in "PS" else "other"
    return next((name for name, test in tests.items() if test(character)), last)


def edits(references, predictions):
    """Return the alignments of all lines as one table, the ground of the analyses below.

    Columns: line (number), kind, reference, prediction, class (of the reference character, or of the inserted one),
    errors (0 or 1), characters (0 for an insertion, else 1), place (0..1, how far along the reference).
    """
    pairs = enumerate(zip(*_pairs(references, predictions), strict=True))
    rows = [(line, *edit) for line, pair in pairs for edit in align(*pair)]
    table = pd.DataFrame(rows, columns=["line", "kind", "reference", "prediction"])
    table["class"] = [character_class(left or right) for _, _, left, right in rows]
    table["errors"] = (table["kind"] != "equal").astype(int)
    table["characters"] = (table["reference"] != "").astype(int)
    read = table.groupby("line")["characters"]
    table["place"] = (read.cumsum() - table["characters"]) / read.transform("sum").clip(lower=1)
    return table


def per_line(references, predictions):
    """Return one row per line: line, reference, prediction, errors, characters, word_errors, words, cer (maybe NaN)."""
    references, predictions = _pairs(references, predictions)
    table = pd.DataFrame({"line": range(len(references)), "reference": references, "prediction": predictions})
    table["errors"], table["characters"] = _counts(references, predictions, "character")
    table["word_errors"], table["words"] = _counts(references, predictions, "word")
    return table.assign(cer=table["errors"] / table["characters"].replace(0, np.nan))


def confusions(table):
    """Return how often each character was read as another: reference, prediction, count, most frequent first.

    `table`: what `edits` returns. A deletion has an empty prediction, an insertion an empty reference.
    """
    counts = table[table["errors"] == 1].groupby(["reference", "prediction"]).size().rename("count").reset_index()
    return counts.sort_values("count", ascending=False, kind="stable", ignore_index=True)


def merges(table):
    """Return the many-to-one and one-to-many errors (`rn` read as `m`, `d` as `cl`), most frequent first.

    `table`: what `edits` returns. Edits in a row with nothing right between them are joined; what counts is one
    character against two or three. Columns as in `confusions`.

    >>> merges(edits(["turn", "modern art", "dear"], ["tum", "modem art", "clear"])).values.tolist()
    [['rn', 'm', 2], ['d', 'cl', 1]]
    """
    wrong = table[table["errors"] == 1]
    run = ((table["errors"] == 0) | (table["line"] != table["line"].shift())).cumsum()[wrong.index]
    joined = wrong.groupby(run)[["reference", "prediction"]].agg("".join)
    lengths = joined["reference"].str.len(), joined["prediction"].str.len()
    return confusions(joined[(np.minimum(*lengths) == 1) & np.maximum(*lengths).isin([2, 3])].assign(errors=1))


def _resample(errors, lengths):
    """Return rates (SAMPLES, groups) over lines drawn with replacement, from counts (lines, groups) or (lines,)."""
    weights = np.random.default_rng(SEED).multinomial(len(errors), np.full(len(errors), 1 / len(errors)), size=SAMPLES)
    lengths = weights @ lengths
    return pd.DataFrame((weights @ errors) / np.where(lengths > 0, lengths, np.nan))


def rate_by(table, by):
    """Return the error rate of each group with its 95 % interval, from a bootstrap over lines (Bisani and Ney, 2004).

    `table`: from `edits` or `per_line` (columns line, errors, characters). `by`: a column's name, or one label or bin
    (`pd.cut`, `pd.qcut`) per row. Returns errors, characters, lines, rate, low, high, indexed by group; a group of
    insertions alone has no rate (NaN). Raises ValueError where a row belongs to no group.
    """
    groups = table[by] if isinstance(by, str) else pd.Series(np.asarray(by), index=table.index)
    if groups.isna().any():
        raise ValueError(f"{groups.isna().sum()} rows belong to no group: widen the bins or fill the column.")
    counts = table.groupby([table["line"], groups])[["errors", "characters"]].sum()
    errors, characters = (counts[name].unstack(fill_value=0) for name in counts)
    low, high = _resample(errors.to_numpy(), characters.to_numpy()).quantile(QUANTILES).to_numpy()
    result = counts.assign(lines=1).groupby(level=1).sum()
    return result.assign(rate=result["errors"] / result["characters"].replace(0, np.nan), low=low, high=high)


def accuracy_by(table, by):
    """Return the share of reference characters read right for each value of a column of `edits` (class, reference).

    Columns as in `rate_by`, accuracy in place of rate. Insertions belong to no reference character: left out.
    """
    rates = rate_by(table[table["characters"] == 1], by).rename(columns={"rate": "accuracy"})
    return rates.assign(accuracy=1 - rates["accuracy"], low=1 - rates["high"], high=1 - rates["low"])


def score(references, predictions):
    """Return `{"cer": ..., "wer": ...}`, each with rate, low and high (95 % interval, bootstrap over lines)."""
    result = {}
    for name, unit in (("cer", "character"), ("wer", "word")):
        errors, lengths = _counts(references, predictions, unit)
        low, high = _resample(errors, lengths)[0].quantile(QUANTILES).tolist()
        result[name] = {"rate": _rate(errors, lengths, unit), "low": low, "high": high}
    return result


def compare(references, first, second, unit="character"):
    """Return how much `second` differs from `first` on the same lines, by a paired bootstrap (Bisani and Ney, 2004).

    `unit`: character or word. Returns difference (rate of second minus rate of first), its 95 % interval low, high,
    and improved: the share of draws in which second has the lower rate (identical systems: 0).
    """
    (before, lengths), (after, _) = _counts(references, first, unit), _counts(references, second, unit)
    difference = _rate(after, lengths, unit) - _rate(before, lengths, unit)
    draws = _resample(after - before, lengths)[0]
    low, high = draws.quantile(QUANTILES).tolist()
    return {"difference": difference, "low": low, "high": high, "improved": float((draws < 0).mean())}


def report(references, predictions):
    """Return what may be published of a reading, ready for JSON: counts, rates, intervals, classes, confusions, merges.

    No line and no transcript is in it: texts appear as single characters and as merges of at most three.
    """
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
        "confusions": confusions(table).head(25).to_numpy().tolist(),
        "merges": merges(table).head(25).to_numpy().tolist(),
        "bootstrap": {"samples": SAMPLES, "seed": SEED},
    }
