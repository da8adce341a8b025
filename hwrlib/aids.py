"""Training aids that vanish when the network reads: an auxiliary CTC head, averages, frozen layers (chapters 4, 8)."""

import torch
from torch import nn

from hwrlib.model import CRNN


class WithAuxiliaryHead(nn.Module):
    """The network with a second CTC head right after the convolutions, so that they learn without waiting for the LSTM.

    Retsinas et al., "Best practices for a handwritten text recognition system" (2022).

    Arguments:
        model: the network.
        auxiliary: whether there is such a head; without it this is the network alone.
        frozen: whether the convolutions stay as they are, the statistics of their batch norm included.
    """

    def __init__(self, model: CRNN, auxiliary: bool, frozen: bool = False):
        super().__init__()
        self.model, self.frozen = model, frozen
        self.head = nn.Conv1d(256, model.alphabet.classes, 3, padding=1) if auxiliary else None
        model.cnn.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "WithAuxiliaryHead":
        """Go into training mode; frozen convolutions do not, or batch norm would still count what it sees."""
        super().train(mode)
        if self.frozen:
            self.model.cnn.eval()
        return self

    def forward(self, images: torch.Tensor, widths: torch.Tensor) -> list[torch.Tensor]:
        """Log-probabilities (N, T, classes) of the network, then of the auxiliary head where there is one."""
        sequence = self.model.features(images, widths)
        log_probs = [self.model.classify(sequence, widths)]
        if self.head is not None:
            log_probs.append(self.head(sequence.transpose(1, 2)).transpose(1, 2).float().log_softmax(-1))
        return log_probs


@torch.no_grad()
def follow(averaged: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move averaged weights (and batch norm's statistics) towards the current ones: an exponential moving average.

    Arguments:
        averaged, model: two networks of the same form; the first is changed.
        step: steps taken so far; the average follows faster at first, while the weights are far from good.
        decay: 0 to 1, the share that is kept in the long run.

    >>> averaged, model = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = averaged.weight.data.fill_(0), model.weight.data.fill_(1)
    >>> follow(averaged, model, step=90, decay=0.5)
    >>> averaged.weight.item()
    0.5
    """
    decay = min(decay, (1 + step) / (10 + step))
    for mean, value in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        mean.lerp_(value, 1 - decay) if mean.is_floating_point() else mean.copy_(value)
