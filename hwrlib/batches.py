"""Prepared lines and how they come in batches: words cut from lines, buckets of like width, padding (chapters 2, 4)."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from tqdm.auto import tqdm

from hwrlib.alphabet import Alphabet
from hwrlib.augment import PAPER, augment
from hwrlib.ctc import check_fits, frames, required_frames
from hwrlib.images import prepare_pixels, scale
from hwrlib.metadata import DataError

PUNCTUATION = set("!\"#&'()*+,-./:;?")
CLEAR = 1.25  # a gap between words must be this many times wider than any gap within one
UNEVEN = 2.2  # a word whose pixels per character are this many times off the line's median was cut wrongly
POOL = 32  # batches sorted together: the widths of a batch are alike, yet its lines change from epoch to epoch


@dataclass(frozen=True, slots=True)
class PreparedLine:
    """A line as training sees it.

    Arguments:
        pixels: uint8 (128, W), paper 255.
        text: what it says.
        labels: of the text, as ``Alphabet.encode`` gives them.
    """

    pixels: np.ndarray
    text: str
    labels: list[int]


def prepare_lines(rows, alphabet: Alphabet, width_divisor: float = 1.0) -> list[PreparedLine]:
    """Prepare lines once, to be kept in memory as uint8 and never decoded again.

    Chapter 4: notebooks/04_train_on_colab.ipynb.

    Arguments:
        rows: with ``image`` and ``text``.
        alphabet: encodes the transcripts.
        width_divisor: see :func:`hwrlib.prepare`.

    Raises:
        DataError: an image that cannot be prepared, a transcript outside the alphabet, or a line too narrow for its
            transcript; the row is named.
    """
    lines = []
    for number in tqdm(range(len(rows)), "preparing", leave=False, disable=len(rows) < 1000):
        try:
            row = rows[number]  # decodes its image
            labels = alphabet.encode(row["text"])
            pixels = prepare_pixels(row["image"], width_divisor=width_divisor)
            check_fits(pixels.shape[1], row["text"], alphabet)
        except ValueError as error:
            raise DataError(f"row {number}: {error}") from error
        lines.append(PreparedLine(pixels, row["text"], labels))
    return lines


class AugmentedLines(Dataset):
    """Prepared lines that look different in every epoch.

    Chapter 4: notebooks/04_train_on_colab.ipynb.

    Arguments:
        lines: prepared lines.
        strength: of augmentation, 0 (none) to 2; see :func:`hwrlib.augment.augment`.
        width_divisor: that the lines were prepared with.
        seed: line, epoch and seed decide the augmentation, so that a resumed run repeats it.
    """

    def __init__(self, lines: Sequence[PreparedLine], strength: float = 1.0, width_divisor: float = 1.0, seed: int = 0):
        self.lines, self.strength, self.width_divisor, self.seed = lines, strength, width_divisor, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> PreparedLine:
        line = self.lines[index]
        if not self.strength:
            return line
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return PreparedLine(augment(line.pixels, rng, self.strength, self.width_divisor), line.text, line.labels)


def rehearse(
    own: list[PreparedLine], general: list[PreparedLine], least: int = 32, seed: int = 0
) -> list[PreparedLine]:
    """Own lines, repeated where they are few, and as many general ones.

    Repeated lines differ by augmentation. The general ones keep the network from forgetting them: rehearsal (Robins,
    "Catastrophic forgetting, rehearsal and pseudorehearsal", 1995). Chapter 8: notebooks/08_teach_it_your_hand.ipynb.

    Arguments:
        own: prepared lines.
        general: prepared lines to draw from; none for own lines alone.
        least: own lines, repetitions counted, that make an epoch.
        seed: decides which general lines are drawn.

    Raises:
        DataError: no own lines.
    """
    if not own:
        raise DataError("there are no own lines to train on; give at least one")
    mixed = own * -(-least // len(own))
    if general:
        drawn = np.random.default_rng(seed).choice(len(general), len(mixed), replace=len(general) < len(mixed))
        mixed = mixed + [general[k] for k in drawn]
    return mixed


def cut_words(line: PreparedLine, alphabet: Alphabet) -> list[PreparedLine]:
    """Cut a line at its widest gaps into as many pieces as its transcript has words: short first lessons for CTC.

    Chapter 4: notebooks/04_train_on_colab.ipynb.

    Arguments:
        line: the line; punctuation stays with its neighbour.
        alphabet: encodes the words.

    Returns:
        its words; none where the gaps leave a doubt. About two of three IAM lines can be cut.

    >>> from hwrlib.alphabet import IAM
    >>> pixels = np.full((128, 300), 255, np.uint8); pixels[40:90, 20:120] = 0; pixels[40:90, 180:280] = 0
    >>> [(word.pixels.shape, word.text) for word in cut_words(PreparedLine(pixels, "two words", []), IAM)]
    [((128, 149), 'two'), ((128, 151), 'words')]
    >>> cut_words(PreparedLine(pixels, "three words here", []), IAM)
    []
    """
    words = _words(line.text)
    inked = np.flatnonzero((line.pixels < 128).any(axis=0))
    gaps = np.diff(inked)
    widest = np.argsort(gaps)[::-1]
    cuts = len(words) - 1
    if cuts < 1:
        return [line] if words else []
    if len(gaps) <= cuts or gaps[widest[cuts - 1]] < CLEAR * max(2, gaps[widest[cuts]]):
        return []
    middles = sorted((inked[k] + inked[k + 1]) // 2 for k in widest[:cuts])
    pieces = list(itertools.pairwise([0, *middles, line.pixels.shape[1]]))
    pitch = np.array([(end - begin) / (len(word) + 1) for (begin, end), word in zip(pieces, words, strict=True)])
    if pitch.max() > UNEVEN * np.median(pitch) or pitch.min() < np.median(pitch) / UNEVEN:
        return []
    cut = [
        PreparedLine(np.ascontiguousarray(line.pixels[:, begin:end]), word, alphabet.encode(word))
        for (begin, end), word in zip(pieces, words, strict=True)
    ]
    return [word for word in cut if frames(word.pixels.shape[1]) >= required_frames(word.labels)]


def _words(transcript: str) -> list[str]:
    """Words, each with the punctuation that IAM sets apart from it by a space."""
    words: list[str] = []
    for token in transcript.split():
        if words and (set(token) <= PUNCTUATION or set(words[-1].rsplit(" ", 1)[-1]) <= set("\"('")):
            words[-1] += " " + token
        else:
            words.append(token)
    return words


@dataclass(frozen=True)
class Batch:
    """Lines put together.

    Arguments:
        images: (N, 1, 128, W) uint8, ink near 0 and paper 255; after :meth:`to` float32, from -1 (ink) to +1 (paper).
        widths: (N,) pixels, each line's own.
        labels: of all lines, end to end.
        label_lengths: (N,).
        texts: N transcripts.
    """

    images: torch.Tensor
    widths: torch.Tensor
    labels: torch.Tensor
    label_lengths: torch.Tensor
    texts: list[str]

    def pin_memory(self) -> "Batch":
        """The batch in memory that a GPU copies from by itself, as a DataLoader asks for it."""
        return dataclasses.replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())

    def to(self, device: str | torch.device) -> "Batch":
        """The batch on a device, its images sent as bytes and scaled there; lengths stay on the CPU, as CTC wants."""
        images = self.images.to(device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = scale(images)
        return dataclasses.replace(self, images=images, labels=self.labels.to(device, non_blocking=True))


def collate(lines: Sequence[PreparedLine], multiple: int = 1) -> Batch:
    """Put lines of unequal width together, padded on the right with paper to the widest.

    Chapter 2: notebooks/02_prepare_the_images.ipynb.

    Arguments:
        lines: one or more.
        multiple: pixels; the width is rounded up to it, so that few shapes recur and kernels are prepared once.

    >>> wide, narrow = np.full((128, 40), 255, np.uint8), np.zeros((128, 16), np.uint8)
    >>> batch = collate([PreparedLine(wide, "a", [1]), PreparedLine(narrow, "bc", [2, 3])])
    >>> batch.images.shape, batch.widths.tolist(), batch.images[1, 0, 0, 15:17].tolist()
    (torch.Size([2, 1, 128, 40]), [40, 16], [0, 255])
    >>> batch.to("cpu").images[1, 0, 0, 15:17].tolist()
    [-1.0, 1.0]
    """
    widths = torch.tensor([line.pixels.shape[1] for line in lines])
    widest = -(-int(widths.max()) // multiple) * multiple
    images = torch.full((len(lines), 1, lines[0].pixels.shape[0], widest), PAPER, dtype=torch.uint8)
    for image, line in zip(images, lines, strict=True):
        image[0, :, : line.pixels.shape[1]] = torch.from_numpy(line.pixels)
    labels = torch.tensor([label for line in lines for label in line.labels], dtype=torch.long)
    return Batch(images, widths, labels, torch.tensor([len(line.labels) for line in lines]), [x.text for x in lines])


class BucketSampler(Sampler[list[int]]):
    """Batches of lines of like width, in an order shuffled anew each epoch, so that little is spent on padding.

    Each process gets its share of every batch; together they see each line exactly once an epoch.
    Chapter 4: notebooks/04_train_on_colab.ipynb.

    Arguments:
        widths: (number of lines,) pixels.
        batch_size: lines in a batch of one process.
        seed: with the epoch, decides the order.
        rank, processes: which share, of how many.

    Raises:
        DataError: fewer lines than processes.

    >>> sampler = BucketSampler([90, 10, 80, 20], batch_size=2)
    >>> sorted(sorted(batch) for batch in sampler)
    [[0, 2], [1, 3]]
    """

    def __init__(self, widths: Iterable[int], batch_size: int, seed: int = 0, rank: int = 0, processes: int = 1):
        self.widths, self.batch_size, self.seed = np.asarray(widths), batch_size, seed
        if len(self.widths) < processes:
            raise DataError(f"{len(self.widths)} lines are too few for {processes} processes: each needs one")
        self.rank, self.processes = rank, processes
        self.epoch = self.start = 0

    def go_to(self, epoch: int, start: int = 0) -> None:
        """Go to an epoch, leaving out its first ``start`` batches, which a stopped run has seen."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        lines = len(self.widths)
        return min(-(-lines // (self.batch_size * self.processes)), lines // self.processes)  # none is empty anywhere

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.widths))
        size = self.batch_size * self.processes * POOL
        pools = [order[k : k + size] for k in range(0, len(order), size)]
        order = np.concatenate([pool[np.argsort(self.widths[pool], kind="stable")] for pool in pools])
        batches = np.array_split(order, len(self))
        for k in rng.permutation(len(batches))[self.start :]:
            yield batches[k][self.rank :: self.processes].tolist()
