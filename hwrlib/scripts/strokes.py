"""Draw a parquet file of pen strokes as lines to train on, their texts spaced as IAM's: for ``train --extra``."""

import argparse
import re

import datasets
import numpy as np
from PIL import Image

from hwrlib.alphabet import IAM
from hwrlib.strokes import render_strokes

# The texts of the LOB corpus (Johansson et al., 1978) that IAM's validation and test lines were copied from, as line
# ids begin. Pen-stroke forms marked z cut the same texts anew (62 of our 467 validation lines), so they stay out.
HELD_OUT = r"(c0[46]|d0[13-7]|e0[16]|f0[47]|g0[12347]|h01|m0[12346]|n0[12346]|p0[1236])-\d+z-"

ABBREVIATION = r"Mr|Mrs|Dr|Esq|Jr|Rev|Prof|Capt|Col|Gen|Co|Ltd|No|Fig|St|ft|lb|etc"  # before its last point
ABBREVIATION += r"|[ap]\.m|i\.e|e\.g|[A-Z]|(?:[A-Z]\.)+[A-Z]"  # p.m., J., U.S.


def spaced(text: str) -> str:
    r"""The text with punctuation set apart as IAM's transcripts set it: "word ." and "( word )", but "Mr." and "2,000".

    >>> spaced('He (Mr. Fox) said: "It is 2,000, isn\'t it?"')
    'He ( Mr. Fox ) said : " It is 2,000 , isn\'t it ? "'
    """
    text = re.sub(r"(\w) ?' ?(s|ve|re|ll|d|m)\b", r"\1'\2", text.replace(",,", '"'))
    text = re.sub(r'([!"();?])', r" \1 ", text)
    text = re.sub(r"(?<!\d)([,:])|([,:])(?!\d)", r" \1\2 ", text)
    text = re.sub(r"(^|\s)'(?=\w)", r"\1 ' ", text)
    text = re.sub(rf"(?<![\w.])({ABBREVIATION}) \.(?=\s)", r"\1.", text)  # "Mr ." of some writers
    text = re.sub(rf"\b(?<!\.)(?!(?:{ABBREVIATION})\.)([\w'-]+)\.(?=\s|$)", r"\1 .", text)
    return re.sub(r"\s+", " ", text).strip()


def main(arguments: list[str] | None = None) -> None:
    """Draw each row (columns strokes, text and maybe line_id) but those whose text IAM's held-out lines share."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.strokes", description=__doc__)
    parser.add_argument("strokes", help="parquet file: strokes as hwrlib.strokes.render_strokes takes them, text")
    parser.add_argument("output", help="parquet file to write: image, text")
    options = parser.parse_args(arguments)
    rows = datasets.Dataset.from_parquet(options.strokes)
    if "line_id" in rows.column_names:
        rows = rows.filter(lambda line_id: not re.match(HELD_OUT, line_id), input_columns="line_id")

    def draw(strokes: list[list[float]], text: str, row: int) -> dict:
        line = render_strokes(strokes, np.random.default_rng((0, row)))  # the row decides the pen
        return {"image": Image.fromarray(line), "text": IAM.drop(spaced(text))}

    lines = rows.map(draw, with_indices=True, input_columns=["strokes", "text"], remove_columns=rows.column_names)
    lines.to_parquet(options.output)


if __name__ == "__main__":
    main()
