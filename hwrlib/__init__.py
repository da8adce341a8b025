"""Handwriting recognition, line by line: the module behind the notebooks."""

import importlib
from pathlib import Path

SAMPLE = Path(__file__).parent / "samples"  # embedded, synthetic
WEIGHTS = Path(__file__).parent / "weights"

_HOMES = {
    **dict.fromkeys(["Alphabet", "IAM", "REFERENCE"], "alphabet"),
    "DataError": "files",
    "load_lines": "data",
    **dict.fromkeys(["ImageError", "prepare", "undo"], "images"),
    **dict.fromkeys(["CRNN", "load_reference_checkpoint"], "model"),
    "Recognizer": "recognizer",
}
__all__ = ["SAMPLE", "WEIGHTS", *_HOMES]


def __getattr__(name: str):
    """Import a name's module when the name is first used (PEP 562): PyTorch alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hwrlib' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hwrlib.{_HOMES[name]}"), name)
