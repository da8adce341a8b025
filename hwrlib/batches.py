"""Prepared lines and how they come in batches: augmented, in buckets of like width, padded (chapters 2, 4)."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from hwrlib.alphabet import Alphabet
from hwrlib.augment import PAPER, augment
from hwrlib.ctc import STRIDE, frames, required_frames
from hwrlib.files import DataError, refuse_rows
from hwrlib.images import prepare_pixels, scale

POOL = 32  # batches sorted together: the widths of a batch are alike, yet its lines change from epoch to epoch


@dataclass(frozen=True, slots=True)
class PreparedLine:
    """A line as training sees it: uint8 pixels (128, W), paper 255; what it says; the same as labels."""

    pixels: np.ndarray
    text: str
    labels: list[int]


def prepare_lines(rows, alphabet: Alphabet, width_divisor: float = 1.0, skip_bad: bool = False) -> list[PreparedLine]:
    """Prepare rows of ``image`` and ``text`` once, to be kept in memory as uint8 and never decoded again.

    A DataError names all rows with an image that cannot be prepared, a text outside the alphabet, or more text than CTC
    can write in so narrow a line; ``skip_bad`` leaves them out and says so on standard error.
    """
    lines, bad = [], []
    for number in tqdm(range(len(rows)), "preparing", leave=False, disable=len(rows) < 1000):
        name = f"row {number}"
        try:
            row = rows[number]  # decodes its image
            name = row.get("origin", name)
            pixels, labels = prepare_pixels(row["image"], width_divisor=width_divisor), alphabet.encode(row["text"])
            width, given, needed = pixels.shape[1], frames(pixels.shape[1]), required_frames(labels)
            if given < needed:
                raise ValueError(
                    f"{width} px give {given} frames, but CTC needs {needed} for {row['text']!r}: the image must be at "
                    f"least {STRIDE * (needed + 1)} px wide, or its transcript belongs to another line"
                )
            lines.append(PreparedLine(pixels, row["text"], labels))
        except ValueError as error:
            bad.append(f"{name}: {error}")
    refuse_rows(bad, skip_bad)
    if not lines:
        raise DataError(f"none of the {len(rows)} lines can be used")
    return lines


class AugmentedLines(Dataset):
    """Prepared lines that look different in every epoch: line, ``epoch`` and seed decide how, also in a resumed run."""

    def __init__(self, lines: list[PreparedLine], augmentation: float = 1, width_divisor: float = 1, seed: int = 0):
        self.lines, self.augmentation, self.width_divisor, self.seed = lines, augmentation, width_divisor, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> PreparedLine:
        line, rng = self.lines[index], np.random.default_rng((self.seed, self.epoch, index))
        return dataclasses.replace(line, pixels=augment(line.pixels, rng, self.augmentation, self.width_divisor))


def replay(own: list[PreparedLine], general: list[PreparedLine], least: int = 32, seed: int = 0) -> list[PreparedLine]:
    """Own lines, repeated where they are fewer than ``least``, and as many general ones, drawn by chance.

    Repeated lines differ by augmentation. The general ones keep the network from forgetting them: rehearsal (Robins,
    "Catastrophic forgetting, rehearsal and pseudorehearsal", 1995), chapter 8.
    """
    mixed = own * -(-least // len(own))
    if general:
        drawn = np.random.default_rng(seed).choice(len(general), len(mixed), replace=len(general) < len(mixed))
        mixed = mixed + [general[k] for k in drawn]
    return mixed


class Batch(NamedTuple):
    """Lines put together; :meth:`to` makes the images float32, from -1 (ink) to +1 (paper)."""

    images: torch.Tensor  # (N, 1, 128, W) uint8, ink near 0 and paper 255
    widths: torch.Tensor  # (N,) pixels, each line's own
    labels: torch.Tensor  # of all lines, end to end
    label_lengths: torch.Tensor  # (N,)
    texts: list[str]

    def to(self, device: str | torch.device, non_blocking: bool = True) -> "Batch":
        """The batch on a device, its images sent as bytes and scaled there; lengths stay on the CPU, as CTC wants."""
        images, labels = (part.to(device, non_blocking=non_blocking) for part in (self.images, self.labels))
        return self._replace(images=scale(images) if images.dtype == torch.uint8 else images, labels=labels)

    def ctc_loss(self, log_probs: torch.Tensor) -> torch.Tensor:
        """CTC's loss of what a network gives for these images, (N, T, classes), all T frames being every line's own."""
        lengths = torch.full((len(log_probs),), log_probs.shape[1])
        arguments = log_probs.transpose(0, 1), self.labels, lengths, self.label_lengths
        try:
            return nn.functional.ctc_loss(*arguments, zero_infinity=True)
        except NotImplementedError:  # a Mac's GPU has none
            return nn.functional.ctc_loss(*(x.cpu() for x in arguments), zero_infinity=True).to(log_probs.device)


def pad(pixels: Sequence[np.ndarray], multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Lines (128, W) put together, padded on the right with paper: uint8 (N, 1, 128, W), and each line's own width.

    All get the width of the widest, rounded up to a multiple, so that few shapes recur and kernels are prepared once.
    """
    widths = torch.tensor([line.shape[1] for line in pixels])
    widest = -(-int(widths.max()) // multiple) * multiple
    lines = [np.pad(line, ((0, 0), (0, widest - line.shape[1])), constant_values=PAPER) for line in pixels]
    return torch.from_numpy(np.stack(lines)[:, None]), widths


def collate(lines: Sequence[PreparedLine], multiple: int = 1) -> Batch:
    """Put lines together as :func:`pad` does, with their labels and texts."""
    labels = torch.tensor([label for line in lines for label in line.labels], dtype=torch.long)
    lengths = torch.tensor([len(line.labels) for line in lines])
    return Batch(*pad([line.pixels for line in lines], multiple), labels, lengths, [line.text for line in lines])


class BucketSampler(Sampler[list[int]]):
    """Batches of lines of like width, in an order shuffled anew each ``epoch``, so that little is spent on padding.

    The number of batches is a multiple of that of the processes which share them. Each line comes once an epoch.
    """

    def __init__(self, widths: Sequence[int], batch_size: int, seed: int = 0, multiple: int = 1):
        # Accelerate takes batches of unequal sizes from a sampler without an attribute batch_size.
        self.widths, self.size, self.seed, self.multiple = np.asarray(widths), batch_size, seed, multiple
        self.epoch = 0

    def __len__(self) -> int:
        lines, times = len(self.widths), self.multiple
        return min(-(-lines // (self.size * times)), max(1, lines // times)) * times  # none of them is empty

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.widths))
        pools = np.split(order, range(self.size * POOL, len(order), self.size * POOL))
        order = np.concatenate([pool[np.argsort(self.widths[pool], kind="stable")] for pool in pools])
        batches = np.array_split(order, len(self))
        for k in rng.permutation(len(batches)):
            yield batches[k].tolist()


def load_batches(lines: AugmentedLines, sampler: BucketSampler, on_gpu: bool) -> DataLoader:
    """A loader of batches, for a GPU from worker processes; few widths, so that its kernels are prepared once."""
    return DataLoader(
        lines,
        batch_sampler=sampler,
        collate_fn=functools.partial(collate, multiple=64),
        num_workers=min(8, os.cpu_count() or 1) if on_gpu else 0,
        worker_init_fn=_begin_worker,
        pin_memory=on_gpu,
        generator=torch.Generator(),  # its own, so that a resumed run draws the same dropout
    )


def _begin_worker(_: int) -> None:
    """The run ends its workers, not Ctrl-C or ``timeout``, which signal a group; and each has one core, no threads."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    cv2.setNumThreads(0)
    # It sends arrays, by a pipe: tensors need more shared memory than Docker gives.
    ForkingPickler.register(torch.Tensor, lambda tensor: (torch.from_numpy, (tensor.numpy(),)))
