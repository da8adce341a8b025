"""The folder of a run: written whole or not at all, and a stop button that loses nothing (chapter 4)."""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from hwrlib.alphabet import Alphabet
from hwrlib.presets import Settings

FIXED = ("batch_size", "seed", "auxiliary", "average", "weight_decay", "frozen")  # what a run cannot change half-way


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, what is kept, and what to do."""


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file or folder beside ``path``, then put it in place: whoever looks finds the old or the new, no half.

    Arguments:
        path: the file or folder.
        write: called with the path to write to.

    Raises:
        TrainingError: it could not be written, for a full disk, say; the last good one is kept.
    """
    new, old = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.old")
    try:
        write(new)
    except (OSError, RuntimeError, SafetensorError) as error:  # so torch and safetensors report a full disk
        shutil.rmtree(new, ignore_errors=True) if new.is_dir() else new.unlink(missing_ok=True)
        raise TrainingError(
            f"{path} could not be written ({error}); is the disk full? The last good one is still there."
        ) from error
    if path.is_dir():  # a folder cannot be replaced in one step
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(new, path)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def on_interrupt(stop: Callable[[], None]):
    """Turn the first Ctrl-C, or Jupyter's stop button, into a call of ``stop``; a second one interrupts as usual."""

    def handle(*_):
        signal.signal(signal.SIGINT, before)
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def read_state(path: Path, alphabet: Alphabet, settings: Settings) -> dict:
    """Read the last state of a run.

    Arguments:
        path: its ``state.pt``.
        alphabet, settings: those that it is to go on with.

    Raises:
        FileNotFoundError: there is none.
        TrainingError: it is of another alphabet, or of settings that cannot change half-way.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: nothing to resume; start a run in this folder first")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["alphabet"] != alphabet.characters:
        raise TrainingError(f"{path} is of another alphabet ({state['alphabet']!r}) than this network's")
    before = Settings(**state["settings"])
    changed = [name for name in FIXED if getattr(before, name) != getattr(settings, name)]
    if changed:
        raise TrainingError(f"{path} was made with another {' and '.join(changed)}: resume it with the same")
    return state


@contextlib.contextmanager
def memory_explained(images: torch.Tensor, folder: Path):
    """Turn torch's errors about memory into a TrainingError that says which batch (N, 1, 128, W) did not fit."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            n, _, _, width = images.shape
            raise TrainingError(
                f"no memory for a batch of {n} lines of {width} px: take a smaller batch. "
                f"The last good state is in {folder}."
            ) from error
        raise
