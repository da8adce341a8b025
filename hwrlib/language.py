"""A character n-gram: how likely is each next character, given the few before it?

Chapter 5 teaches it: notebooks/05_decode_with_ctc.ipynb
"""

import argparse
import functools
import math
import re
import string
import unicodedata

import numpy as np
import pandas as pd

from hwrlib.alphabet import IAM, Alphabet
from hwrlib.data import HELD_OUT

ALPHA, BETA = 0.6, 1.25  # tuned on every third of 467 IAM validation lines; see Fusion
KNOWN = 1.0  # natural log of what finishing a known word is worth
BOUNDARY = "\n"  # stands before the first and after the last character; label 0, which is CTC's blank elsewhere


class Language:
    """Interpolated Kneser-Ney n-gram over the characters of an alphabet and the end of the line.

    Arguments:
        alphabet: the `Alphabet` whose characters it predicts.
        tables: for each order from 1, (keys, shares): the n-grams as ascending numbers in base ``alphabet.classes``,
            and the discounted probability of each one's last character.

    `train` makes one and `Language.load` reads one. Chapter 5 teaches it: notebooks/05_decode_with_ctc.ipynb

    >>> language = train(["abab", "ab"], Alphabet("abc"), order=2)
    >>> probabilities = np.exp(language.row("a"))
    >>> " ".join(f"{c}:{p:.2f}" for c, p in zip(["end", *"abc"], probabilities))
    'end:0.07 a:0.13 b:0.77 c:0.03'
    """

    def __init__(self, alphabet, tables):
        self.alphabet, self.tables = alphabet, tables
        self._label = {c: k for k, c in enumerate(BOUNDARY + alphabet.characters)}
        self._index = [np.unique(keys // alphabet.classes, return_index=True) for keys, _ in tables]
        self._probabilities = functools.lru_cache(1 << 15)(self._interpolate)

    @property
    def order(self):
        """Length of the longest n-gram: one more than the characters that it looks back."""
        return len(self.tables)

    def row(self, context):
        """Natural log-probabilities (C,) of what follows a context: index 0 the end of the line, k the k-th character.

        context: the text so far, of which the last ``order - 1`` characters count; a line starts with `BOUNDARY`.
        """
        return np.log(self._following(context))

    def _following(self, context):
        return self._probabilities(context[max(len(context) - self.order + 1, 0) :])

    def _interpolate(self, context):
        """Probabilities after a context: the seen n-grams' shares; the rest goes where a shorter context says."""
        classes = self.alphabet.classes
        lower = self._probabilities(context[1:]) if context else np.full(classes, 1 / classes)
        code = functools.reduce(lambda code, c: code * classes + self._label[c], context, 0)
        keys, shares = self.tables[len(context)]
        contexts, starts = self._index[len(context)]
        at = int(np.searchsorted(contexts, code))
        if at == len(contexts) or contexts[at] != code:
            return lower
        span = slice(starts[at], starts[at + 1] if at + 1 < len(starts) else None)
        row = (1 - shares[span].sum()) * lower
        row[keys[span] % classes] += shares[span]
        return row

    def log_probability(self, text):
        """Natural log-probability of a whole line, its end included."""
        labels = [*self.alphabet.encode(text), 0]
        line = BOUNDARY + unicodedata.normalize("NFC", text)
        return float(sum(math.log(self._following(line[: i + 1])[label]) for i, label in enumerate(labels)))

    def bits(self, texts):
        """Bits per character of texts that it has not seen, each line's end counted; perplexity is 2 ** bits."""
        total = sum(self.log_probability(text) for text in texts)
        return -total / math.log(2) / sum(len(text) + 1 for text in texts)

    def save(self, path):
        """Write it to an .npz file, no pickles in it: the characters, the gaps between keys, the shares in 16 bits."""
        arrays = {"characters": np.array(self.alphabet.characters)}
        for order, (keys, shares) in enumerate(self.tables, start=1):
            arrays[f"gaps_{order}"], arrays[f"shares_{order}"] = np.diff(keys, prepend=0), shares.astype(np.float16)
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path):
        """Read one that `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            alphabet = Alphabet(str(file["characters"]))
            orders = range(1, len(file.files) // 2 + 1)
            return cls(alphabet, [(np.cumsum(file[f"gaps_{n}"]), file[f"shares_{n}"].astype(float)) for n in orders])


class Fusion:
    """What a text is worth beside its image: alpha log p(text) + beta len(text) + KNOWN for each known word.

    The line's end counts as the end of its last word: the model's probability of a space or an end there.
    alphabet: `Alphabet` of the log-probabilities. language: a `Language` that has all its characters, or None. alpha:
    its weight, 0 or more. beta: natural log, per character, against the model's liking for short texts. words: known
    words, or None; case does not matter, and a word counts when a space or the line's end comes after it, so that the
    beam still reads unknown words, for less. Raises AlphabetError where the language model lacks a character.
    Shallow fusion: Hannun et al., 2014. Chapter 5 teaches it: notebooks/05_decode_with_ctc.ipynb
    """

    def __init__(self, alphabet, language=None, alpha=ALPHA, beta=BETA, words=None):
        self.language, self.alpha, self.beta = language, alpha, beta
        self._words = frozenset(unicodedata.normalize("NFC", word).lower() for word in words or ())
        self._alphabet, self._space = alphabet, alphabet.characters.find(" ") + 1
        if language:
            self._columns = [0, *language.alphabet.encode(alphabet.characters)]
        self._row = functools.lru_cache(1 << 14)(self._weigh)

    def _weigh(self, context):
        if not self.language:
            return [1.0] * self._alphabet.classes
        row = self.language.row(context)[self._columns]
        if self._space:  # where a line ends is up to the paper: its last word must be over, no more
            row[0] = np.logaddexp(row[0], row[self._space])
        row = self.alpha * row + self.beta
        row[0] -= self.beta  # the end of the line is no character
        return np.exp(row).tolist()

    def _finishes(self, text):
        """Whether a text's last word is known; punctuation around it does not count."""
        return text.rsplit(" ", 1)[-1].strip(string.punctuation + BOUNDARY).lower() in self._words

    def factors(self, prefix):
        """Weights (C,) of what may follow a prefix, which begins with `BOUNDARY`: index 0 the line's end."""
        row = self._row(prefix[-self.language.order + 1 :] if self.language and self.language.order > 1 else "")
        if self._words and self._finishes(prefix):
            row = [w * math.exp(KNOWN) if k in (0, self._space) else w for k, w in enumerate(row)]
        return row

    def log_weight(self, text):
        """Natural log of the weight of a whole line, the product of its `factors`."""
        line = BOUNDARY + unicodedata.normalize("NFC", text)
        labels = [*self._alphabet.encode(text), 0]
        return sum(math.log(self.factors(line[: i + 1])[label]) for i, label in enumerate(labels))


def train(texts, alphabet=IAM, order=6, prune=1):
    """Estimate an n-gram by interpolated modified Kneser-Ney smoothing (Chen and Goodman, 1999).

    texts: lines of text, brought to NFC. alphabet: `Alphabet`; its AlphabetError names characters that it lacks, see
    `Alphabet.drop`. order: 1 to 6. prune: n-grams of order 4 and more seen at most so many times are left to the
    shorter ones. Returns a `Language`. Raises ValueError on no text or another order.
    Chapter 5 teaches it: notebooks/05_decode_with_ctc.ipynb
    """
    lines = [alphabet.encode(text) for text in texts if text]
    if not lines or not 1 <= order <= 6:
        raise ValueError(f"{len(lines)} lines of text, order {order}; give at least one line and an order of 1 to 6.")
    labels, classes = np.concatenate([[0], *([*line, 0] for line in lines)]), alphabet.classes
    grams = []
    for n in range(1, order + 1):
        windows = labels[np.arange(n == 1, len(labels) - n + 1)[:, None] + np.arange(n)]
        within = (windows[:, 1:-1] != 0).all(1)  # a boundary inside would join two lines
        grams.append(np.unique(windows[within] @ classes ** np.arange(n)[::-1], return_counts=True))
    tables = []
    for n, (keys, seen) in enumerate(grams, start=1):
        counts = seen
        if n < order:
            # Kneser-Ney: count the characters a shorter n-gram was seen after; at a line's start nothing comes before.
            ends, before = np.unique(grams[n][0] % classes**n, return_counts=True)
            counts = seen.copy()
            counts[np.searchsorted(keys, ends)] = before
            if n > 1:
                start = keys < classes ** (n - 1)
                counts[start] = seen[start]
        _, context = np.unique(keys // classes, return_inverse=True)
        shares = (counts - discounts(counts)[np.minimum(counts, 3) - 1]) / np.bincount(context, counts)[context]
        keep = (seen > prune) | (n < 4)
        tables.append((keys[keep], shares[keep]))
    return Language(alphabet, tables)


def discounts(counts):
    """What to take off a count of 1, of 2, of 3 or more, from how many n-grams have counts 1 to 4 (same paper)."""
    having = np.bincount(counts, minlength=5)[1:5].astype(float)
    if not having.all():
        return np.array([0.5, 0.75, 0.9])  # too few n-grams to estimate from: a small text, or single characters
    rest = having[0] / (having[0] + 2 * having[1])
    return np.clip([k - (k + 1) * rest * having[k] / having[k - 1] for k in (1, 2, 3)], 0.1, [0.9, 1.9, 2.9])


def spaced(text):
    """The text with a space before its punctuation, as most transcripts of IAM have it and the pen strokes' do not.

    >>> spaced("Well, Mr. Newton beware.")
    'Well , Mr. Newton beware .'
    """
    return re.sub(r"(?<=\w)(?<!\bMr)(?<!\bMrs)(?<!\bDr)([.,;:!?])(?= |$)", r" \1", text)


def main():
    """Train the shipped n-gram: `python -m hwrlib.language hwrlib/weights/language.npz TRAIN.parquet ...`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out")
    parser.add_argument("data", nargs="+", help="parquet files with columns line_id and text")
    arguments = parser.parse_args()
    table = pd.concat([pd.read_parquet(path, columns=["line_id", "text"]) for path in arguments.data])
    leaks = table.line_id.str.match(HELD_OUT)
    texts = [IAM.drop(text) for text in table.text[~leaks]]
    train([way for text in texts for way in {text, spaced(text)}]).save(arguments.out)


if __name__ == "__main__":
    main()
