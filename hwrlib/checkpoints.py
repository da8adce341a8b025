"""The folder of a run: written whole or not at all, one run at a time, and a stop that loses nothing (chapter 4)."""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import signal
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import filelock
import numpy as np
import torch
from safetensors import SafetensorError

from hwrlib.batches import PreparedLine
from hwrlib.settings import Settings

FIXED = ("batch_size", "seed", "auxiliary", "average", "weight_decay", "frozen")  # what a run cannot change half-way
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C and Jupyter's stop button; Colab and SLURM; a closed terminal


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, what is kept, and what to do."""


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file or folder beside ``path``, then put it in place: whoever looks finds the old or the new, no half.

    A folder that is there gets the new files one by one. Of the weights in ``best`` only one file differs between two
    writings of a run, so a kill between two files leaves them as good as one after them.

    Arguments:
        path: the file or folder.
        write: called with the path to write to.

    Raises:
        OSError: it could not be written, for a full disk, say; what was there before is kept.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        write(new)
        if path.is_dir():
            for file in sorted(new.iterdir()):
                os.replace(file, path / file.name)
            new.rmdir()
        else:
            os.replace(new, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # so torch and safetensors report a full disk
        shutil.rmtree(new, ignore_errors=True) if new.is_dir() else new.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written ({error}); is the disk full? What was there before is unchanged."
        ) from error


@contextlib.contextmanager
def one_run(folder: Path) -> Iterator[None]:
    """Keep a folder for one run at a time.

    Raises:
        TrainingError: another run is using it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise TrainingError(f"{folder}: another run is using this folder; stop it, or give another folder") from error


@contextlib.contextmanager
def on_stop() -> Iterator[list[int]]:
    """Note the first of each signal that asks a program to end; a second one ends it as usual.

    A signal that is ignored stays so: ``nohup`` ignores SIGHUP. Outside the main thread no signal arrives.

    Returns:
        a list, to which the numbers of the signals are added as they come.
    """
    received = []

    def note(number, _):
        signal.signal(number, usual[number])
        received.append(number)

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    usual = {number: signal.getsignal(number) for number in numbers}
    if threading.current_thread() is threading.main_thread():
        caught = [number for number in numbers if usual[number] not in (signal.SIG_IGN, None)]
    else:
        caught = []  # where Python allows no handler
    for number in caught:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number in caught:
            signal.signal(number, usual[number])


def own_group(_: int) -> None:
    """Take a data worker out of the process group that Ctrl-C and ``timeout`` signal: the run itself ends it."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def fingerprint(lines: Iterable[PreparedLine]) -> str:
    """SHA-256 over the pixels and texts of lines: tells whether a run goes on with those that it began with."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line.pixels.shape} {line.text!r}".encode())
        digest.update(np.ascontiguousarray(line.pixels))
    return digest.hexdigest()


def write_state(path: Path, parts: dict, origin: dict, settings: Settings, **rest) -> None:
    """Write all that a run needs to go on, random numbers included, whole.

    Arguments:
        path: the file.
        parts: by name, what has a ``state_dict``.
        origin: what the run is made of, under the names that messages are to use.
        settings: of the run.
        rest: numbers and texts, in lists and dictionaries.

    Raises:
        OSError: it could not be written.
    """
    state = {"parts": {name: part.state_dict() for name, part in parts.items()}, "origin": origin, "rest": rest}
    state |= {"settings": dataclasses.asdict(settings), "random": torch.get_rng_state()}
    state["random_cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    write_whole(path, lambda new: torch.save(state, new))


def read_state(path: Path, parts: dict, origin: dict, settings: Settings) -> dict:
    """Bring the parts of a run and the random numbers to the state that was written last.

    Arguments:
        path: the file; nothing in it is run, and it may be anything.
        parts, origin, settings: as for :func:`write_state`, those of the run that is to go on.

    Returns:
        the rest.

    Raises:
        FileNotFoundError: there is none.
        TrainingError: it is damaged, of another origin, or of settings that cannot change half-way.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: nothing to resume; start a run in this folder first")
    with damage_explained(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed, which torch.save does not do")
        state = torch.load(path, map_location="cpu", weights_only=True)
        before, made_of = dataclasses.asdict(Settings(**state["settings"])), dict(state["origin"])
    before, now = made_of | {name: before[name] for name in FIXED}, origin | dataclasses.asdict(settings)
    for name in (*origin, *FIXED):
        if before.get(name) != now[name]:
            raise TrainingError(f"{path} was made with another {name} ({before.get(name)!r}): resume it with the same")
    with damage_explained(path):
        for name, part in parts.items():
            if name != "scaler" or name in state["parts"]:  # only float16 has one, and a run may change its device
                part.load_state_dict(state["parts"][name])
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"][: torch.cuda.device_count()])
        return dict(state["rest"])


@contextlib.contextmanager
def damage_explained(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or foreign state makes torch raise into a TrainingError that says what to do."""
    try:
        yield
    except Exception as error:  # a dozen kinds, from EOFError to UnpicklingError
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise TrainingError(f"{path} is damaged; start again with --init {path.parent / 'best'} ({reason})") from error


@contextlib.contextmanager
def memory_explained(images: torch.Tensor, folder: Path) -> Iterator[None]:
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
