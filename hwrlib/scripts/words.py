"""Cut lines into words, short first lessons for a network that is trained from nothing: for ``train --extra``."""

import argparse

import datasets
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from hwrlib.data import load_lines
from hwrlib.images import prepare_pixels

PUNCTUATION = set("!\"#&'()*+,-./:;?")
CLEAR = 1.25  # a gap between words must be this many times wider than any gap within one
UNEVEN = 2.2  # a word whose pixels per character are this many times off the line's median was cut wrongly


def cut_words(line: np.ndarray, transcript: str) -> list[tuple[np.ndarray, str]]:
    """Cut a prepared line (128, W) at its widest gaps into its words; none where the gaps leave a doubt.

    Each is at least as wide as high, and keeps the punctuation beside it. Two of three IAM lines can be cut.
    """
    texts: list[str] = []
    for token in transcript.split():
        if texts and (set(token) <= PUNCTUATION or set(texts[-1].rsplit(" ", 1)[-1]) <= set("\"('")):
            texts[-1] += " " + token
        else:
            texts.append(token)
    inked = np.flatnonzero((line < 128).any(axis=0))
    gaps, cuts = np.diff(inked), len(texts) - 1
    widest = np.argsort(gaps)[::-1]
    if len(gaps) <= cuts or (cuts and gaps[widest[cuts - 1]] < CLEAR * max(2, gaps[widest[cuts]])):
        return []
    pieces = np.split(line, sorted((inked[k] + inked[k + 1]) // 2 for k in widest[:cuts]), axis=1)
    pitch = np.array([piece.shape[1] / (len(text) + 1) for piece, text in zip(pieces, texts, strict=True)])
    if pitch.max() > UNEVEN * np.median(pitch) or pitch.min() < np.median(pitch) / UNEVEN:
        return []
    pieces = [np.pad(p, ((0, 0), (0, max(0, len(p) - p.shape[1]))), constant_values=255) for p in pieces]
    return list(zip(pieces, texts, strict=True))


def main(arguments: list[str] | None = None) -> None:
    """Cut the training lines of a source."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.words", description=__doc__)
    parser.add_argument("source", help='"iam", "sample" or a path, as for train --data')
    parser.add_argument("output", help="parquet file to write: image, text")
    options = parser.parse_args(arguments)
    rows = []
    for line in tqdm(load_lines("train", options.source)):
        words = cut_words(prepare_pixels(line["image"]), line["text"])
        rows += [{"image": Image.fromarray(pixels), "text": text} for pixels, text in words]
    datasets.Dataset.from_list(rows).to_parquet(options.output)


if __name__ == "__main__":
    main()
