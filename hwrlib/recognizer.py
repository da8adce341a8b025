"""Read handwriting with a trained network: a line, many, or a page, on whatever machine this is (chapter 7)."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from hwrlib.batches import PreparedLine, collate
from hwrlib.beam import PrefixBeam
from hwrlib.ctc import Character, Reading, frames, greedy
from hwrlib.images import ImageError, load_page, name_of, prepare_pixels
from hwrlib.language import Language
from hwrlib.model import CRNN
from hwrlib.page.lines import PageLine, crop_line, find_lines
from hwrlib.page.places import place_characters, turn_line_back

Picture = str | Path | bytes | Image.Image | np.ndarray
WEIGHTS = Path(__file__).parent / "weights"
MARGIN = 16  # px of paper put after a line: in training most ended so, and the last letters of a tight cut read badly
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


def is_line(page: np.ndarray) -> bool:
    """Whether a picture (H, W) is surely one line: at least five times as wide as high."""
    height, width = page.shape
    return width >= 5 * height


def expected_right(readings: list[Reading]) -> float:
    """The number of characters that are expected to be right: confidences weighted with their texts' lengths."""
    return sum(reading.confidence * len(reading.text) for reading in readings)


def is_sure(readings: list[Reading]) -> bool:
    """Whether a page seems to be upright: sideways its lines are nothing, unsure or a few characters each."""
    characters = sum(len(reading.text) for reading in readings)
    return characters >= max(1, 5 * len(readings)) and expected_right(readings) >= SURE * characters


def lines_of(page: np.ndarray, kind: Literal["line", "page"] | None) -> list[PageLine]:
    """The lines that are found; a lone one as a line, which is cropped only where it must be."""
    height, width = page.shape
    whole = PageLine((0, 0, width, height), page)
    lines = [whole] if kind == "line" or (kind is None and is_line(page)) else find_lines(page)
    if kind == "page" or len(lines) != 1:
        return lines
    return [dataclasses.replace(crop_line(page) or whole, box=lines[0].box)]


def clip(character: Character, length: int) -> Character:
    """A character whose frames lie inside a line of so many frames: reading adds paper after the line."""
    end = min(character.end, length)
    return dataclasses.replace(character, begin=min(character.begin, end - 1), end=end)


class Recognizer:
    """Reads images of handwritten lines and pages.

    Chapter 7: notebooks/07_read_your_handwriting.ipynb.

    Arguments:
        model: a trained network; it stays on its device. Its ``calibration`` makes confidences come true.
        precision: "no" (float32), "bf16" or "fp16", for most convolutions: the rest is float32, so that the text hardly
            depends on it; measured on this machine where left out.
        decoder: ``hwrlib.ctc.greedy`` or a ``hwrlib.beam.PrefixBeam``.

    >>> recognizer = Recognizer.from_pretrained()
    >>> recognizer.read(np.full((64, 400), 255, np.uint8)).text
    ''
    """

    def __init__(self, model: CRNN, precision: str | None = None, decoder: Callable = greedy):
        self.model = model.eval().to(memory_format=torch.channels_last)
        self.device = next(model.parameters()).device
        self.precision = precision or best_precision(self.device)
        self.decoder = decoder

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
        """Read the lines of a page or photo from top to bottom.

        A page that reads badly is tried upside down and on both sides as well.

        Arguments:
            image: a page or a line, whatever :func:`hwrlib.images.load_page` takes.
            kind: "line" or "page" says what it is; else it is a line where it is at least five times as wide as high
                or one line is found on it.

        Returns:
            a reading a line, none for a page without writing. ``box`` says where the line is on the picture as given,
            ``rotation`` how it was turned to be read.

        Raises:
            ImageError, FileNotFoundError: as :func:`hwrlib.page.lines.find_lines`.
        """
        page = load_page(image)
        try:
            readings = self._read_turned(page, 0, kind)
        except ImageError as error:
            raise ImageError(f"{name_of(image)}: {error}") from error
        if is_sure(readings) or kind == "line" or (kind is None and is_line(page)):
            return readings
        turned = max((self._read_turned(page, quarters, kind) for quarters in (1, 2, 3)), key=expected_right)
        return turned if expected_right(turned) > expected_right(readings) + 1 else readings  # by more than chance

    def _read_turned(self, page: np.ndarray, quarters: int, kind: Literal["line", "page"] | None) -> list[Reading]:
        """Read a page after so many quarter turns clockwise; boxes lie on the page as given."""
        turned = np.ascontiguousarray(np.rot90(page, -quarters))
        lines = [turn_line_back(line, turned.shape, quarters) for line in lines_of(turned, kind)]
        return [dataclasses.replace(reading, rotation=90 * quarters) for reading in self.read_found(lines)]

    def read_found(self, lines: list[PageLine]) -> list[Reading]:
        """Read the lines that :func:`hwrlib.page.lines.find_lines` found; each reading has its line's ``box``."""
        pixels = [self._prepare(line.image) for line in lines]
        found = zip(self.read_prepared(pixels), pixels, lines, strict=True)
        return [
            dataclasses.replace(r, box=line.box, characters=place_characters(r.characters, p, line.outline))
            for r, p, line in found
        ]

    def read_lines(self, images: Iterable[Picture], batch_size: int = 8, progress: bool = False) -> list[Reading]:
        """Read many lines as :meth:`read` does, in batches of like width; the readings come in the images' order."""
        pixels = [self.prepare(image) for image in images]
        return self.read_prepared(pixels, batch_size, progress)

    def prepare(self, image: Picture) -> np.ndarray:
        """The image of one line as the network sees it, uint8 (128, W): cropped where it must be, then prepared."""
        crop = crop_line(load_page(image))
        return self._prepare(image if crop is None else crop.image)

    def _prepare(self, line: Picture) -> np.ndarray:
        return prepare_pixels(line, width_divisor=self.model.width_divisor)

    def read_prepared(self, pixels: list[np.ndarray], batch_size: int = 8, progress: bool = False) -> list[Reading]:
        """Read lines that :func:`hwrlib.images.prepare_pixels` has prepared: uint8 (128, W) each."""
        # Paper without ink, which no training line shows, says nothing.
        readings = [Reading("", 0.0, 1.0, ())] * len(pixels)
        offset, slope = self.model.calibration.get(self.decoder.name, (0.0, 1.0))
        written = [k for k, line in enumerate(pixels) if line.min() < 255]
        order = sorted(written, key=lambda k: pixels[k].shape[1])
        for start in tqdm(range(0, len(order), batch_size), "reading", disable=not progress, leave=False):
            chosen = order[start : start + batch_size]
            log_probs, lengths = self.log_probabilities([pixels[k] for k in chosen])
            for k, reading in zip(chosen, self.decoder(log_probs, lengths, self.model.alphabet), strict=True):
                inside = tuple(clip(character, frames(pixels[k].shape[1])) for character in reading.characters)
                confidence = calibrated(reading.confidence, offset, slope)
                readings[k] = dataclasses.replace(reading, confidence=confidence, characters=inside)
        return readings

    @torch.inference_mode()
    def log_probabilities(self, pixels: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (N, T, classes) of prepared lines and the frames (N,) of each, for a decoder."""
        pixels = [np.pad(p, ((0, 0), (0, MARGIN)), constant_values=255) for p in pixels]
        batch = collate([PreparedLine(p, "", []) for p in pixels], multiple=64).to(self.device)
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "no"):
            log_probs = self.model(batch.images, batch.widths)
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
