"""Text to labels and back: label 0 is CTC's blank, label k the k-th character (chapter 3)."""

import string
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Alphabet:
    """The characters that a network can write, in the order of CTC's labels (Graves et al., 2006).

    Text is brought to Unicode's composed form (NFC) first, so that an accent is part of its letter. A ValueError
    refuses what is no string, an empty one, a character twice, or one that no line can show.

    >>> alphabet = Alphabet("abc ")
    >>> alphabet.encode("a cab"), alphabet.decode([1, 4, 3, 1, 2])
    ([1, 4, 3, 1, 2], 'a cab')
    """

    characters: str

    def __post_init__(self):
        unique = isinstance(self.characters, str) and 0 < len(self) == len(set(self.characters))
        if not unique or any(unicodedata.category(c) in ("Cc", "Cs") for c in self.characters):
            what = "a string of characters, each once, none of them a control character or half of one (a surrogate)"
            raise ValueError(f"an alphabet is {what}; this is {self.characters!r}")

    @property
    def classes(self) -> int:
        """Number of network outputs: the characters and the blank."""
        return len(self) + 1

    def encode(self, text: str) -> list[int]:
        """Labels of a text, 1 to ``len(self)``; a ValueError names the characters that the alphabet lacks."""
        text = unicodedata.normalize("NFC", text)
        if lacking := "".join(sorted(set(text) - set(self.characters))):
            raise ValueError(
                f"{lacking!r} in {text!r}: not in the alphabet. Correct the text, or drop them with Alphabet.drop."
            )
        return [self.characters.index(c) + 1 for c in text]

    def decode(self, labels: Iterable[int]) -> str:
        """Text of a sequence of labels, 0 to ``len(self)``, blanks left out; a ValueError names others."""
        labels = [int(k) for k in labels]
        if wrong := [k for k in labels if not 0 <= k <= len(self)]:
            raise ValueError(f"labels {wrong} are outside 0 to {len(self)}: they come from another alphabet")
        return "".join(self.characters[k - 1] for k in labels if k)

    def drop(self, text: str) -> str:
        """The text without the characters that the alphabet lacks, for callers who choose to lose them."""
        return "".join(c for c in unicodedata.normalize("NFC", text) if c in self.characters)

    def __len__(self) -> int:
        return len(self.characters)


REFERENCE = Alphabet("".join(sorted(string.ascii_letters + string.digits + " .,;:!?'\"()-")))
IAM = Alphabet("".join(sorted(string.ascii_letters + string.digits + " !\"#&'()*+,-./:;?")))
