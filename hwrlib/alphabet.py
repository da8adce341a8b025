"""Text to labels and back: label 0 is CTC's blank, label k the k-th character (chapter 3)."""

import string
import unicodedata
from collections import Counter
from collections.abc import Iterable


class AlphabetError(ValueError):
    """A text has characters, or labels, that the alphabet lacks."""


class Alphabet:
    """The characters that a network can write, in label order.

    Labels are those of CTC (Graves et al., 2006): 0 is the blank, ``k`` stands for ``characters[k - 1]``.
    Text is brought to Unicode's composed form (NFC) first, so that an accent is part of its letter.
    Chapter 3: notebooks/03_build_the_crnn.ipynb.

    Arguments:
        characters: the characters, each once; no line breaks or other control characters.

    Raises:
        AlphabetError: no string, an empty one, a character twice, or one that no line can show.

    >>> alphabet = Alphabet("abc ")
    >>> alphabet.encode("a cab")
    [1, 4, 3, 1, 2]
    >>> alphabet.decode([1, 4, 3, 1, 2])
    'a cab'
    >>> alphabet.encode("cabbage")
    Traceback (most recent call last):
    hwrlib.alphabet.AlphabetError: 'eg' in 'cabbage': not in the alphabet. Correct the text, or drop them ...
    """

    blank = 0

    def __init__(self, characters: str):
        if not isinstance(characters, str) or not characters:
            raise AlphabetError(f"an alphabet is a string of characters; this is {characters!r}")
        repeated = "".join(c for c, count in Counter(characters).items() if count > 1)
        if repeated:
            raise AlphabetError(f"an alphabet names each character once; this one has {repeated!r} more than once")
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in characters):
            raise AlphabetError(f"an alphabet has no control characters or surrogates; this one is {characters!r}")
        self.characters = characters
        self._label = {c: k for k, c in enumerate(characters, start=1)}

    @property
    def classes(self) -> int:
        """Number of network outputs: the characters and the blank."""
        return len(self) + 1

    def encode(self, text: str) -> list[int]:
        """Labels of a text, 1 to ``len(self)``.

        Raises:
            AlphabetError: the alphabet lacks characters of it, which are named.
        """
        text = unicodedata.normalize("NFC", text)
        lacking = sorted(set(text) - set(self._label))
        if lacking:
            raise AlphabetError(
                f"{''.join(lacking)!r} in {text!r}: not in the alphabet. "
                "Correct the text, or drop them with Alphabet.drop."
            )
        return [self._label[c] for c in text]

    def decode(self, labels: Iterable[int]) -> str:
        """Text of a sequence of labels, 0 to ``len(self)``, blanks left out.

        Raises:
            AlphabetError: a label out of that range.
        """
        labels = [int(k) for k in labels]
        wrong = [k for k in labels if not 0 <= k <= len(self)]
        if wrong:
            raise AlphabetError(f"labels {wrong} are outside 0 to {len(self)}: they come from another alphabet")
        return "".join(self.characters[k - 1] for k in labels if k)

    def drop(self, text: str) -> str:
        """The text without the characters that the alphabet lacks, for callers who choose to lose them."""
        return "".join(c for c in unicodedata.normalize("NFC", text) if c in self._label)

    def __len__(self) -> int:
        return len(self.characters)

    def __eq__(self, other) -> bool:
        return isinstance(other, Alphabet) and self.characters == other.characters

    def __hash__(self) -> int:
        return hash(self.characters)

    def __repr__(self) -> str:
        return f"Alphabet({self.characters!r})"


REFERENCE = Alphabet("".join(sorted(string.ascii_letters + string.digits + " .,;:!?'\"()-")))
IAM = Alphabet("".join(sorted(string.ascii_letters + string.digits + " !\"#&'()*+,-./:;?")))
