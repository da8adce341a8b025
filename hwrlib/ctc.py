"""Connectionist temporal classification: frames and their text, greedy decoding, forced alignment (chapters 4, 5)."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.nn import functional

from hwrlib.alphabet import Alphabet

STRIDE = 4  # pixels from one frame to the next


def frames(width: int | torch.Tensor) -> int | torch.Tensor:
    """Number of frames of a line, or of many: two poolings divide by 4, the last convolution takes one."""
    return width // STRIDE - 1


def required_frames(labels: Sequence[int]) -> int:
    """Fewest frames in which CTC can write these labels: one each, and a blank between equal neighbours."""
    return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))


@dataclass(frozen=True, slots=True)
class Character:
    """One character that was read."""

    text: str
    confidence: float  # 0 to 1, its highest probability in any of its frames
    begin: int  # its first frame
    end: int  # one past its last
    box: tuple[int, int, int, int] | None = None  # (x, y, width, height) of its ink on the picture; none from a decoder

    @property
    def columns(self) -> tuple[int, int]:
        """The pixel columns (first, one past the last) of the prepared line that these frames look at."""
        return self.begin * STRIDE, (self.end + 1) * STRIDE


@dataclass(frozen=True, slots=True)
class Reading:
    """What a decoder made of one line; what follows the alternatives comes from ``Recognizer.iter_page``."""

    text: str
    log_probability: float  # natural log, by the network alone: of greedy's path, of a beam's text (mean of its views)
    confidence: float  # 0 to 1: a decoder's is ``path_confidence``, which ``Recognizer`` calibrates
    characters: tuple[Character, ...]
    alternatives: tuple[tuple[str, float], ...] = ()  # (text, log-probability), as the decoder ranks them
    box: tuple[int, int, int, int] | None = None  # (x, y, width, height) in pixels of the picture, as the rest
    rotation: int = 0  # degrees clockwise by which the picture was turned before it was read: 0, 90, 180, 270
    baseline: tuple[tuple[int, int], ...] | None = None  # (x, y) from the line's begin to its end
    outline: tuple[tuple[int, int], ...] | None = None  # (x, y), closed: the upper edge forwards, the lower backwards


def path_confidence(log_probability: float, characters: int) -> float:
    """Geometric mean of a path's probabilities, per character: 0 to 1."""
    return math.exp(min(0.0, log_probability / max(characters, 1)))


def to_array(log_probs: ArrayLike) -> np.ndarray:
    """Log-probabilities as an array, also of a tensor on a GPU."""
    return log_probs.detach().float().cpu().numpy() if isinstance(log_probs, torch.Tensor) else np.asarray(log_probs)


def _check(log_probs: np.ndarray, lengths: np.ndarray, alphabet: Alphabet) -> None:
    if log_probs.ndim != 3 or log_probs.shape[2] != alphabet.classes:
        raise ValueError(f"log_probs has shape {log_probs.shape}: pass (lines, frames, {alphabet.classes} classes)")
    lines, most, _ = log_probs.shape
    if lengths.shape != (lines,) or ((lengths < 0) | (lengths > most)).any():
        raise ValueError(f"lengths is {lengths}: pass how many of {most} frames belong to each of {lines} lines")
    peaks = log_probs.max(2)
    sound = (peaks <= 1e-3) & (peaks > -np.inf) | (np.arange(most) >= lengths[:, None])  # a NaN is never sound
    for line, frame in np.argwhere(~sound)[:1]:
        raise ValueError(f"line {line}, frame {frame}: NaN or no log-probabilities: pass what log_softmax gives")


def greedy(
    log_probs: ArrayLike, lengths: ArrayLike, alphabet: Alphabet, firsts: list[Reading] | None = None
) -> list[Reading]:
    """Read each line along its most probable path: each frame's best class, repeats merged, blanks dropped.

    Best path decoding: Graves et al., 2006. A ValueError refuses another alphabet's shape, NaN, and probabilities.

    Arguments:
        log_probs: (N, T, C) natural log-probabilities, class 0 the blank.
        lengths: (N,) frames that belong to each line; what follows is padding and not looked at.
        firsts: greedy's readings of these lines where the caller has them, which are then the answer.

    >>> probabilities = [[[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]]
    >>> greedy(np.log(probabilities), [5], Alphabet("ab"))[0].text
    'aab'
    """
    if firsts is not None:
        return firsts
    log_probs, lengths, readings = to_array(log_probs), np.asarray(lengths), []
    _check(log_probs, lengths, alphabet)
    for line, length in zip(log_probs, lengths, strict=True):
        path, peaks = line[:length].argmax(1), line[:length].max(1)
        begins = np.flatnonzero(np.diff(path, prepend=-1)).tolist()
        characters = tuple(
            Character(alphabet.characters[path[begin] - 1], min(math.exp(peaks[begin:end].max()), 1.0), begin, end)
            for begin, end in itertools.pairwise([*begins, int(length)])
            if path[begin]
        )
        text, score = "".join(c.text for c in characters), float(peaks.sum())
        readings.append(Reading(text, score, path_confidence(score, len(text)), characters))
    return readings


greedy.name = "greedy"


def text_log_probabilities(log_probs: ArrayLike, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """Natural log-probability (N,) of each text of one line, all its paths added up: what CTC trains.

    Arguments:
        log_probs: (T, C) natural log-probabilities of one line, class 0 the blank.
        texts: the labels of each text.

    >>> text_log_probabilities(np.log([[0.6, 0.4], [0.6, 0.4]]), [[], [1], [1, 1]]).round(2).tolist()
    [-1.02, -0.45, -inf]
    """
    line = torch.as_tensor(to_array(log_probs)).double()
    every = line[:, None].expand(-1, len(texts), -1)
    lengths = torch.tensor([len(labels) for labels in texts])
    labels = torch.tensor([*itertools.chain(*texts)], dtype=torch.long)
    return -functional.ctc_loss(every, labels, torch.full_like(lengths, len(line)), lengths, reduction="none").numpy()


def forced_align(log_probs: ArrayLike, labels: Sequence[int]) -> tuple[float, list[tuple[int, int]]]:
    """Find the most probable path of a known text through one line (Viterbi; Graves et al., 2006).

    From its (T, C) natural log-probabilities and the text's labels come the path's log-probability, and (begin, end)
    frames of each label, end exclusive. A ValueError says where the frames are too few for the text.

    >>> forced_align(np.log([[0.1, 0.9], [0.9, 0.1], [0.2, 0.8]]), [1, 1])[1]
    [(0, 1), (2, 3)]
    """
    log_probs, needed = np.asarray(log_probs), required_frames(labels)
    if len(log_probs) < needed:
        raise ValueError(f"{len(log_probs)} frames are too few for {len(labels)} characters, which need {needed}")
    states = np.zeros(2 * len(labels) + 1, int)  # a blank before, between and after the characters
    states[1::2] = labels
    # From a character straight to the next, past the blank between them, unless the two are the same.
    jump = np.where((states > 0) & (states != np.append([0, 0], states)[:-2]), 0.0, -np.inf)
    score = np.append([-np.inf, -np.inf, 0.0], np.full(len(states) - 1, -np.inf))  # two more before the first state
    moves = np.zeros((len(log_probs), len(states)), int)  # by how many states the best path to each one came on
    for move, emitted in zip(moves, log_probs[:, states], strict=True):
        ways = np.stack([score[2:], score[1:-1], score[:-2] + jump])
        ways.argmax(0, out=move)
        score[2:] = ways.max(0) + emitted
    path, state = np.zeros(len(log_probs), int), len(states) - 2 + int(score[-2:].argmax())
    for t in range(len(log_probs) - 1, -1, -1):
        path[t], state = state, state - moves[t, state]
    characters = np.arange(1, len(states), 2)
    begins, ends = (np.searchsorted(path, characters, side).tolist() for side in ("left", "right"))
    return float(score[-2:].max()), list(zip(begins, ends, strict=True))
