"""Read handwriting with a trained network: a line, many, or a page, on whatever machine this is (chapter 7)."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from hwrlib import WEIGHTS
from hwrlib.batches import PreparedLine, collate
from hwrlib.beam import PrefixBeam
from hwrlib.ctc import Character, Reading, frames, greedy
from hwrlib.image_files import load_page
from hwrlib.images import prepare_pixels
from hwrlib.language import Language
from hwrlib.memory import keep_freed
from hwrlib.model import CRNN, fused
from hwrlib.page.lines import PageLine, crop_line, find_lines
from hwrlib.page.places import place_characters, turn_line_back

Picture = str | Path | bytes | Image.Image | np.ndarray
MARGIN = 16  # px of paper put after a line: in training most ended so, and the last letters of a tight cut read badly
DENSE, WIDENED, WIDEST = 3.4, 4.2, 2.0  # frames a character: fewer read badly; brought to so many; by no more times
SURE = 0.85  # of the characters right: a page read worse is turned; upside down reads at up to 0.8, upright at 0.9
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # Accelerate's names


def matmul_rate(
    dtype: torch.dtype, device: str | torch.device = "cpu", size: int = 1024, seconds: float = 0.05
) -> float:
    """Measured rate of matrix products in floating-point operations a second."""
    a = torch.ones(size, size, dtype=dtype, device=device)
    a @ a
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        (a @ a).flatten()[0].item()
        count += 1
    return 2 * size**3 * count / elapsed


def best_precision(device: str | torch.device = "cpu") -> str:
    """The precision that is fast on this machine: "bf16", "fp16" or "no" (float32), the names Accelerate uses.

    A GPU says by its compute capability (float16 before 8, bfloat16 since); a CPU is measured, since some take
    bfloat16 but run it hundreds of times slower than float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if device.type != "cpu":
        return "no"

    def rate(dtype: torch.dtype, size: int, seconds: float) -> float:  # noise only slows, so the best of three
        return max(matmul_rate(dtype, device, size, seconds) for _ in range(3))

    if rate(torch.bfloat16, 128, 0.01) < 0.5 * rate(torch.float32, 128, 0.01):
        return "no"  # where it is very slow, the big product would take minutes
    return "bf16" if rate(torch.bfloat16, 1024, 0.02) > 1.3 * rate(torch.float32, 1024, 0.02) else "no"


def log_odds(share: float | np.ndarray) -> np.ndarray:
    """Logit of a share, or of each of an array, kept finite at 0 and 1."""
    share = np.clip(share, 1e-6, 1 - 1e-6)
    return np.log(share / (1 - share))


def calibrated(confidence: float, offset: float, slope: float) -> float:
    """The share of characters expected to be right, 0 to 1: Platt scaling (Platt, 1999) of a decoder's confidence."""
    return float(1 / (1 + np.exp(-offset - slope * log_odds(confidence))))


def is_line(page: np.ndarray, kind: Literal["line", "page"] | None = None) -> bool:
    """Whether a picture (H, W) is to be read as one line: it is called so, or at least five times as wide as high."""
    height, width = page.shape
    return kind == "line" or (kind is None and width >= 5 * height)


def _lines_or_line(page: np.ndarray, kind: Literal["line", "page"] | None) -> list[PageLine]:
    """The lines that are found; a lone one as a line, which is cropped only where it must be."""
    height, width = page.shape
    lines = [PageLine((0, 0, width, height), page)] if is_line(page, kind) else find_lines(page)
    if kind == "page" or len(lines) != 1:
        return lines
    crop = crop_line(page) or PageLine((0, 0, width, height), page)
    return [dataclasses.replace(crop, box=lines[0].box)]


def expected_right(readings: list[Reading]) -> float:
    """The number of characters that are expected to be right: confidences weighted with their texts' lengths."""
    return sum(reading.confidence * len(reading.text) for reading in readings)


def is_sure(readings: list[Reading]) -> bool:
    """Whether a page seems to be upright: sideways its lines are nothing, unsure or a few characters each."""
    characters = sum(len(reading.text) for reading in readings)
    return characters >= max(1, 5 * len(readings)) and expected_right(readings) >= SURE * characters


def widen(line: np.ndarray, times: float) -> np.ndarray:
    """A prepared line (128, W), uint8, stretched across."""
    return cv2.resize(line, (round(line.shape[1] * times), line.shape[0]), interpolation=cv2.INTER_CUBIC)


def place(character: Character, length: int, stretched: float = 1.0) -> Character:
    """A character on the frames of its line as given, before it was stretched and had paper put after it.

    Arguments:
        character: as it was read.
        length: frames of the line.
        stretched: times by which the line was widened to be read.
    """
    end = min(max(1, round(character.end / stretched)), length)
    return dataclasses.replace(character, begin=min(int(character.begin / stretched), end - 1), end=end)


@dataclasses.dataclass(frozen=True)
class PageReading:
    """How far the reading of a page is.

    Arguments:
        lines: all that were found, from top to bottom; each box lies on the page as given, each image is upright.
        readings: of the first of them.
        quarters: turns clockwise, 0 to 3, after which it was read.
    """

    lines: list[PageLine]
    readings: list[Reading]
    quarters: int = 0


class Recognizer:
    """Reads images of handwritten lines and pages.

    Chapter 7: notebooks/07_read_your_handwriting.ipynb.

    Arguments:
        model: a trained network; it stays on its device. Its ``calibration`` makes confidences come true. What it
            learns later has no effect here: make a new Recognizer.
        precision: "no" (float32), "bf16" or "fp16", for most convolutions: the rest is float32, so that the text hardly
            depends on it; measured on this machine where left out.
        decoder: ``hwrlib.ctc.greedy`` or a ``hwrlib.beam.PrefixBeam``.

    ``batch_size`` is the number of lines read at once, 1 on a CPU; the texts do not depend on it.

    >>> recognizer = Recognizer.from_pretrained()
    >>> recognizer.read(np.full((64, 400), 255, np.uint8)).text
    ''
    """

    def __init__(self, model: CRNN, precision: str | None = None, decoder: Callable = greedy):
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.precision = precision or best_precision(self.device)
        if self.device.type == "cpu":
            keep_freed()
        in_float32_on_a_cpu = self.device.type == "cpu" and self.precision == "no"
        self._fused = fused(model, winograd=in_float32_on_a_cpu).to(memory_format=torch.channels_last)
        self.decoder = decoder
        # A CPU spends more on the padding of eight lines than their batch spares it; a GPU wants much at once.
        self.batch_size = 1 if self.device.type == "cpu" else 8

    @classmethod
    def from_pretrained(
        cls, source: str | Path = WEIGHTS, precision: str | None = None, decoder: Callable = greedy
    ) -> "Recognizer":
        """With the embedded weights, or those of a folder or of a name on the Hugging Face Hub."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(CRNN.from_pretrained(source).to(device), precision, decoder)

    def __repr__(self) -> str:
        device = f"cpu, {torch.get_num_threads()} threads" if self.device.type == "cpu" else str(self.device)
        return f"Recognizer({device}, precision {self.precision!r}, {len(self.model.alphabet.characters)} characters)"

    def read(self, image: Picture) -> Reading:
        """Read the image of one line: anything that :func:`hwrlib.prepare` takes, which also says what it raises.

        Margins, rulings and tilt are taken out first, as :func:`hwrlib.page.lines.crop_line` does.
        """
        return self.read_lines([image])[0]

    def read_page(self, image: Picture, kind: Literal["line", "page"] | None = None) -> list[Reading]:
        """Read the lines of a page or photo from top to bottom: the last of :meth:`iter_page`.

        Arguments:
            image, kind: as for :meth:`iter_page`, which also says what is raised.

        Returns:
            a reading a line, none for a page without writing. ``box`` says where the line is on the picture as given,
            ``rotation`` how it was turned to be read.
        """
        *_, last = self.iter_page(image, kind)
        return last.readings

    def iter_page(
        self,
        image: Picture,
        kind: Literal["line", "page"] | None = None,
        quarters: int | None = None,
    ) -> Iterator[PageReading]:
        """Read a page and yield how far it is: all lines first, then more and more of their readings.

        A page that reads badly is tried on both sides and upside down as well, until one reads well; each try begins
        anew, and the last that is yielded is the best.

        Arguments:
            image: a page or a line, whatever :func:`hwrlib.image_files.load_page` takes.
            kind: "line" or "page" says what it is; else it is a line where it is at least five times as wide as high
                or one line is found on it.
            quarters: turns clockwise, 0 to 3, to be read after; None tries.

        Raises:
            ImageError, FileNotFoundError: as :func:`hwrlib.page.lines.find_lines`.
        """
        page = load_page(image)
        for state in self._iter_turned(page, image, kind, quarters or 0):
            yield state
        if quarters is not None or is_line(page, kind) or is_sure(state.readings):
            return
        upright, best = state, state
        for turns in (1, 2, 3):
            for state in self._iter_turned(page, page, kind, turns):
                yield state
            if best is upright or expected_right(state.readings) > expected_right(best.readings):
                best = state
            if is_sure(best.readings):
                break
        by_chance = expected_right(best.readings) <= expected_right(upright.readings) + 1
        yield upright if by_chance else best

    def _iter_turned(
        self, page: np.ndarray, image: Picture, kind: Literal["line", "page"] | None, quarters: int
    ) -> Iterator[PageReading]:
        """One try, after so many quarter turns clockwise; boxes lie on the page as given."""
        turned = np.ascontiguousarray(np.rot90(page, -quarters)) if quarters else page
        lines = [turn_line_back(line, turned.shape, quarters) for line in _lines_or_line(turned, kind)]
        readings: list[Reading] = []
        yield PageReading(lines, readings, quarters)
        for start in range(0, len(lines), self.batch_size):
            some = lines[start : start + self.batch_size]
            # An error then names the file: the image is what it was given as, the page its pixels.
            pixels = [self._prepare(image if li.image is page else li.image) for li in some]
            read = zip(self.read_prepared(pixels), pixels, some, strict=True)
            readings = readings + [
                dataclasses.replace(
                    reading,
                    box=line.box,
                    rotation=90 * quarters,
                    characters=place_characters(reading.characters, px, line.outline),
                )
                for reading, px, line in read
            ]
            yield PageReading(lines, readings, quarters)

    def read_lines(self, images: Iterable[Picture], progress: bool = False) -> list[Reading]:
        """Read many lines as :meth:`read` does; the readings come in the images' order."""
        pixels = [self.prepare(image) for image in images]
        return self.read_prepared(pixels, progress)

    def prepare(self, image: Picture) -> np.ndarray:
        """The image of one line as the network sees it, uint8 (128, W): cropped where it must be, then prepared."""
        crop = crop_line(load_page(image))
        return self._prepare(image if crop is None else crop.image)

    def _prepare(self, line: Picture) -> np.ndarray:
        return prepare_pixels(line, width_divisor=self.model.width_divisor)

    def read_prepared(self, pixels: list[np.ndarray], progress: bool = False) -> list[Reading]:
        """Read lines that :func:`hwrlib.images.prepare_pixels` has prepared: uint8 (128, W) each.

        The width of a line is set by its writing: one with under 3.4 frames a character is widened to 4.2, read again.
        """
        # Paper without ink, which no training line shows, says nothing.
        readings = [Reading("", 0.0, 1.0, ())] * len(pixels)
        offset, slope = self.model.calibration.get(self.decoder.name, (0.0, 1.0))
        written = [k for k, line in enumerate(pixels) if line.min() < 255]
        order = sorted(written, key=lambda k: pixels[k].shape[1])
        starts = range(0, len(order), self.batch_size)
        for start in tqdm(starts, "reading", disable=not progress, leave=False):
            chosen = order[start : start + self.batch_size]
            for k, reading in zip(chosen, self._read_batch([pixels[k] for k in chosen]), strict=True):
                readings[k] = dataclasses.replace(reading, confidence=calibrated(reading.confidence, offset, slope))
        return readings

    def _read_batch(self, pixels: list[np.ndarray]) -> list[Reading]:
        """Read lines in one batch, and those that are dense in a second."""
        log_probs, lengths = self.log_probabilities(pixels)
        alphabet, stretched = self.model.alphabet, np.ones(len(pixels))
        for k, first in enumerate(greedy(log_probs, lengths, alphabet)):
            pitch = frames(pixels[k].shape[1]) / max(1, len(first.text))
            stretched[k] = min(WIDENED / pitch, WIDEST) if pitch < DENSE else 1.0
        readings = {}
        for again in (False, True):
            chosen = np.flatnonzero((stretched > 1) == again)
            if len(chosen) == 0:
                continue
            part, counts = log_probs[chosen], lengths[chosen]
            if again:
                part, counts = self.log_probabilities([widen(pixels[k], stretched[k]) for k in chosen])
            readings |= dict(zip(chosen, self.decoder(part, counts, alphabet), strict=True))
        return [
            dataclasses.replace(
                readings[k],
                characters=tuple(place(c, frames(line.shape[1]), stretched[k]) for c in readings[k].characters),
            )
            for k, line in enumerate(pixels)
        ]

    @torch.inference_mode()
    def log_probabilities(self, pixels: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (N, T, classes) of prepared lines and the frames (N,) of each, for a decoder."""
        pixels = [np.pad(p, ((0, 0), (0, MARGIN)), constant_values=255) for p in pixels]
        multiple = 16 if len(pixels) > 1 else 1  # a line alone needs no padding, and so no mask
        batch = collate([PreparedLine(p, "", []) for p in pixels], multiple).to(self.device)
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "no"):
            log_probs = self._fused(batch.images, batch.widths)
        lengths = frames(batch.widths)
        return log_probs[:, : lengths.max()].cpu(), lengths


def load_recognizer(
    weights: str | Path = WEIGHTS,
    decoder: Literal["greedy", "beam", "language"] = "language",
    precision: str | None = None,
) -> Recognizer:
    """The recognizer that the command line reads with.

    Arguments:
        weights, precision: as for :meth:`Recognizer.from_pretrained`.
        decoder: the most probable path, prefix beam search, or that with the embedded language model.
    """
    language = Language.load(WEIGHTS / "language.npz") if decoder == "language" else None
    return Recognizer.from_pretrained(weights, precision, greedy if decoder == "greedy" else PrefixBeam(language))
