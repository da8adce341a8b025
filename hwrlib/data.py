"""Lines and transcripts: loaded from anywhere, prepared once, put together in batches (chapters 1 and 2)."""

import copy
import io
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler
from tqdm.auto import tqdm

from hwrlib.alphabet import Alphabet
from hwrlib.augment import augment, render_strokes
from hwrlib.images import prepare_pixels, to_tensor
from hwrlib.model import check_fits, required_steps
from hwrlib.words import cut_words

SAMPLE = Path(__file__).parent / "samples"
HUB = "Teklia/IAM-line"

# The texts of the LOB corpus (Johansson et al., 1978) that IAM's validation and test lines were copied from, as line
# ids begin. Pen-stroke forms marked z cut the same texts anew (62 of our 467 validation lines), so they stay out.
HELD_OUT = r"(c0[46]|d0[13-7]|e0[16]|f0[47]|g0[12347]|h01|m0[12346]|n0[12346]|p0[1236])-\d+z-"


class DataError(ValueError):
    """A data set that cannot be used; the message names the row and says why."""


def load_lines(split: str = "train", source: str | Path = "iam") -> datasets.Dataset:
    """Load the lines of one split: a data set with the columns ``image`` and ``text``.

    Chapter 1 teaches it: notebooks/01_explore_the_lines.ipynb.

    Arguments:
        split: "train", "validation" or "test"; any split name where the source is a path.
        source: "iam" (``Teklia/IAM-line`` from the Hugging Face Hub), "sample" (the embedded, synthetic lines), or
            a path: a parquet file, a folder of parquet files named after their splits (the Hub's layout), or a folder
            of images with ``metadata.csv`` or ``metadata.jsonl`` (``file_name``, ``text``): one folder per split, or
            one for all, which is then "train".

    Raises:
        FileNotFoundError: no such path, or nothing of that split in it.
        DataError: a missing column, an empty transcript, a missing or unreadable image; the row is named.

    >>> lines = load_lines("validation", "sample")
    >>> sorted({"image", "text"} & set(lines.column_names))
    ['image', 'text']
    """
    if source == "iam":
        return datasets.load_dataset(HUB, split=split)
    path = SAMPLE if source == "sample" else Path(source)
    if not path.exists():
        raise FileNotFoundError(f'{path}: no such file or folder; a source is "iam", "sample" or a path')
    files = [path] if path.suffix == ".parquet" else _parquet_files(path, split)
    lines = _from_parquet(files) if files else _from_image_folder(path, split)
    _check_rows(lines, path)
    return lines.cast_column("image", datasets.Image())


def load_strokes(path: str | Path, alphabet: Alphabet, seed: int = 0) -> datasets.Dataset:
    """Pen strokes (columns ``strokes``, ``text``) rendered as lines; characters outside the alphabet are dropped.

    Where there is a ``line_id``, forms that share their text with IAM's validation or test lines stay out.
    """
    table = datasets.Dataset.from_parquet(str(path))
    if "line_id" in table.column_names:
        table = table.filter(lambda line_id: not re.match(HELD_OUT, line_id), input_columns="line_id")
    table = table.select_columns(["strokes", "text"])

    def render(row, index):
        line = render_strokes(row["strokes"], np.random.default_rng((seed, index)))
        return {"image": Image.fromarray(line), "text": alphabet.drop(row["text"])}

    features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    return table.map(render, with_indices=True, remove_columns=["strokes"], features=features)


def _parquet_files(folder: Path, split: str) -> list[Path]:
    return [f for place in (folder, folder / "data") for f in sorted(place.glob(f"{split}*.parquet"))]


def _from_parquet(files: list[Path]) -> datasets.Dataset:
    lines = datasets.Dataset.from_parquet([str(f) for f in files])
    _need_columns(lines.column_names, ("image", "text"), files[0])
    return lines.cast_column("image", datasets.Image(decode=False))


def _from_image_folder(path: Path, split: str) -> datasets.Dataset:
    folders = (path / split, path) if split == "train" else (path / split,)  # without folders per split, all is "train"
    places = [f / n for f in folders for n in ("metadata.csv", "metadata.jsonl") if (f / n).exists()]
    if not places:
        raise FileNotFoundError(
            f"{path}: found neither {split}*.parquet nor metadata.csv or metadata.jsonl for the split {split!r}"
        )
    metadata = places[0]
    if metadata.suffix == ".csv":
        table = pd.read_csv(metadata, dtype=str, keep_default_na=False)
    else:
        table = pd.read_json(metadata, lines=True, dtype=False)  # "007" stays a text
    _need_columns(table.columns, ("file_name", "text"), metadata)
    images = [str(metadata.parent / name) for name in table.file_name]
    texts = table.text.astype(object).where(table.text.notna(), None).tolist()  # None: the row is named later
    return datasets.Dataset.from_dict({"image": images, "text": texts}).cast_column(
        "image", datasets.Image(decode=False)
    )


def _need_columns(columns, needed: tuple[str, str], source: Path) -> None:
    missing = [c for c in needed if c not in columns]
    if missing:
        raise DataError(f"{source}: no column {' and '.join(missing)}; it has {', '.join(columns)}")


def _check_rows(lines: datasets.Dataset, source: Path) -> None:
    """Refuse empty transcripts and files that are no images, before anybody waits for a training to meet them."""
    if not len(lines):
        raise DataError(f"{source}: it holds no line")
    for row, line in enumerate(lines):
        text, image = line["text"], line["image"]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{source}, row {row}: the transcript is empty; write what the image says or drop the row")
        if not image or not (image["bytes"] or image["path"]):
            raise DataError(f"{source}, row {row} ({text!r}): it has no image")
        try:
            Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]).close()
        except OSError as error:
            raise DataError(f"{source}, row {row} ({text!r}): the image cannot be read: {error}") from error


class Lines(Dataset):
    """Prepared lines in memory: decoded once, kept as uint8, never decoded again.

    Arguments:
        lines: rows with ``image`` and ``text``.
        alphabet: encodes the transcripts.
        squeeze: see :func:`hwrlib.prepare`.
        strength: of augmentation, 0 (none) to 1; see :func:`hwrlib.augment.augment`.
        seed: of augmentation; line, epoch and seed decide it, so that a resumed run repeats it.

    Raises:
        DataError: an image that cannot be prepared, a transcript outside the alphabet, or a line too narrow for its
            transcript; the row is named.
    """

    def __init__(self, lines, alphabet: Alphabet, squeeze: float = 1.0, strength: float = 0.0, seed: int = 0):
        self.epoch, self.strength, self.seed, self.squeeze, self.alphabet = 0, strength, seed, squeeze, alphabet
        self.texts, self.labels, self.pixels = [], [], []
        for row in tqdm(range(len(lines)), "preparing", leave=False, disable=len(lines) < 1000):
            try:
                line = lines[row]
                self.labels.append(alphabet.encode(line["text"]))
                self.pixels.append(prepare_pixels(line["image"], squeeze=squeeze))
                check_fits(self.pixels[-1].shape[1], line["text"], alphabet)
            except (ValueError, OSError) as error:  # datasets decodes the image: a damaged one raises OSError
                raise DataError(f"row {row}: {error}") from error
            self.texts.append(line["text"])

    @property
    def widths(self) -> np.ndarray:
        """Pixels, each line's."""
        return np.array([p.shape[1] for p in self.pixels], dtype=np.int64)

    def extend(self, others: "Lines") -> None:
        """Take in the lines of another data set, prepared in the same way."""
        self.texts += others.texts
        self.labels += others.labels
        self.pixels += others.pixels

    def words(self) -> "Lines":
        """The words that can be cut from these lines without doubt; see :func:`hwrlib.words.cut_words`."""
        words = copy.copy(self)
        pieces = [p for line in zip(self.pixels, self.texts, strict=True) for p in cut_words(*line)]
        pieces = [(p, t) for p, t in pieces if p.shape[1] // 4 - 1 >= required_steps(self.alphabet.encode(t))]
        words.pixels = [np.ascontiguousarray(pixels) for pixels, _ in pieces]
        words.texts = [text for _, text in pieces]
        words.labels = [self.alphabet.encode(text) for text in words.texts]
        return words

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int):
        pixels = self.pixels[index]
        if self.strength:
            rng = np.random.default_rng((self.seed, self.epoch, index))
            pixels = augment(pixels, rng, self.strength, self.squeeze)
        return pixels, self.labels[index], self.texts[index]


@dataclass(frozen=True)
class Batch:
    """Lines put together: images (N, 1, 128, W), widths (N,), labels end to end, label_lengths (N,), texts."""

    images: torch.Tensor
    widths: torch.Tensor
    labels: torch.Tensor
    label_lengths: torch.Tensor
    texts: list[str]

    def to(self, device) -> "Batch":
        """The batch with its images and labels on a device; lengths stay on the CPU, where CTC reads them."""
        images = self.images.to(device, memory_format=torch.channels_last, non_blocking=True)
        return Batch(images, self.widths, self.labels.to(device, non_blocking=True), self.label_lengths, self.texts)


def collate(lines, multiple: int = 1) -> Batch:
    """Put lines of unequal width together, padded on the right with paper (+1) to the widest.

    Arguments:
        lines: (pixels (128, W) uint8, labels, text) of each line, as :class:`Lines` gives them.
        multiple: pixels; the width is rounded up to it, so that few shapes recur and kernels are prepared once.

    >>> batch = collate([(np.full((128, 40), 255, np.uint8), [1], "a"), (np.zeros((128, 16), np.uint8), [2, 3], "bc")])
    >>> batch.images.shape, batch.widths.tolist(), batch.images[1, 0, 0, 15:17].tolist()
    (torch.Size([2, 1, 128, 40]), [40, 16], [-1.0, 1.0])
    """
    pixels, labels, texts = zip(*lines, strict=True)
    widths = torch.tensor([p.shape[1] for p in pixels])
    widest = -(-int(widths.max()) // multiple) * multiple
    images = torch.ones(len(pixels), 1, pixels[0].shape[0], widest)
    for image, line in zip(images, pixels, strict=True):
        image[..., : line.shape[1]] = to_tensor(line)
    flat = torch.tensor([label for line in labels for label in line])
    return Batch(images, widths, flat, torch.tensor([len(line) for line in labels]), list(texts))


class BucketSampler(Sampler[list[int]]):
    """Batches of lines of like width, in an order shuffled anew each epoch, so that little is spent on padding.

    Each process gets its share of every batch; together they see each line exactly once an epoch.

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

    POOL = 32  # batches sorted together: the widths of a batch are alike, yet its lines change from epoch to epoch

    def __init__(self, widths, batch_size: int, seed: int = 0, rank: int = 0, processes: int = 1):
        if len(widths) < processes:
            raise DataError(f"{len(widths)} lines are too few for {processes} processes: each needs one")
        self.widths, self.batch_size, self.seed = np.asarray(widths), batch_size, seed
        self.rank, self.processes = rank, processes
        self.epoch = self.start = 0

    def resume(self, epoch: int, start: int = 0) -> None:
        """Go to an epoch, leaving out its first ``start`` batches, which a stopped run has seen."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        lines = len(self.widths)
        return min(-(-lines // (self.batch_size * self.processes)), lines // self.processes)  # none is empty anywhere

    def __iter__(self):
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.widths))
        size = self.batch_size * self.processes * self.POOL
        pools = [order[k : k + size] for k in range(0, len(order), size)]
        order = np.concatenate([pool[np.argsort(self.widths[pool], kind="stable")] for pool in pools])
        batches = np.array_split(order, len(self))
        for k in rng.permutation(len(batches))[self.start :]:
            yield batches[k][self.rank :: self.processes].tolist()
