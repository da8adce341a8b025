"""What a training does: its settings, the two presets that chapter 4 compares, and that of chapter 8."""

import dataclasses
import json
import typing

# Least and greatest value of each number, and the words that a word can be.
RANGES = {
    "epochs": (1, 1_000_000),
    "minutes": (0.001, 1_000_000),
    "batch_size": (1, 4096),
    "learning_rate": (0, 1),
    "warmup": (0, 1_000_000),
    "schedule": ("fall", "hold", "plateau"),
    "weight_decay": (0, 1),
    "average": (0, 1),
    "auxiliary": (0, 10),
    "strength": (0, 2),
    "patience": (1, 1_000_000),
    "clip": (0.001, 1_000_000),
    "seed": (0, 2**63 - 1),
    "precision": ("no", "bf16", "fp16"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a training does; each setting is checked when it is made.

    Chapter 4: notebooks/04_train_on_colab.ipynb.

    Arguments:
        epochs, minutes: the training ends at whichever comes first; None for no limit of minutes.
        batch_size: lines in a batch, of one process.
        learning_rate: the highest.
        warmup: steps up to it.
        schedule: "fall": warm up, hold, then linearly to zero over the last quarter of the steps or minutes; "hold":
            warm up and hold, so that runs chain; "plateau": no warm-up, halved after four epochs without a better CER.
        weight_decay: AdamW's; 0 is Adam.
        average: decay of the exponential moving average of the weights, which is validated and kept; 0 for none.
        auxiliary: weight of a second CTC head after the convolutions (Retsinas et al., 2022); 0 for none.
        strength: of augmentation, 0 to 2; see :func:`hwrlib.augment.augment`.
        patience: epochs without a better CER than any before, the start's included, after which it stops; None: never.
        clip: greatest norm of the gradient.
        seed: decides the first weights, the order of the lines, their augmentation and the dropout.
        precision: "no" (float32), "bf16" or "fp16"; None takes what is fast on this machine.
        frozen: whether the convolutions stay as they are (chapter 8).

    Raises:
        ValueError: a setting of another type or out of its range; both are named.

    >>> Settings(batch_size=0)
    Traceback (most recent call last):
    ValueError: batch_size is 0; give a whole number from 1 to 4,096
    """

    epochs: int = 100
    minutes: float | None = None
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup: int = 100
    schedule: str = "fall"
    weight_decay: float = 1e-2
    average: float = 0.999
    auxiliary: float = 0.1
    strength: float = 1.0
    patience: int | None = None
    clip: float = 5.0
    seed: int = 0
    precision: str | None = None
    frozen: bool = False

    def __post_init__(self):
        for name, kind in typing.get_type_hints(type(self)).items():
            value, kinds = getattr(self, name), typing.get_args(kind) or (kind,)
            if value is None and type(None) in kinds:
                continue
            if not _allowed(value, kinds[0], RANGES.get(name, ())):
                optional = ", or null" if type(None) in kinds else ""
                raise ValueError(f"{name} is {value!r:.60}; give {_wanted(kinds[0], RANGES.get(name, ()))}{optional}")


def _allowed(value: object, kind: type, allowed: tuple) -> bool:
    if kind in (int, float):
        numbers = (int, float) if kind is float else int
        return isinstance(value, numbers) and not isinstance(value, bool) and allowed[0] <= value <= allowed[1]
    return isinstance(value, kind) and (kind is bool or value in allowed)


def _wanted(kind: type, allowed: tuple) -> str:
    if kind in (int, float):
        number = "a whole number" if kind is int else "a number"
        return f"{number} from {allowed[0]:,} to {allowed[1]:,}"
    return " or ".join(allowed or ("true", "false"))


def rate(step: int, done: float, settings: Settings) -> float:
    """The learning rate of the schedules "fall" and "hold"; that of "plateau" hangs on the validation.

    Arguments:
        step: steps taken so far.
        done: the part of the training that is done, 0 to 1.
        settings: of the training.

    >>> [rate(step, step / 100, Settings(learning_rate=8.0e-4, warmup=4)) for step in (0, 3, 75, 100)]
    [0.0002, 0.0008, 0.0008, 0.0]
    """
    warmed = settings.learning_rate * min(1, (step + 1) / max(1, settings.warmup))
    return warmed * min(1, 4 * (1 - done)) if settings.schedule == "fall" else warmed


def parse_setting(text: str) -> tuple[str, object]:
    """A setting as the command line takes it, checked.

    Arguments:
        text: "NAME=VALUE", the value as in JSON: 3, 1e-4, true, null; a word needs no quotes.

    Returns:
        its name, and its value of the right type.

    Raises:
        ValueError: no such setting (those that there are get listed), or no such value.

    >>> parse_setting("learning_rate=1e-4"), parse_setting("schedule=hold"), parse_setting("minutes=null")
    (('learning_rate', 0.0001), ('schedule', 'hold'), ('minutes', None))
    """
    name, _, value = text.partition("=")
    names = [field.name for field in dataclasses.fields(Settings)]
    if name not in names:
        raise ValueError(f"{name!r} is no setting; there are {', '.join(names)}")
    try:
        parsed = json.loads(value)
    except ValueError:  # no JSON: a word
        parsed = value
    return name, getattr(Settings(**{name: parsed}), name)


PRESETS = {
    "recipe": Settings(),
    "reference": Settings(
        epochs=10, batch_size=8, warmup=0, schedule="plateau", weight_decay=0, average=0, auxiliary=0, strength=0
    ),
    "personal": Settings(
        epochs=10, batch_size=4, learning_rate=2e-4, warmup=8, average=0, auxiliary=0, strength=0.5, patience=3
    ),
}
