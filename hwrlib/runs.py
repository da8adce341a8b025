"""The folder of a run: written whole or not at all, and a stop button that loses nothing (chapter 4)."""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError


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
