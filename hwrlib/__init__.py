"""Handwriting recognition, line by line: the module behind the notebooks."""

from hwrlib.alphabet import IAM, REFERENCE, Alphabet, AlphabetError
from hwrlib.data import DataError, load_lines
from hwrlib.image_files import ImageError
from hwrlib.images import prepare, undo
from hwrlib.model import CRNN
from hwrlib.recognizer import Recognizer
from hwrlib.reference import load_reference_checkpoint

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
