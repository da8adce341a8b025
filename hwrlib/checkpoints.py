"""The folder of a run: one run at a time, a stop that loses nothing, a state that is whole (chapter 4)."""

import contextlib
import hashlib
import json
import shutil
import signal
import threading
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator

from hwrlib.batches import PreparedLine
from hwrlib.files import write_whole
from hwrlib.model import refuse_bomb

# Ctrl-C and Jupyter's stop button; Colab and SLURM; a closed terminal, which Windows does not tell.
SIGNALS = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Note the first of each signal that asks a program to end; a second one ends it, and an ignored one stays so."""
    received, usual = [], {}

    def note(number: int, _) -> None:
        signal.signal(number, usual[number])
        received.append(number)

    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler, and none comes
        usual = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)}
    try:
        for number in usual:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def fingerprint(lines: Iterable[PreparedLine]) -> str:
    """SHA-256 of pixels and texts: tells whether a run goes on with the lines that it began with."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line.pixels.shape} {line.text!r}".encode() + line.pixels.tobytes())
    return digest.hexdigest()


def states(folder: Path) -> list[Path]:
    """The states in a folder, the last one last; there are two where a run was killed while it wrote."""
    return sorted(folder.glob("state-*[0-9]"))


def save_state(accelerator: Accelerator, folder: Path, rest: dict) -> None:
    """Write a state and the ``rest`` of it whole, then drop the one before: a kill leaves one to go on from."""
    state = folder / f"state-{rest['progress']['step']:09}"

    def write(new: Path) -> None:
        # Not as safetensors: of weights in one piece of memory, where cuDNN puts an LSTM's, Accelerate keeps one.
        accelerator.save_state(new, safe_serialization=False)
        (new / "rest.json").write_text(json.dumps(rest))

    write_whole(state, write)
    for old in set(folder.glob("state-*")) - {state}:  # also what a killed run has half written
        shutil.rmtree(old)


def load_state(accelerator: Accelerator, folder: Path, made_of: dict) -> dict:
    """Go on from the last state, ``made_of`` the same, and return its rest; of a stranger's state no code is run."""
    if not states(folder):
        raise FileNotFoundError(f"{folder}: nothing to resume; start a run in another folder, or delete this one")
    state, scaler = states(folder)[-1], accelerator.scaler
    try:
        rest = json.loads((state / "rest.json").read_text())
        others = {name: rest["made_of"].get(name) for name in made_of if rest["made_of"].get(name) != made_of[name]}
        if not others:
            for file in filter(zipfile.is_zipfile, state.iterdir()):
                refuse_bomb(file)
            file = state / "scaler.pt"
            if scaler and not (file.exists() and torch.load(file, weights_only=True)):  # begun without float16
                torch.save(scaler.state_dict(), file)
            accelerator.load_state(state)
    except Exception as error:  # a dozen kinds, from EOFError to UnpicklingError
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RuntimeError(f"{state} is damaged; start again with --init {folder / 'best'} ({why})") from error
    for name, before in others.items():
        raise RuntimeError(f"{state} was made with another {name} ({before!r}): resume it with the same")
    return rest
