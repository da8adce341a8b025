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


def teach(recognizer: Recognizer, folder: str | Path, network: str | Path, on_step: Callable) -> tuple[Recognizer, str]:
    """Fine-tune a network to the lines kept in a folder, with the preset "personal" and general lines mixed in.

    The general lines are those of the embedded sample (synthetic). If the best whole round, also of a teaching that was
    stopped, reads the held-out lines better, its weights go into the folder ``network`` and the recognizer that is
    returned; the given one is not changed. What the teaching has brought is returned in words. (The held-out lines
    chose the weights, so the gain is a little smaller.) A DataError says that too few lines can be learnt from.
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
        few = f"{len(usable)} of {len(rows)} kept lines can be learnt from"
        raise DataError(f"{few}; keep at least {LEAST}, better 20.{left_out}")
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
