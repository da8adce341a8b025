"""Fine-tuning on kept lines, watched and stopped from the app: chapter 8 behind a button."""

import copy
import dataclasses
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hwrlib.batches import prepare_lines, rehearse
from hwrlib.data import DataError, hold_out, load_lines
from hwrlib.model import CRNN
from hwrlib.recognizer import Recognizer
from hwrlib.settings import PRESETS
from hwrlib.training import Trainer

LEAST = 5  # lines: one of five is held out
REHEARSED = 64  # general lines to draw from; no epoch of few own lines needs more


class _Stopped(Exception):
    """The user has had enough."""


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What a teaching has brought.

    Arguments:
        recognizer: with the weights that read the held-out lines best; those it began with where none was better.
        before, after: CER on the held-out lines, 0 to 1. They chose the weights, so the gain is a little smaller.
        learnt, held_out: how many lines served for what.
        left_out: why other lines did not.
    """

    recognizer: Recognizer
    before: float
    after: float
    learnt: int
    held_out: int
    left_out: list[str]

    def says(self) -> str:
        """The same in words."""
        rates = f"{self.before:.1%} before, {self.after:.1%} after learning from {self.learnt} others"
        better = self.after < self.before
        now = "The app now uses the new weights." if better else "No round was better, so the network stays as it was."
        left_out = "".join(f" Left out: {why}." for why in self.left_out[:3])
        lines = f"{self.held_out} held-out line{'s' * (self.held_out != 1)}"
        return f"Wrong characters (CER) on {lines}: {rates}. {now}{left_out}"


def teach(
    recognizer: Recognizer,
    folder: str | Path,
    network: str | Path,
    tell: Callable[[int, int], None],
    stop: threading.Event,
) -> Lesson | None:
    """Fine-tune a network to the lines kept in a folder, with the preset "personal" and general lines mixed in.

    The general lines are those of the embedded sample (synthetic). A teaching that is stopped gives what its best
    whole round has brought. Chapter 8: notebooks/08_teach_it_your_hand.ipynb.

    Arguments:
        recognizer: what to start from; it is not changed.
        folder: of :func:`hwrlib.app.corrections.keep`.
        network: a folder for the weights, if they got better.
        tell: called with the steps done and the most there can be.
        stop: set to end it.

    Returns:
        what it has brought; None where it was stopped before the end of its first round.

    Raises:
        DataError: too few lines that can be learnt from, or a folder that cannot be read.
        TrainingError, OSError: as :class:`hwrlib.training.Trainer`.
    """
    model = copy.deepcopy(recognizer.model)
    rows, usable, left_out = load_lines("train", folder), [], []
    for number in range(len(rows)):
        try:
            prepare_lines(rows.select([number]), model.alphabet, model.width_divisor)
            usable.append(number)
        except DataError as error:
            left_out.append(f"{rows[number]['text']!r}: {str(error).removeprefix('row 0: ')}")
    if len(usable) < LEAST:
        raise DataError(f"{len(usable)} of {len(rows)} kept lines can be learnt from; keep at least {LEAST}, better 20")
    parts = hold_out(rows.select(usable))
    learnt, held_out = (prepare_lines(part, model.alphabet, model.width_divisor) for part in parts)
    sample = load_lines("train", "sample").shuffle(seed=0)
    general = sample.select(range(min(len(sample), max(REHEARSED, len(learnt)))))
    lines = rehearse(learnt, prepare_lines(general, model.alphabet, model.width_divisor))
    settings = dataclasses.replace(PRESETS["personal"], precision=recognizer.precision)
    with tempfile.TemporaryDirectory() as run:
        trainer = Trainer(model, lines, held_out, run, settings)

        def step(module: CRNN, _) -> None:
            if stop.is_set():
                raise _Stopped
            if module.training:
                tell(trainer.progress["step"], settings.epochs * len(trainer.sampler))

        hook = model.register_forward_pre_hook(step)
        try:
            trainer.run(bar=False)
        except _Stopped:
            if len(trainer.history) < 2:
                return None
        finally:
            hook.remove()
        rates = [row["cer"] for row in trainer.history]
        if int(np.argmin(rates)):
            best = CRNN.from_pretrained(Path(run) / "best")
            best.save_pretrained(network)
            recognizer = Recognizer(best.to(recognizer.device), recognizer.precision, recognizer.decoder)
    return Lesson(recognizer, rates[0], min(rates), len(learnt), len(held_out), left_out)
