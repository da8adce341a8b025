"""What a training does: its settings, the two presets that chapter 4 compares, and that of chapter 8."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a training does.

    epochs, minutes: it ends at whichever comes first. batch_size: lines a batch, of one process. learning_rate: the
    highest. warmup: steps up to it. cosine: down to zero at the end, instead of halving when validation stalls.
    weight_decay: AdamW's; 0 is Adam. average: decay of the exponential moving average of the weights, 0 for none.
    auxiliary: weight of a second CTC head right after the convolutions (Retsinas et al., 2022). strength: of
    augmentation. patience: epochs without a better CER than any before, the start's included, after which it stops.
    clip: largest norm of the gradient. frozen: the convolutions stay as they are (chapter 8).
    """

    epochs: int = 100
    minutes: float | None = None
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup: int = 100
    cosine: bool = True
    weight_decay: float = 1e-2
    average: float = 0.999
    auxiliary: float = 0.1
    strength: float = 1.0
    patience: int | None = None
    clip: float = 5.0
    seed: int = 0
    precision: str | None = None
    frozen: bool = False


PRESETS = {
    "recipe": Settings(),
    "reference": Settings(
        epochs=10, batch_size=8, warmup=0, cosine=False, weight_decay=0, average=0, auxiliary=0, strength=0
    ),
    "personal": Settings(
        epochs=10, batch_size=4, learning_rate=2e-4, warmup=8, average=0, auxiliary=0, strength=0.5, patience=3
    ),
}
