"""From log-probabilities to text: greedy, prefix beam search, and which frames each character came from (chapter 5)."""

import heapq
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hwrlib import metrics
from hwrlib.confidence import line_confidence
from hwrlib.language import ALPHA, BETA, BOUNDARY, Fusion


@dataclass(frozen=True, slots=True)
class Character:
    """One character that was read: text, confidence (0 to 1), and its frames `begin` to `end`, end exclusive."""

    text: str
    confidence: float
    begin: int
    end: int

    @property
    def columns(self):
        """The pixel columns (first, one past the last) of the prepared line that these frames look at.

        >>> Character("a", 0.9, 10, 12).columns
        (40, 52)
        """
        return self.begin * 4, self.end * 4 + 4


@dataclass(frozen=True, slots=True)
class Reading:
    """What a decoder made of one line.

    text: what was read. log_probability: natural log, of the best path for `greedy`, of the text (the sum over paths
    followed) for `prefix_beam`; a language model has no share in it. confidence: the share of characters expected to be
    right, 0 to 1, calibrated on validation lines. characters: a `Character` for each of the text. alternatives: (text,
    log-probability) of the next best, as the decoder ranks them. box: (x, y, width, height) in pixels, of a line on a
    page.
    """

    text: str
    log_probability: float
    confidence: float
    characters: tuple
    alternatives: tuple = ()
    box: tuple[int, int, int, int] | None = None


def checked(log_probs, lengths, alphabet):
    """Return log_probs (N, T, C) and lengths (N,) as arrays, or raise a ValueError that says what is wrong."""
    log_probs = np.asarray(log_probs.detach().float().cpu() if hasattr(log_probs, "detach") else log_probs)
    lengths = np.asarray(lengths.cpu() if hasattr(lengths, "cpu") else lengths)
    if log_probs.ndim != 3 or len(log_probs) == 0:
        raise ValueError(f"log_probs has shape {log_probs.shape}: pass (lines, frames, classes), at least one line")
    lines, frames, classes = log_probs.shape
    if classes != alphabet.classes:
        raise ValueError(
            f"log_probs has {classes} classes, the alphabet {alphabet.classes}: pass the alphabet of its model"
        )
    if lengths.shape != (lines,) or lengths.dtype.kind not in "iu":
        raise ValueError(f"lengths is {lengths.dtype} {lengths.shape}: pass a whole number for each of {lines} lines")
    if lengths.min() < 0 or lengths.max() > frames:
        raise ValueError(f"lengths has {lengths.min()} to {lengths.max()}: a line has 0 to {frames} frames here")
    peaks = log_probs.max(2)
    sound = (peaks <= 1e-3) & (peaks > -np.inf) | (np.arange(frames) >= lengths[:, None])  # a NaN is never sound
    if not sound.all():
        line, frame = np.argwhere(~sound)[0]
        raise ValueError(
            f"log_probs of line {line}, frame {frame}: NaN, all zero probability or above 0: pass log_softmax's output"
        )
    return log_probs, lengths


def greedy(log_probs, lengths, alphabet):
    """Read each line along its most probable path: each frame's best class, repeats merged, blanks dropped.

    log_probs: (N, T, C) natural log-probabilities, tensor or array, class 0 the blank. lengths: (N,) frames that belong
    to each line; what follows is padding and not looked at. alphabet: `Alphabet` of C classes. Returns a `Reading` for
    each line. Raises ValueError on bad input. Best path decoding: Graves et al., 2006.
    Chapter 5 teaches it: notebooks/05_decode_with_ctc.ipynb

    >>> from hwrlib.alphabet import Alphabet
    >>> frames = np.log([[[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]])
    >>> greedy(frames, [5], Alphabet("ab"))[0].text
    'aab'
    """
    log_probs, lengths = checked(log_probs, lengths, alphabet)
    paths, peaks = log_probs.argmax(2), log_probs.max(2)
    readings = []
    for path, peak, length in zip(paths, peaks, lengths, strict=True):
        path, peak = path[:length], peak[:length]
        begins = np.flatnonzero(np.diff(path, prepend=-1))
        ends = np.append(begins, length)[1:]
        best = np.exp(np.maximum.reduceat(peak, begins)) if length else peak
        runs = zip(path[begins].tolist(), best.tolist(), begins.tolist(), ends.tolist(), strict=True)
        characters = tuple(
            Character(alphabet.characters[k - 1], min(p, 1.0), begin, end) for k, p, begin, end in runs if k
        )
        text, score = "".join(c.text for c in characters), float(peak.sum())
        readings.append(Reading(text, score, line_confidence(score, len(text), "greedy"), characters))
    return readings


def grow(log_probs, alphabet, width, floor, factors=None):
    """Prefix beam search over one line, frame by frame: yields (beam, scale) after each.

    beam: {prefix: (mass that ends in blank, mass that ends in its last character)}, best first, times exp(-scale); a
    prefix begins with `language.BOUNDARY`. factors: function of a prefix to the weight of each label coming next.
    Masses are plain probabilities, scaled in each frame so that the best prefix has 1, which spares logarithms.
    """
    label = {c: k for k, c in enumerate(BOUNDARY + alphabet.characters)}
    least, scale, beam = math.exp(floor), 0.0, {BOUNDARY: (1.0, 0.0)}
    frames, ones = np.exp(np.asarray(log_probs, float)), [1.0] * alphabet.classes
    likely = frames > least * frames.max(1, keepdims=True, initial=0)
    for frame, possible in zip(frames.tolist(), likely, strict=True):
        options = [(k, alphabet.characters[k - 1], frame[k]) for k in np.flatnonzero(possible).tolist() if k]
        grown = {
            prefix: [(blank + character) * frame[0], character * frame[label[prefix[-1]]]]
            for prefix, (blank, character) in beam.items()
        }
        totals = [sum(masses) for masses in grown.values()]
        # What is less than the least of a full beam would not stay in it.
        enough = max(least * max(totals), min(totals) if len(beam) == width else 0.0)
        for prefix, (blank, character) in beam.items() if options else ():
            total, last = blank + character, prefix[-1]
            weights = factors(prefix) if factors else ones
            for k, c, p in options:
                # A repeat is a new character only after a blank.
                mass = (blank if c == last else total) * p * weights[k]
                if mass > enough:
                    longer = prefix + c
                    if longer in grown:
                        grown[longer][1] += mass
                    else:
                        grown[longer] = [0.0, mass]
        ranked = heapq.nlargest(width, grown.items(), key=lambda item: item[1][0] + item[1][1])
        best = sum(ranked[0][1])
        beam = {prefix: (b / best, c / best) for prefix, (b, c) in ranked if b + c > least * best}
        scale += math.log(best)
        yield beam, scale


def prefix_beam(
    log_probs, lengths, alphabet, width=16, language=None, alpha=ALPHA, beta=BETA, words=None, best=5, floor=-8.0
):
    """Read each line as its most probable text, adding up the paths to a text, with or without a language model.

    log_probs, lengths, alphabet: as for `greedy`. width: prefixes kept from frame to frame. language, alpha, beta,
    words: see `language.Fusion`, whose weight is added to a text's log-probability. best: number of texts returned,
    the winner and its alternatives. floor: a character in a frame, or a prefix, this far below the best (natural log)
    is given up; -inf gives up none and is exact where width suffices. Greedy's text always takes part, so that a beam
    of 2 or more never scores below it. Returns a `Reading` for each line. Raises ValueError on bad input.
    Hannun et al., 2014; without a language model, Graves, 2012.
    Chapter 5 teaches it: notebooks/05_decode_with_ctc.ipynb

    >>> from hwrlib.alphabet import Alphabet
    >>> frames = np.log([[[0.6, 0.4], [0.6, 0.4]]])  # no "a": 0.36; "a": 0.16 + 0.24 + 0.24, by three paths
    >>> greedy(frames, [2], Alphabet("a"))[0].text, prefix_beam(frames, [2], Alphabet("a"))[0].text
    ('', 'a')
    """
    if width < 1 or best < 1:
        raise ValueError(f"width {width}, best {best}: at least 1 of each")
    fusion = Fusion(alphabet, language, alpha, beta, words) if language or words else None
    firsts = greedy(log_probs, lengths, alphabet)
    readings = []
    for frames, length, first in zip(*checked(log_probs, lengths, alphabet), firsts, strict=True):
        frames, beam, scale = frames[:length], {BOUNDARY: (1.0, 0.0)}, 0.0
        for beam, scale in grow(frames, alphabet, width, floor, fusion and fusion.factors):  # noqa: B007
            pass  # only the beam after the last frame counts
        scores = {prefix[1:]: scale + math.log(sum(masses)) for prefix, masses in beam.items()}
        if fusion:
            scores = {text: score + math.log(fusion.factors(BOUNDARY + text)[0]) for text, score in scores.items()}
        weight = fusion.log_weight if fusion else lambda text: 0.0
        if width > 1:
            scores[first.text] = max(scores.get(first.text, -math.inf), first.log_probability + weight(first.text))
        ranked = heapq.nlargest(best, scores.items(), key=lambda item: item[1])
        (text, log_probability), *others = [(text, score - weight(text)) for text, score in ranked]
        path, spans = align(frames, alphabet.encode(text))
        characters = tuple(
            Character(c, min(math.exp(frames[begin:end, k].max()), 1.0), begin, end)
            for c, k, (begin, end) in zip(text, alphabet.encode(text), spans, strict=True)
        )
        confidence = line_confidence(path, len(text), "language" if fusion else "beam")
        readings.append(Reading(text, log_probability, confidence, characters, tuple(others)))
    return readings


def align(log_probs, labels):
    """Find the most probable path of a known text through one line (Viterbi): which frames is each character in?

    log_probs: (T, C) array of natural log-probabilities. labels: the text as labels 1 to C - 1, as `Alphabet.encode`
    gives. Returns the path's log-probability and a list of (begin, end) frames, end exclusive, one for each label.
    Raises ValueError where the frames are too few for the text or give it no probability. Graves et al., 2006.

    >>> align(np.log([[0.1, 0.9], [0.9, 0.1], [0.2, 0.8]]), [1, 1])[1]
    [(0, 1), (2, 3)]
    """
    log_probs, labels = np.asarray(log_probs), np.asarray(labels, int)
    need = len(labels) + int((labels[1:] == labels[:-1]).sum())
    if len(log_probs) < need:
        raise ValueError(f"{len(log_probs)} frames are too few for {len(labels)} characters, which need {need}")
    if not len(log_probs):
        return 0.0, []
    states = np.zeros(2 * len(labels) + 1, int)
    states[1::2] = labels
    # From a character straight to the next, past the blank between them, unless the two are the same.
    jump = np.where((states[2:] != 0) & (states[2:] != states[:-2]), 0.0, -np.inf)
    emitted = log_probs[:, states]
    score = np.full(emitted.shape, -np.inf)
    score[0, :2] = emitted[0, :2]
    for before, now, emission in zip(score, score[1:], emitted[1:], strict=False):
        now[:] = before
        np.maximum(now[1:], before[:-1], out=now[1:])
        np.maximum(now[2:], before[:-2] + jump, out=now[2:])
        now += emission
    state = max(range(max(len(states) - 2, 0), len(states)), key=lambda s: score[-1, s])
    total, spans = float(score[-1, state]), [None] * len(labels)
    if total == -math.inf:
        raise ValueError("the frames give this text no probability: align a text that a decoder found in them")
    for t in range(len(log_probs) - 1, -1, -1):
        if state % 2:
            _, end = spans[state // 2] or (t, t + 1)
            spans[state // 2] = (t, end)
        if t:
            came = [score[t - 1, state], score[t - 1, state - 1] if state else -np.inf]
            came += [score[t - 1, state - 2] + jump[state - 2]] if state > 1 else []
            state -= int(np.argmax(came))
    return total, spans


def tune(log_probs, lengths, references, alphabet, language, alphas, betas, width=16):
    """Search a grid of alpha and beta on validation lines: a DataFrame (alpha, beta, cer), lowest CER first."""
    rows = []
    for alpha, beta in itertools.product(alphas, betas):
        readings = prefix_beam(log_probs, lengths, alphabet, width, language, alpha, beta)
        rows.append((alpha, beta, metrics.cer(references, [reading.text for reading in readings])))
    return pd.DataFrame(rows, columns=["alpha", "beta", "cer"]).sort_values("cer", ignore_index=True)
