"""Words are cut from a line only where the gaps leave no doubt."""

import numpy as np
import pytest

from hwrlib.words import cut_words


def written(*spans, width=600):
    line = np.full((128, width), 255, np.uint8)
    for begin, end in spans:
        line[40:90, begin:end] = 0
    return line


def test_pieces_are_the_line_from_end_to_end():
    line = written((20, 120), (180, 300), (360, 460))
    pieces = cut_words(line, "every third word")
    assert [text for _, text in pieces] == ["every", "third", "word"]
    assert np.array_equal(np.concatenate([pixels for pixels, _ in pieces], axis=1), line)
    assert all((pixels < 128).any() for pixels, _ in pieces)


def test_punctuation_stays_with_its_word():
    pieces = cut_words(written((20, 200), (280, 460)), 'said " Yes , sir')
    assert [text for _, text in pieces] == []  # three words, two blots
    pieces = cut_words(written((20, 200), (280, 460)), "Well , sir .")
    assert [text for _, text in pieces] == ["Well ,", "sir ."]


@pytest.mark.parametrize(
    ("line", "transcript"),
    [
        (written((20, 120), (140, 240), (262, 460)), "two words"),  # gaps alike: 20 and 22 px
        (written((20, 460)), "no gap here"),
        (written(), "nothing written"),
        (written((20, 40), (100, 460)), "unevenness ab"),  # two letters cannot be 16 times as wide as ten
        (written((20, 120), (180, 300)), ""),
    ],
    ids=["gaps alike", "no gap", "blank", "uneven", "no word"],
)
def test_nothing_is_cut_in_doubt(line, transcript):
    assert cut_words(line, transcript) == []
