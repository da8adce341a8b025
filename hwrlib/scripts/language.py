"""Train the shipped character n-gram on transcripts, spaced as they are and as IAM's are (chapter 5)."""

import argparse

import pandas as pd

from hwrlib.alphabet import IAM
from hwrlib.data import HELD_OUT, spaced
from hwrlib.language import train


def main(arguments: list[str] | None = None) -> None:
    """Read the texts, leave out what IAM's validation and test lines share, and save the counts."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.language", description=__doc__)
    parser.add_argument("out", help="the file to write, such as hwrlib/weights/language.npz")
    parser.add_argument("data", nargs="+", help="parquet files with columns line_id and text")
    options = parser.parse_args(arguments)
    table = pd.concat([pd.read_parquet(path, columns=["line_id", "text"]) for path in options.data])
    texts = [IAM.drop(text) for text in table.text[~table.line_id.str.match(HELD_OUT)]]
    train([way for text in texts for way in {text, spaced(text)}]).save(options.out)


if __name__ == "__main__":
    main()
