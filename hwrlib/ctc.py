"""Connectionist temporal classification: frames and their text, greedy decoding, forced alignment (chapters 4, 5)."""

import itertools
import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike

from hwrlib.alphabet import Alphabet

STRIDE = 4  # pixels from one frame to the next
Width = TypeVar("Width", int, torch.Tensor)


def frames(width: Width) -> Width:
    """Number of frames of a line, an int or a tensor of ints: two poolings divide by 4, the last convolution takes one.

    >>> frames(1700)
    424
    """
    return width // STRIDE - 1


def required_frames(labels: list[int]) -> int:
    """Fewest frames in which CTC can write these labels: one each, and a blank between equal neighbours.

    >>> required_frames([1, 2, 2, 3])
    5
    """
    return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))


def check_fits(width: int, transcript: str, alphabet: Alphabet) -> None:
    """Refuse an image that has too few frames for CTC to write its transcript.

    Arguments:
        width: of the prepared line, in pixels.
        transcript: what the line says.
        alphabet: encodes the transcript.

    Raises:
        ValueError: the image is too narrow, or the transcript is not its own.

    >>> from hwrlib.alphabet import IAM
    >>> check_fits(20, "hello", IAM)
    Traceback (most recent call last):
    ValueError: 20 px give 4 frames, but CTC needs 6 for 'hello': the image must be at least 28 px wide, \
or the transcript is not its own
    """
    needed = required_frames(alphabet.encode(transcript))
    if frames(width) < needed:
        raise ValueError(
            f"{width} px give {frames(width)} frames, but CTC needs {needed} for {transcript!r}: "
            f"the image must be at least {STRIDE * (needed + 1)} px wide, or the transcript is not its own"
        )


@dataclass(frozen=True, slots=True)
class Character:
    """One character that was read.

    Arguments:
        text: the character.
        confidence: 0 to 1, its highest probability in any of its frames.
        begin, end: its frames, end exclusive.
        box: (x, y, width, height) of its ink in pixels of the picture that was read; None from a decoder.
    """

    text: str
    confidence: float
    begin: int
    end: int
    box: tuple[int, int, int, int] | None = None

    @property
    def columns(self) -> tuple[int, int]:
        """The pixel columns (first, one past the last) of the prepared line that these frames look at.

        >>> Character("a", 0.9, 10, 12).columns
        (40, 52)
        """
        return self.begin * STRIDE, (self.end + 1) * STRIDE


@dataclass(frozen=True, slots=True)
class Reading:
    """What a decoder made of one line.

    Arguments:
        text: what was read.
        log_probability: natural log, of the best path (``greedy``) or of the text, all its paths added up
            (``PrefixBeam``); a language model has no share in it.
        confidence: 0 to 1. From a decoder the geometric mean of the best path's probabilities, per character; from
            ``Recognizer`` the share of characters expected to be right, calibrated on validation lines.
        characters: a ``Character`` for each of the text.
        alternatives: (text, log-probability) of the next best, as the decoder ranks them.
        box: (x, y, width, height) in pixels, of a line on a page.
        rotation: degrees clockwise by which the picture was turned before it was read: 0, 90, 180 or 270.
    """

    text: str
    log_probability: float
    confidence: float
    characters: tuple[Character, ...]
    alternatives: tuple[tuple[str, float], ...] = ()
    box: tuple[int, int, int, int] | None = None
    rotation: int = 0


def path_confidence(log_probability: float, characters: int) -> float:
    """Geometric mean of a path's probabilities, per character: 0 to 1."""
    return math.exp(min(0.0, log_probability / max(characters, 1)))


def checked(log_probs: ArrayLike, lengths: ArrayLike, alphabet: Alphabet) -> tuple[np.ndarray, np.ndarray]:
    """Return what a decoder is given as arrays (N, T, C) and (N,), checked.

    Raises:
        ValueError: shapes that do not match, another alphabet, NaN, or values that are no log-probabilities.
    """
    if isinstance(log_probs, torch.Tensor):
        log_probs = log_probs.detach().float().cpu()
    log_probs, lengths = np.asarray(log_probs), np.asarray(lengths)
    if log_probs.ndim != 3 or len(log_probs) == 0:
        raise ValueError(f"log_probs has shape {log_probs.shape}: pass (lines, frames, classes), at least one line")
    lines, most, classes = log_probs.shape
    if classes != alphabet.classes:
        raise ValueError(
            f"log_probs has {classes} classes, the alphabet {alphabet.classes}: pass the alphabet of its model"
        )
    if lengths.shape != (lines,) or lengths.dtype.kind not in "iu":
        raise ValueError(f"lengths is {lengths.dtype} {lengths.shape}: pass a whole number for each of {lines} lines")
    if lengths.min() < 0 or lengths.max() > most:
        raise ValueError(f"lengths has {lengths.min()} to {lengths.max()}: a line has 0 to {most} frames here")
    peaks = log_probs.max(2)
    sound = (peaks <= 1e-3) & (peaks > -np.inf) | (np.arange(most) >= lengths[:, None])  # a NaN is never sound
    if not sound.all():
        line, frame = np.argwhere(~sound)[0]
        raise ValueError(
            f"log_probs of line {line}, frame {frame}: NaN, all zero probability or above 0: pass log_softmax's output"
        )
    return log_probs, lengths


def greedy(log_probs: ArrayLike, lengths: ArrayLike, alphabet: Alphabet) -> list[Reading]:
    """Read each line along its most probable path: each frame's best class, repeats merged, blanks dropped.

    Best path decoding: Graves et al., 2006. Chapter 5: notebooks/05_decode_with_ctc.ipynb.

    Arguments:
        log_probs: (N, T, C) natural log-probabilities, tensor or array, class 0 the blank.
        lengths: (N,) frames that belong to each line; what follows is padding and not looked at.
        alphabet: of C classes.

    Raises:
        ValueError: what :func:`checked` refuses.

    >>> probabilities = [[[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]]
    >>> greedy(np.log(probabilities), [5], Alphabet("ab"))[0].text
    'aab'
    """
    log_probs, lengths = checked(log_probs, lengths, alphabet)
    readings = []
    for path, peak, length in zip(log_probs.argmax(2), log_probs.max(2), lengths, strict=True):
        path, peak = path[:length], peak[:length]
        begins = np.flatnonzero(np.diff(path, prepend=-1))
        ends = np.append(begins, length)[1:]
        best = np.exp(np.maximum.reduceat(peak, begins)) if length else peak
        runs = zip(path[begins].tolist(), best.tolist(), begins.tolist(), ends.tolist(), strict=True)
        characters = tuple(
            Character(alphabet.characters[k - 1], min(p, 1.0), begin, end) for k, p, begin, end in runs if k
        )
        text, score = "".join(c.text for c in characters), float(peak.sum())
        readings.append(Reading(text, score, path_confidence(score, len(text)), characters))
    return readings


greedy.name = "greedy"


def forced_align(log_probs: ArrayLike, labels: list[int]) -> tuple[float, list[tuple[int, int]]]:
    """Find the most probable path of a known text through one line (Viterbi): which frames is each character in?

    Graves et al., 2006. Chapter 5: notebooks/05_decode_with_ctc.ipynb.

    Arguments:
        log_probs: (T, C) natural log-probabilities.
        labels: the text as labels 1 to C - 1, as ``Alphabet.encode`` gives them.

    Returns:
        the path's log-probability, and (begin, end) frames of each label, end exclusive.

    Raises:
        ValueError: the frames are too few for the text, or give it no probability.

    >>> forced_align(np.log([[0.1, 0.9], [0.9, 0.1], [0.2, 0.8]]), [1, 1])[1]
    [(0, 1), (2, 3)]
    """
    log_probs, needed = np.asarray(log_probs), required_frames(list(labels))
    if len(log_probs) < needed:
        raise ValueError(f"{len(log_probs)} frames are too few for {len(labels)} characters, which need {needed}")
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
