"""What a training does: its settings, the two presets that chapter 4 compares, and that of chapter 8."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """The flags of ``python -m hwrlib train``; some have a range, and a ValueError names one outside it."""

    epochs: int = 100  # the training ends after so many, or after so many minutes, whichever comes first
    minutes: float | None = None
    batch_size: int = 16  # lines, of one process
    learning_rate: float = 1e-3  # the highest
    warmup: int = 100  # steps that lead up to it
    # "fall": warm up, hold, then linearly to zero over the last quarter of the steps or minutes; "hold": warm up and
    # hold, so that runs chain; "plateau": no warm-up, halved after four epochs without a better CER.
    schedule: Literal["fall", "hold", "plateau"] = "fall"
    weight_decay: float = 1e-2  # AdamW's; 0 is Adam
    ema_decay: float = 0.999  # of the exponential moving average of the weights, which is validated and kept; 0: none
    aux_weight: float = 0.1  # of a second CTC head after the convolutions (Retsinas et al., 2022); 0: none
    augmentation: float = 1.0  # its strength, 0 to 2; see hwrlib.augment.augment
    patience: int | None = None  # epochs without a better CER than any before, the start's included; then it stops
    clip: float = 5.0  # the greatest norm of the gradient
    seed: int = 0  # decides the first weights, the order of the lines, their augmentation and the dropout
    precision: Literal["fp32", "bf16", "fp16"] | None = None  # None takes what is fast on this machine
    frozen: bool = False  # the convolutions stay as they are (chapter 8)

    def __post_init__(self):
        ranges = {"epochs": (1, 1_000_000), "batch_size": (1, 4096), "ema_decay": (0, 1), "augmentation": (0, 2)}
        ranges["seed"] = (0, 2**32 - 1)
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number from {least:,} to {most:,}")


def learning_rate_at(step: int, done: float, settings: Settings) -> float:
    """The learning rate of "fall" and "hold" after so many steps, where ``done`` (0 to 1) of the training is behind us.

    >>> [learning_rate_at(step, step / 100, Settings(learning_rate=8.0e-4, warmup=4)) for step in (0, 3, 75, 100)]
    [0.0002, 0.0008, 0.0008, 0.0]
    """
    warmed = settings.learning_rate * min(1, (step + 1) / max(1, settings.warmup))
    return warmed * min(1, 4 * (1 - done)) if settings.schedule == "fall" else warmed


PRESETS = {
    "recipe": Settings(),
    "reference": Settings(
        epochs=10, batch_size=8, warmup=0, schedule="plateau", weight_decay=0, ema_decay=0, aux_weight=0, augmentation=0
    ),
    "personal": Settings(
        epochs=10, batch_size=4, learning_rate=2e-4, warmup=8, ema_decay=0, aux_weight=0, augmentation=0.5, patience=3
    ),
}
