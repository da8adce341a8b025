"""Prefix beam search, with a language model where there is one (chapter 5)."""

import functools
import heapq
import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hwrlib.alphabet import Alphabet
from hwrlib.ctc import Character, Reading, forced_align, greedy, path_confidence, text_log_probabilities, to_array
from hwrlib.language import BOUNDARY, CharNgram

ALPHA, BETA = 0.6, 0.5  # tuned on every third of 467 IAM validation lines
TEXTS, SHOWN = 16, 5  # texts to choose among; texts of a reading
UNSURE = 1.0  # natural log: where the first two texts of a line are closer, other views of it decide, too

Views = Callable[[int], list[ArrayLike]]  # from a line's number to the log-probabilities (T, C) of its other views


class Fusion:
    """What a text is worth beside its image: alpha log p(text) - beta log prior(text).

    The network has learnt as well how frequent each character is. The prior is the product of these frequencies, and
    dividing by it takes them out once. The line's end counts as the end of its last word: the model's probability of a
    space or an end there. Shallow fusion: Hannun et al., 2014; prior: Miao et al., 2015.
    """

    def __init__(self, alphabet: Alphabet, language: CharNgram, alpha: float = ALPHA, beta: float = BETA):
        self.alphabet, self.language, self.alpha = alphabet, language, alpha
        self._columns = [0, *language.alphabet.encode(alphabet.characters)]
        self._prior = beta * np.log(language.prior[self._columns])
        self._prior[0] = 0.0  # the end of the line is no character
        self._row = functools.lru_cache(1 << 14)(self._weigh)

    def _weigh(self, context: str) -> list[float]:
        row, space = self.language.row(context)[self._columns], self.alphabet.characters.find(" ") + 1
        if space:  # where a line ends is up to the paper: its last word must be over, no more
            row[0] = np.logaddexp(row[0], row[space])
        return np.exp(self.alpha * row - self._prior).tolist()

    def factors(self, prefix: str) -> list[float]:
        """Weights (C,) of what may follow a prefix, which begins with ``BOUNDARY``: index 0 the line's end."""
        return self._row(prefix[max(len(prefix) - self.language.order + 1, 0) :])

    def log_weight(self, text: str) -> float:
        """Natural log of the weight of a whole line, the product of its ``factors``."""
        line, labels = BOUNDARY + unicodedata.normalize("NFC", text), [*self.alphabet.encode(text), 0]
        return sum(math.log(self.factors(line[: i + 1])[label]) for i, label in enumerate(labels))


def prefix_beam_search(
    line: ArrayLike, alphabet: Alphabet, width: int, floor: float, fusion: Fusion | None
) -> dict[str, float]:
    """Search one line, (T, C) log-probabilities, frame by frame: each text's natural log of probability x weight.

    The beam is {prefix: (mass that ends in blank, mass that ends in its last character)}, best first; a prefix begins
    with ``BOUNDARY``. Masses are plain probabilities, scaled in each frame so that the best prefix has 1, which spares
    logarithms: exp(scale) times as much is true. Width and floor: see :class:`PrefixBeam`.
    """
    label = {c: k for k, c in enumerate(BOUNDARY + alphabet.characters)}
    least, scale, beam = math.exp(floor), 0.0, {BOUNDARY: (1.0, 0.0)}
    probabilities, ones = np.exp(np.asarray(line, float)), [1.0] * alphabet.classes
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
            total, last, weights = blank + character, prefix[-1], fusion.factors(prefix) if fusion else ones
            for k, c, p in options:
                # A repeat is a new character only after a blank.
                mass = (blank if c == last else total) * p * weights[k]
                longer = prefix + c
                if longer in grown:
                    grown[longer][1] += mass
                elif mass > enough:
                    grown[longer] = [0.0, mass]
        ranked = heapq.nlargest(width, grown.items(), key=lambda item: sum(item[1]))
        best = sum(ranked[0][1])
        beam = {prefix: (b / best, c / best) for prefix, (b, c) in ranked if b + c > least * best}
        scale += math.log(best)
    ends = {prefix: fusion.factors(prefix)[0] if fusion else 1.0 for prefix in beam}
    return {prefix[1:]: scale + math.log(sum(beam[prefix])) + math.log(end) for prefix, end in ends.items()}


class Candidate(NamedTuple):
    """A text that a line may have."""

    text: str
    log_probability: float  # natural log, given the image alone
    weight: float  # natural log of ``Fusion``'s weight of the text; 0 without a language model


@dataclass(eq=False)
class PrefixBeam:
    """A decoder that reads each line as its most probable text: the paths to a text added up.

    Greedy's text always takes part, so that without views a beam of 2 or more never scores below it. Hannun et al.,
    2014; without a language model Graves, 2012.

    >>> log_probs = np.log([[[0.6, 0.4], [0.6, 0.4]]])  # no "a": 0.36; "a": 0.16 + 0.24 + 0.24, by three paths
    >>> greedy(log_probs, [2], Alphabet("a"))[0].text, PrefixBeam()(log_probs, [2], Alphabet("a"))[0].text
    ('', 'a')
    """

    language: CharNgram | None = None
    width: int = 32  # prefixes kept from frame to frame, 1 or more
    alpha: float = ALPHA  # these two: see Fusion, whose weight is added to a text's log-probability
    beta: float = BETA
    best: int = TEXTS  # texts to choose among, 1 or more
    floor: float = -8.0  # natural log: what is this far below the best of a frame is given up; -inf: nothing is

    def __post_init__(self):
        self.name = "language" if self.language else "beam"
        self._fusion = functools.lru_cache(4)(lambda alphabet: Fusion(alphabet, self.language, self.alpha, self.beta))

    def __call__(
        self,
        log_probs: ArrayLike,
        lengths: ArrayLike,
        alphabet: Alphabet,
        firsts: list[Reading] | None = None,
        views: Views | None = None,
    ) -> list[Reading]:
        """Read lines, as :func:`hwrlib.ctc.greedy`; a ValueError where the language model lacks a character.

        Where the first two texts of a line are close, its ``views`` decide, too: of each text the mean log-probability.
        """
        found, readings = self.candidates(log_probs, lengths, alphabet, firsts, views), []
        for line, length, candidates in zip(to_array(log_probs), lengths, found, strict=True):
            (text, log_probability, _), *others = self.rank(candidates, readings)[:SHOWN]
            labels = alphabet.encode(text)
            path, spans = forced_align(line[:length], labels)
            characters = tuple(
                Character(c, min(math.exp(line[begin:end, k].max()), 1.0), begin, end)
                for c, k, (begin, end) in zip(text, labels, spans, strict=True)
            )
            confidence = path_confidence(path, len(text))
            alternatives = tuple((other.text, other.log_probability) for other in others)
            readings.append(Reading(text, log_probability, confidence, characters, alternatives))
        return readings

    def rank(self, candidates: list[Candidate], readings: list[Reading]) -> list[Candidate]:
        """A line's texts, best first: as they are; who knows more can choose, also by the lines read before."""
        return candidates

    def candidates(
        self,
        log_probs: ArrayLike,
        lengths: ArrayLike,
        alphabet: Alphabet,
        firsts: list[Reading] | None = None,
        views: Views | None = None,
    ) -> list[list[Candidate]]:
        """The best texts of each line, best first: n-best lists (Chow and Schwartz, 1989); arguments as of a call."""
        firsts, found = greedy(log_probs, lengths, alphabet, firsts), []
        fusion = self._fusion(alphabet) if self.language else None
        weight = fusion.log_weight if fusion else lambda text: 0.0
        for k, (line, length, first) in enumerate(zip(to_array(log_probs), lengths, firsts, strict=True)):
            scores = prefix_beam_search(line[:length], alphabet, self.width, self.floor, fusion)
            if self.width > 1:
                scores[first.text] = max(scores.get(first.text, -math.inf), first.log_probability + weight(first.text))
            ranked = heapq.nlargest(self.best, scores.items(), key=lambda item: item[1])
            texts = [Candidate(text, score - (own := weight(text)), own) for text, score in ranked]
            if views and len(ranked) > 1 and ranked[0][1] - ranked[1][1] < UNSURE:
                texts = seen_otherwise(texts, views(k), alphabet)
            found.append(texts)
        return found


def seen_otherwise(texts: list[Candidate], views: list[ArrayLike], alphabet: Alphabet) -> list[Candidate]:
    """A line's texts, best first, with the means of their log-probabilities on the line and on other views of it.

    Frames of two views do not match, so a text's log-probabilities are averaged, not a frame's. Test-time augmentation
    of handwriting: Kizilirmak and Yanikoglu, 2023.
    """
    labels = [alphabet.encode(text.text) for text in texts]
    each = [[text.log_probability for text in texts], *(text_log_probabilities(view, labels) for view in views)]
    means = [text._replace(log_probability=float(mean)) for text, mean in zip(texts, np.mean(each, 0), strict=True)]
    return sorted(means, key=lambda text: -(text.log_probability + text.weight))
