"""Measure the decoder "reranked" on validation lines, its weights chosen on every third of them (chapter 5)."""

import argparse
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from hwrlib import metrics
from hwrlib.beam import PrefixBeam
from hwrlib.ctc import greedy
from hwrlib.data import load_lines
from hwrlib.language import CharNgram
from hwrlib.recognizer import Recognizer
from hwrlib.rerank import LINES_ABOVE, MODEL, TUNED, CausalModel, undo_spacing

WIDTHS, CONTEXTS = (32, 64), ("alone", "above")
GRID = np.array(list(itertools.product(np.arange(0.1, 1.05, 0.1), np.arange(0, 1.05, 0.1), np.arange(-1, 3.1, 0.5))))


def collect(rows, source: str, begin: int) -> Iterator[dict]:
    """From line ``begin`` on: its transcript, greedy's text, the beams' texts; above it are lines of the same form."""
    causal, language, above = CausalModel(source), CharNgram.load(), []
    beams = {width: PrefixBeam(language, width) for width in WIDTHS}

    class Keeping(PrefixBeam):
        """Keeps what the beams find, also without other views, and reads as greedy does."""

        def __call__(self, log_probs, lengths, alphabet, firsts, views):
            line, views = (log_probs, lengths, alphabet, firsts), functools.cache(views)
            self.once = beams[WIDTHS[0]].candidates(*line)[0][0].text
            self.found = {width: beam.candidates(*line, views)[0] for width, beam in beams.items()}
            return greedy(*line)

    reader = Recognizer.from_pretrained(decoder=(keeping := Keeping()))
    for number in range(max(begin - LINES_ABOVE, 0), len(rows)):
        row = rows[number]
        first, form = reader.read(row["image"]).text, row.get("line_id", str(number)).rsplit("-", 1)[0]
        before = " ".join(text for other, text in above[-LINES_ABOVE:] if other == form)
        above.append((form, undo_spacing(keeping.found[WIDTHS[-1]][0].text)))  # as the beam reads it
        if number >= begin:
            texts = list(dict.fromkeys(candidate.text for some in keeping.found.values() for candidate in some))
            chances = [causal.log_probabilities(list(map(undo_spacing, texts)), seen).tolist() for seen in ("", before)]
            chances = dict(zip(texts, zip(*chances, strict=True), strict=True))
            nbest = [(width, *some, *chances[some.text]) for width in WIDTHS for some in keeping.found[width]]
            yield {"reference": row["text"], "greedy": first, "once": keeping.once, "nbest": nbest}


def choose(table: pd.DataFrame, context: str, weights: np.ndarray) -> pd.DataFrame:
    """The row of each line with the highest score."""
    scores = table["image"] + table[["ngram", context, "words"]] @ weights
    return table.loc[scores.groupby(table["line"]).idxmax()]


def changes(references: list[str], before: list[str], after: list[str]) -> dict[str, dict[str, int]]:
    """By kind, as chapter 5 has them: words, those right before and wrong after (broken), and the reverse (mended)."""
    counts = dict.fromkeys(("name", "number", "other"), (0, 0, 0))
    for reference, one, two in zip(references, before, after, strict=True):
        for at, word in enumerate(reference.split()):
            capital, was, now = word[:1].isupper() and at > 0, word in one.split(), word in two.split()
            kind = "number" if any(map(str.isdigit, word)) else "name" if capital else "other"
            counts[kind] = np.add(counts[kind], (1, was > now, now > was))
    return {kind: dict(zip(("words", "broken", "mended"), some, strict=True)) for kind, some in counts.items()}


def measure(lines: list[dict], grid: np.ndarray = GRID) -> pd.DataFrame:
    """Rates with 95 % intervals, and the paired change against the beam alone: what may be published, no text."""
    references, third, rows = [line["reference"] for line in lines], np.arange(len(lines)) % 3 == 0, []
    texts = [(k, *text) for k, line in enumerate(lines) for text in line["nbest"]]
    table = pd.DataFrame(texts, columns=["line", "width", "text", "image", "ngram", *CONTEXTS])  # log-probabilities
    table["words"] = [len(undo_spacing(text).split()) for text in table["text"]]
    table["errors"] = metrics.per_line([references[k] for k in table["line"]], list(table["text"]))["errors"]

    def add(texts: list[str], before: list[str], **about) -> None:
        for name, some in (("every third", third), ("the others", ~third), ("all", third | True)):
            parts = [list(itertools.compress(part, some)) for part in (references, before, texts)]
            change = {f"{unit}_change": metrics.compare(*parts, unit) for unit in ("character", "word")}
            about |= {"lines": name, "n": len(parts[0]), **metrics.score(parts[0], parts[2])}
            rows.append(about | change | changes(*parts))

    first, once = ([line[name] for line in lines] for name in ("greedy", "once"))
    add(first, first, decoder="greedy")
    add(once, first, decoder="6-gram, without views", width=WIDTHS[0])
    for width, some in table.groupby("width"):
        plain, tuning = list(some.groupby("line")["text"].first()), some[some["line"] % 3 == 0]
        add(plain, first, decoder="6-gram", width=width)
        best = min(grid, key=lambda weights: sum(choose(tuning, c, weights)["errors"].sum() for c in CONTEXTS))
        about = {"width": width} | dict(zip(("ngram", "pretrained", "words"), best.round(1).tolist(), strict=True))
        for context in CONTEXTS:  # with the same weights, as the decoder does
            add(list(choose(some, context, best)["text"]), plain, decoder="reranked", context=context, **about)
        add(list(some.loc[some.groupby("line")["errors"].idxmin(), "text"]), plain, decoder="best of 16", width=width)
    return pd.json_normalize(rows, sep="_")


def main(arguments: list[str] | None = None) -> None:
    """Read the lines, or go on where a run was stopped, then measure and write."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.rerank", description=__doc__)
    parser.add_argument("data", help='whose validation lines to read: "iam" or a path')
    parser.add_argument("output", type=Path, help="table to write (.csv, no text in it)")
    parser.add_argument("--cache", type=Path, required=True, help="file of the lines' texts (.jsonl): not to be shared")
    parser.add_argument("--model", default=MODEL, help="a folder or a name on the Hub (default: %(default)s)")
    parser.add_argument("--pairs", type=Path, help="table of sentences (.csv: written, other); gets the column model")
    parser.add_argument("--tuned", action="store_true", help="keep the decoder's own weights, instead of choosing anew")
    options = parser.parse_args(arguments)
    if options.pairs:  # of which sentence the model thinks more, and by how much
        pairs, causal = pd.read_csv(options.pairs), CausalModel(options.model)
        texts = pairs[["written", "other"]].map(undo_spacing).to_numpy().tolist()
        pairs["model"] = [-np.diff(causal.log_probabilities(both))[0] for both in texts]
        pairs.to_csv(options.pairs, index=False, float_format="%.2f")
    rows = load_lines("validation", options.data)
    begin = len(options.cache.read_text().splitlines()) if options.cache.exists() else 0
    if begin < len(rows):
        with options.cache.open("a") as file:
            for line in collect(rows, options.model, begin):
                print(json.dumps(line), file=file, flush=True)
    lines = [json.loads(line) for line in options.cache.read_text().splitlines()]
    grid = np.array([TUNED]) if options.tuned else GRID
    measure(lines, grid).to_csv(options.output, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
