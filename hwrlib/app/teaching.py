"""Fine-tuning on kept lines, watched and stopped from the app: chapter 8 behind a button."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

from hwrlib.batches import prepare_lines
from hwrlib.data import hold_out, load_lines
from hwrlib.files import DataError
from hwrlib.model import CRNN
from hwrlib.recognizer import Recognizer
from hwrlib.settings import PRESETS
from hwrlib.training import make_trainer

LEAST = 5  # lines: one of five is held out


def teach(
    recognizer: Recognizer, folder: str | Path, network: str | Path, on_step: Callable[[int, int], bool | None]
) -> tuple[Recognizer, str]:
    """Fine-tune a network to the lines kept in a folder, with the preset "personal" and general lines mixed in.

    The general lines are those of the embedded sample (synthetic). A teaching that is stopped gives what its best
    whole round has brought. Chapter 8: notebooks/08_teach_it_your_hand.ipynb.

    Arguments:
        recognizer: what to start from; it is not changed.
        folder: of :func:`hwrlib.app.corrections.save_line`.
        network: a folder for the weights, if they got better.
        on_step: of the :class:`hwrlib.training.Trainer`.

    Returns:
        a recognizer with the weights that read the held-out lines best, the given one where no others did; and what
        the teaching has brought, in words. The held-out lines chose the weights, so the gain is a little smaller.

    Raises:
        DataError: too few lines that can be learnt from, or a folder that cannot be read.
        TrainingError, OSError: as :class:`hwrlib.training.Trainer`.
    """
    rows, usable, whys = load_lines("train", folder), [], []
    for number in range(len(rows)):
        try:
            prepare_lines(rows.select([number]), recognizer.model.alphabet, recognizer.model.width_divisor)
            usable.append(number)
        except DataError as error:
            why = str(error).splitlines()[0].split(": ", 1)[-1]  # without the row's place, and what the command offers
            whys.append(f" Left out: {rows[number]['text']!r}: {why}.")
    left_out = "".join(whys[:3])
    if len(usable) < LEAST:
        raise DataError(
            f"{len(usable)} of {len(rows)} kept lines can be learnt from; keep at least {LEAST}, better 20.{left_out}"
        )
    learnt, held_out = hold_out(rows.select(usable))
    settings = dataclasses.replace(PRESETS["personal"], precision=recognizer.precision)
    general = load_lines("train", "sample")
    with tempfile.TemporaryDirectory() as run:
        trainer = make_trainer(recognizer.model, learnt, held_out, run, settings, replay_rows=general, on_step=on_step)
        trainer.run(bar=False)
        rates = [row["cer"] for row in trainer.history]
        if len(rates) < 2:
            return recognizer, "Stopped. The network has not changed."
        now = "No round was better, so the network stays as it was."
        if min(rates) < rates[0]:
            best = CRNN.from_pretrained(Path(run) / "best")
            best.save_pretrained(network)
            recognizer = Recognizer(best.to(recognizer.device), recognizer.precision, recognizer.decoder)
            now = "The app now uses the new weights."
    lines = f"{len(held_out)} held-out line{'s' * (len(held_out) != 1)}"
    change = f"{rates[0]:.1%} before, {min(rates):.1%} after learning from {len(learnt)} others"
    return recognizer, f"Wrong characters (CER) on {lines}: {change}. {now}{left_out}"
