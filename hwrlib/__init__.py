"""Handwriting recognition, line by line: the module behind the notebooks."""

from hwrlib.alphabet import IAM, REFERENCE, Alphabet, AlphabetError
from hwrlib.data import DataError, load_lines
from hwrlib.images import ImageError, prepare, undo
from hwrlib.model import CRNN, load_reference_checkpoint
from hwrlib.recognizer import Recognizer

__all__ = [
    "CRNN",
    "IAM",
    "REFERENCE",
    "Alphabet",
    "AlphabetError",
    "DataError",
    "ImageError",
    "Recognizer",
    "load_lines",
    "load_reference_checkpoint",
    "prepare",
    "undo",
]
__version__ = "0.1.0"
