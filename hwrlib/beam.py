"""Prefix beam search, with a language model where there is one (chapter 5)."""

import functools
import heapq
import math
import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hwrlib.alphabet import Alphabet
from hwrlib.ctc import Character, Reading, forced_align, greedy, path_confidence, to_array
from hwrlib.language import BOUNDARY, CharNgram

ALPHA, BETA = 0.6, 0.5  # tuned on every third of 467 IAM validation lines


class Fusion:
    """What a text is worth beside its image: alpha log p(text) - beta log prior(text).

    The network has learnt as well how frequent each character is. The prior is the product of these frequencies, and
    dividing by it takes them out once. The line's end counts as the end of its last word: the model's probability of a
    space or an end there. Shallow fusion: Hannun et al., 2014; prior: Miao et al., 2015.
    """

    def __init__(self, alphabet: Alphabet, language: CharNgram, alpha: float = ALPHA, beta: float = BETA):
        self.alphabet, self.language, self.alpha, self.beta = alphabet, language, alpha, beta
        self._columns = [0, *language.alphabet.encode(alphabet.characters)]
        self._prior = np.log(language.prior[self._columns])
        self._prior[0] = 0.0  # the end of the line is no character
        self._row = functools.lru_cache(1 << 14)(self._weigh)

    def _weigh(self, context: str) -> list[float]:
        row, space = self.language.row(context)[self._columns], self.alphabet.characters.find(" ") + 1
        if space:  # where a line ends is up to the paper: its last word must be over, no more
            row[0] = np.logaddexp(row[0], row[space])
        return np.exp(self.alpha * row - self.beta * self._prior).tolist()

    def factors(self, prefix: str) -> list[float]:
        """Weights (C,) of what may follow a prefix, which begins with ``BOUNDARY``: index 0 the line's end."""
        return self._row(prefix[max(len(prefix) - self.language.order + 1, 0) :])

    def log_weight(self, text: str) -> float:
        """Natural log of the weight of a whole line, the product of its ``factors``."""
        line, labels = BOUNDARY + unicodedata.normalize("NFC", text), [*self.alphabet.encode(text), 0]
        return sum(math.log(self.factors(line[: i + 1])[label]) for i, label in enumerate(labels))


def expand_beam(
    log_probs: ArrayLike,
    alphabet: Alphabet,
    width: int,
    floor: float,
    factors: Callable[[str], list[float]] | None = None,
) -> Iterator[tuple[dict[str, tuple[float, float]], float]]:
    """Search one line, (T, C) log-probabilities, frame by frame: yield (beam, scale) after each.

    The beam is {prefix: (mass that ends in blank, mass that ends in its last character)}, best first; a prefix begins
    with ``BOUNDARY``. Masses are plain probabilities, scaled in each frame so that the best prefix has 1, which spares
    logarithms: exp(scale) times as much is true. Width and floor: see :class:`PrefixBeam`; factors: ``Fusion.factors``.
    """
    label = {c: k for k, c in enumerate(BOUNDARY + alphabet.characters)}
    least, scale, beam = math.exp(floor), 0.0, {BOUNDARY: (1.0, 0.0)}
    probabilities, ones = np.exp(np.asarray(log_probs, float)), [1.0] * alphabet.classes
    likely = probabilities > least * probabilities.max(1, keepdims=True, initial=0)
    for frame, possible in zip(probabilities.tolist(), likely, strict=True):
        options = [(k, alphabet.characters[k - 1], frame[k]) for k in np.flatnonzero(possible).tolist() if k]
        grown = {
            prefix: [(blank + character) * frame[0], character * frame[label[prefix[-1]]]]
            for prefix, (blank, character) in beam.items()
        }
        totals = [sum(masses) for masses in grown.values()]
        # A new prefix with less than the least of a full beam would not stay in it.
        enough = max(least * max(totals), min(totals) if len(beam) == width else 0.0)
        for prefix, (blank, character) in beam.items() if options else ():
            total, last = blank + character, prefix[-1]
            weights = factors(prefix) if factors else ones
            for k, c, p in options:
                # A repeat is a new character only after a blank.
                mass = (blank if c == last else total) * p * weights[k]
                longer = prefix + c
                if longer in grown:
                    grown[longer][1] += mass
                elif mass > enough:
                    grown[longer] = [0.0, mass]
        ranked = heapq.nlargest(width, grown.items(), key=lambda item: item[1][0] + item[1][1])
        best = sum(ranked[0][1])
        beam = {prefix: (b / best, c / best) for prefix, (b, c) in ranked if b + c > least * best}
        scale += math.log(best)
        yield beam, scale


class Candidate(NamedTuple):
    """A text that a line may have."""

    text: str
    log_probability: float  # natural log, given the image alone
    weight: float  # natural log of ``Fusion``'s weight of the text; 0 without a language model


class PrefixBeam:
    """A decoder that reads each line as its most probable text: the paths to a text added up.

    Greedy's text always takes part, so that a beam of 2 or more never scores below it.
    Hannun et al., 2014; without a language model Graves, 2012.

    Arguments:
        language, alpha, beta: see :class:`Fusion`, whose weight is added to a text's log-probability.
        width: prefixes kept from frame to frame, 1 or more.
        best: number of texts returned, 1 or more: the winner and its alternatives.
        floor: natural log; a character in a frame, or a prefix, this far below the best is given up; -inf: none is.

    >>> log_probs = np.log([[[0.6, 0.4], [0.6, 0.4]]])  # no "a": 0.36; "a": 0.16 + 0.24 + 0.24, by three paths
    >>> greedy(log_probs, [2], Alphabet("a"))[0].text, PrefixBeam()(log_probs, [2], Alphabet("a"))[0].text
    ('', 'a')
    """

    def __init__(
        self,
        language: CharNgram | None = None,
        width: int = 32,
        alpha: float = ALPHA,
        beta: float = BETA,
        best: int = 5,
        floor: float = -8.0,
    ):
        self.width, self.best, self.floor, self.name = width, best, floor, "language" if language else "beam"
        self._fusion = functools.lru_cache(4)(lambda alphabet: language and Fusion(alphabet, language, alpha, beta))

    def __call__(
        self, log_probs: ArrayLike, lengths: ArrayLike, alphabet: Alphabet, firsts: list[Reading] | None = None
    ) -> list[Reading]:
        """Read lines, as :func:`hwrlib.ctc.greedy`; an AlphabetError where the language model lacks a character."""
        found = self.candidates(log_probs, lengths, alphabet, firsts)
        lines = zip(to_array(log_probs), lengths, found, strict=True)
        return [as_reading(line[:length], ranked, alphabet) for line, length, ranked in lines]

    def candidates(
        self, log_probs: ArrayLike, lengths: ArrayLike, alphabet: Alphabet, firsts: list[Reading] | None = None
    ) -> list[list[Candidate]]:
        """The best texts of each line, best first: n-best lists (Chow and Schwartz, 1989); arguments as of a call."""
        firsts = greedy(log_probs, lengths, alphabet, firsts)
        lines = zip(to_array(log_probs), lengths, firsts, strict=True)
        return [self._search(line[:length], first, alphabet) for line, length, first in lines]

    def _search(self, log_probs: np.ndarray, first: Reading, alphabet: Alphabet) -> list[Candidate]:
        fusion = self._fusion(alphabet)
        weight = fusion.log_weight if fusion else lambda text: 0.0
        steps = expand_beam(log_probs, alphabet, self.width, self.floor, fusion and fusion.factors)
        beam, scale = functools.reduce(lambda _, step: step, steps, ({BOUNDARY: (1.0, 0.0)}, 0.0))  # the last one
        ends = [math.log(fusion.factors(prefix)[0]) if fusion else 0.0 for prefix in beam]
        scores = {p[1:]: scale + math.log(sum(beam[p])) + end for p, end in zip(beam, ends, strict=True)}
        if self.width > 1:
            scores[first.text] = max(scores.get(first.text, -math.inf), first.log_probability + weight(first.text))
        ranked = heapq.nlargest(self.best, scores.items(), key=lambda item: item[1])
        return [Candidate(text, score - (own := weight(text)), own) for text, score in ranked]


def as_reading(log_probs: np.ndarray, ranked: list[Candidate], alphabet: Alphabet) -> Reading:
    """The first of a line's texts as its reading, the others as its alternatives, from (T, C) log-probabilities."""
    (text, log_probability, _), *others = ranked
    labels = alphabet.encode(text)
    path, spans = forced_align(log_probs, labels)
    characters = tuple(
        Character(c, min(math.exp(log_probs[begin:end, k].max()), 1.0), begin, end)
        for c, k, (begin, end) in zip(text, labels, spans, strict=True)
    )
    alternatives = tuple((other.text, other.log_probability) for other in others)
    return Reading(text, log_probability, path_confidence(path, len(text)), characters, alternatives)
