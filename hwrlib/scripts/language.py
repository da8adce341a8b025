"""Train the shipped character n-gram on transcripts and on the Brown corpus, spaced as IAM spaces (chapter 5)."""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from hwrlib.alphabet import IAM
from hwrlib.language import train_ngram
from hwrlib.scripts.strokes import HELD_OUT, spaced

MARKS = {"``": '"', "''": '"', "--": "-", "{": "(", "}": ")", "[": "(", "]": ")"}  # the corpus's ways to write them


def brown_lines(folder: Path) -> Iterator[str]:
    """Lines of 6 to 12 words, as long as IAM's, of the Brown corpus (Francis and Kucera, 1964), as npm has it: tagged.

    A word that IAM's alphabet cannot write ends the line.
    """
    lengths, line = random.Random(0), []
    length = lengths.randint(6, 12)
    for file in sorted(folder.glob("c[a-r][0-9][0-9]")):
        for tagged in file.read_text(encoding="latin-1").split():
            word = tagged.rsplit("/", 1)[0]
            word = MARKS.get(word, word)
            writable = set(word) <= set(IAM.characters)
            line += [word] if writable else []
            if line and (len(line) == length or not writable):
                yield " ".join(line)
                line, length = [], lengths.randint(6, 12)
    if line:
        yield " ".join(line)


def main(arguments: list[str] | None = None) -> None:
    """Read the texts, leave out what IAM's validation and test lines share, and save the counts."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.language", description=__doc__)
    parser.add_argument("out", help="the file to write, such as hwrlib/weights/language.npz")
    parser.add_argument("data", nargs="+", help="parquet files with columns line_id and text")
    parser.add_argument("--brown", type=Path, required=True, metavar="FOLDER", help="the files of the Brown corpus")
    options = parser.parse_args(arguments)
    table = pd.concat([pd.read_parquet(path, columns=["line_id", "text"]) for path in options.data])
    texts = [IAM.drop(text) for text in table.text[~table.line_id.str.match(HELD_OUT)]]
    texts = [way for text in texts for way in {text, spaced(text)}]
    # The transcripts are of the kind that is read: each counts twice.
    train_ngram([*texts, *texts, *brown_lines(options.brown)]).save(options.out)


if __name__ == "__main__":
    main()
