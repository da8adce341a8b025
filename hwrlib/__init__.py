"""Handwriting recognition, line by line: the module behind the notebooks."""

import importlib
from pathlib import Path

__version__ = "0.1.0"
SAMPLE = Path(__file__).parent / "samples"  # embedded, synthetic
WEIGHTS = Path(__file__).parent / "weights"

_HOMES = {
    "Alphabet": "alphabet",
    "AlphabetError": "alphabet",
    "IAM": "alphabet",
    "REFERENCE": "alphabet",
    "DataError": "data",
    "load_lines": "data",
    "ImageError": "images",
    "prepare": "images",
    "undo": "images",
    "CRNN": "model",
    "load_reference_checkpoint": "model",
    "Recognizer": "recognizer",
}
__all__ = ["SAMPLE", "WEIGHTS", *_HOMES]


def __getattr__(name: str):
    """Import a name's module when the name is first used (PEP 562): PyTorch alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hwrlib' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hwrlib.{_HOMES[name]}"), name)
