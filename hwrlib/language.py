"""A character n-gram: how likely is each next character, given the few before it (chapter 5)?"""

import functools
import math
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hwrlib.alphabet import IAM, Alphabet

BOUNDARY = "\n"  # stands before the first and after the last character; label 0, which is CTC's blank elsewhere
EMBEDDED = Path(__file__).parent / "weights" / "language.npz"


class CharNgram:
    """Interpolated Kneser-Ney n-gram over the characters of an alphabet and the end of the line.

    Arguments:
        alphabet: whose characters it predicts.
        tables: for each order from 1, (keys, shares): the n-grams as ascending numbers in base ``alphabet.classes``,
            and the discounted probability of each one's last character, 0 to 1.
        prior: (C,) how much of its text each class is, above 0; index 0 the end of the line.

    >>> ngram = train_ngram(["abab", "ab"], Alphabet("abc"), order=2)
    >>> dict(zip(["end", *"abc"], np.exp(ngram.row("a")).round(2).tolist()))
    {'end': 0.07, 'a': 0.13, 'b': 0.77, 'c': 0.03}
    """

    def __init__(self, alphabet: Alphabet, tables: Sequence[tuple[np.ndarray, np.ndarray]], prior: np.ndarray):
        self.alphabet, self.tables, self.prior = alphabet, tables, prior
        self.order = len(tables)  # length of the longest n-gram: one more than the characters that it looks back
        self._label = {c: k for k, c in enumerate(BOUNDARY + alphabet.characters)}
        self._probabilities = functools.lru_cache(1 << 15)(self._interpolate)

    def row(self, context: str) -> np.ndarray:
        """Natural log-probabilities (C,) of what follows a text, ``BOUNDARY`` before it: index 0 the line's end."""
        return np.log(self._probabilities(context[max(len(context) - self.order + 1, 0) :]))

    def _interpolate(self, context: str) -> np.ndarray:
        """Probabilities after a context: the seen n-grams' shares; the rest goes where a shorter context says."""
        classes = self.alphabet.classes
        lower = self._probabilities(context[1:]) if context else np.full(classes, 1 / classes)
        code = functools.reduce(lambda code, c: code * classes + self._label[c], context, 0)
        keys, shares = self.tables[len(context)]
        begin, end = np.searchsorted(keys, (code * classes, (code + 1) * classes))
        if begin == end:
            return lower
        row = (1 - shares[begin:end].sum()) * lower
        row[keys[begin:end] % classes] += shares[begin:end]
        return row

    def log_probability(self, text: str) -> float:
        """Natural log-probability of a whole line, its end included; a ValueError names characters it lacks."""
        line, labels = BOUNDARY + unicodedata.normalize("NFC", text), [*self.alphabet.encode(text), 0]
        return float(sum(self.row(line[: i + 1])[label] for i, label in enumerate(labels)))

    def bits(self, texts: Sequence[str]) -> float:
        """Bits per character of lines that it has not seen, each line's end counted; perplexity is 2 ** bits."""
        return -sum(map(self.log_probability, texts)) / math.log(2) / sum(len(text) + 1 for text in texts)

    def save(self, path: str | Path) -> None:
        """Write it to an .npz file, no pickles: characters, prior, the gaps between keys, the shares in 16 bits."""
        arrays = {"characters": np.array(self.alphabet.characters), "prior": self.prior}
        for order, (keys, shares) in enumerate(self.tables, start=1):
            near = shares.astype(np.float16)
            down = np.where(near > shares, np.nextafter(near, np.float16(0)), near)  # a context's sum stays below 1
            arrays[f"gaps_{order}"], arrays[f"shares_{order}"] = np.diff(keys, prepend=0), down
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: str | Path = EMBEDDED) -> "CharNgram":
        """Read one that ``save`` wrote: the embedded English one, unless another file is named."""
        with np.load(path, allow_pickle=False) as file:
            orders = range(1, len(file.files) // 2)
            tables = [(np.cumsum(file[f"gaps_{n}"]), file[f"shares_{n}"].astype(float)) for n in orders]
            return cls(Alphabet(str(file["characters"])), tables, file["prior"])


def train_ngram(texts: Iterable[str], alphabet: Alphabet = IAM, order: int = 6, prune: int = 1) -> CharNgram:
    """Estimate an n-gram by interpolated modified Kneser-Ney smoothing (Chen and Goodman, 1999).

    The lines of text have the alphabet's characters only (see ``Alphabet.drop``), the order is 1 to 6; n-grams of order
    4 and more that were seen at most ``prune`` times are left to the shorter ones.
    """
    lines = [alphabet.encode(text) for text in texts if text]
    if not lines or not 1 <= order <= 6:
        raise ValueError(f"{len(lines)} lines of text, order {order}; give at least one line and an order of 1 to 6.")
    labels, classes = np.concatenate([[0], *([*line, 0] for line in lines)]), alphabet.classes
    grams, tables = [], []
    for n in range(1, order + 1):
        windows = labels[np.arange(n == 1, len(labels) - n + 1)[:, None] + np.arange(n)]
        within = (windows[:, 1:-1] != 0).all(1)  # a boundary inside would join two lines
        grams.append(np.unique(windows[within] @ classes ** np.arange(n)[::-1], return_counts=True))
    for n, (keys, seen) in enumerate(grams, start=1):
        counts = seen.copy()
        if n < order:  # Kneser-Ney: a shorter n-gram counts the characters before it; at a line's start there are none
            ends, before = np.unique(grams[n][0] % classes**n, return_counts=True)
            counts[np.searchsorted(keys, ends)] = before
        _, context = np.unique(keys // classes, return_inverse=True)
        shares = (counts - discounts(counts)[np.minimum(counts, 3) - 1]) / np.bincount(context, counts)[context]
        keep = (seen > prune) | (n < 4)
        tables.append((keys[keep], shares[keep]))
    prior = np.bincount(labels[1:], minlength=classes) + 1  # so that none is impossible
    return CharNgram(alphabet, tables, prior / prior.sum())


def discounts(counts: np.ndarray) -> np.ndarray:
    """What to take off an n-gram's count of 1, of 2, and of 3 or more, from all their counts (same paper)."""
    having = np.bincount(counts, minlength=5)[1:5].astype(float)
    if not having.all():
        return np.array([0.5, 0.75, 0.9])  # too few n-grams to estimate from: a small text, or single characters
    rest = having[0] / (having[0] + 2 * having[1])
    return np.clip([k - (k + 1) * rest * having[k] / having[k - 1] for k in (1, 2, 3)], 0.1, [0.9, 1.9, 2.9])
