"""Train the shipped n-gram: ``python -m hwrlib.scripts.language hwrlib/weights/language.npz TRAIN.parquet ...``."""

import argparse

import pandas as pd

from hwrlib.alphabet import IAM
from hwrlib.data import HELD_OUT, spaced
from hwrlib.language import train


def main() -> None:
    """Read the texts, leave out what IAM's validation and test lines share, and save the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("data", nargs="+", help="parquet files with columns line_id and text")
    arguments = parser.parse_args()
    table = pd.concat([pd.read_parquet(path, columns=["line_id", "text"]) for path in arguments.data])
    texts = [IAM.drop(text) for text in table.text[~table.line_id.str.match(HELD_OUT)]]
    train([way for text in texts for way in {text, spaced(text)}]).save(arguments.out)


if __name__ == "__main__":
    main()
