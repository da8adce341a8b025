"""Words cut from lines at their widest gaps: short first lessons, from which CTC learns to align (chapter 4)."""

import itertools

import numpy as np

PUNCTUATION = set("!\"#&'()*+,-./:;?")
CLEAR = 1.25  # a gap between words must be this many times wider than any gap within one
UNEVEN = 2.2  # a word whose pixels per character are this many times off the line's median was cut wrongly


def cut_words(pixels: np.ndarray, transcript: str) -> list[tuple[np.ndarray, str]]:
    """Cut a line at its widest gaps into as many pieces as its transcript has words.

    Arguments:
        pixels: a prepared line, uint8 (128, W), 255 = paper.
        transcript: what it says; punctuation stays with its neighbour.

    Returns:
        (pixels, text) of each word; none where the gaps leave a doubt. About two of three IAM lines can be cut.

    >>> line = np.full((128, 300), 255, np.uint8); line[40:90, 20:120] = 0; line[40:90, 180:280] = 0
    >>> [(piece.shape, text) for piece, text in cut_words(line, "two words")]
    [((128, 149), 'two'), ((128, 151), 'words')]
    >>> cut_words(line, "three words here")
    []
    """
    words = _words(transcript)
    inked = np.flatnonzero((pixels < 128).any(axis=0))
    gaps = np.diff(inked)
    widest = np.argsort(gaps)[::-1]
    cuts = len(words) - 1
    if cuts < 1:
        return [(pixels, transcript)] if words else []
    if len(gaps) <= cuts or gaps[widest[cuts - 1]] < CLEAR * max(2, gaps[widest[cuts]]):
        return []
    middles = sorted((inked[k] + inked[k + 1]) // 2 for k in widest[:cuts])
    pieces = list(itertools.pairwise([0, *middles, pixels.shape[1]]))
    pitch = np.array([(end - begin) / (len(word) + 1) for (begin, end), word in zip(pieces, words, strict=True)])
    if pitch.max() > UNEVEN * np.median(pitch) or pitch.min() < np.median(pitch) / UNEVEN:
        return []
    return [(pixels[:, begin:end], word) for (begin, end), word in zip(pieces, words, strict=True)]


def _words(transcript: str) -> list[str]:
    """Words, each with the punctuation that IAM sets apart from it by a space."""
    words: list[str] = []
    for token in transcript.split():
        if words and (set(token) <= PUNCTUATION or set(words[-1].rsplit(" ", 1)[-1]) <= set("\"('")):
            words[-1] += " " + token
        else:
            words.append(token)
    return words
