"""Read handwriting with a trained network: a line, many, or a page, on whatever machine this is (chapter 7)."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from hwrlib.batches import PreparedLine, collate
from hwrlib.ctc import Reading, frames, greedy
from hwrlib.images import load_page, prepare_pixels
from hwrlib.model import CRNN
from hwrlib.page.lines import PageLine, find_lines

WEIGHTS = Path(__file__).parent / "weights"
MARGIN = 16  # px of paper put after a line: in training most ended so, and the last letters of a tight cut read badly
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # Accelerate's names


def matmul_rate(dtype: torch.dtype, device: str | torch.device = "cpu", size: int = 1024, seconds: float = 0.05):
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


def log_odds(share):
    """Logit of a share, or of each of an array, kept finite at 0 and 1."""
    share = np.clip(share, 1e-6, 1 - 1e-6)
    return np.log(share / (1 - share))


def calibrated(confidence: float, offset: float, slope: float) -> float:
    """The share of characters expected to be right, 0 to 1: Platt scaling (Platt, 1999) of a decoder's confidence."""
    return float(1 / (1 + np.exp(-offset - slope * log_odds(confidence))))


def is_line(page: np.ndarray) -> bool:
    """Whether a picture (H, W) is one line: at least five times as wide as high; all else is taken for a page."""
    height, width = page.shape
    return width >= 5 * height


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

    def read(self, image) -> Reading:
        """Read the image of one line: anything that :func:`hwrlib.prepare` takes, which also says what it raises."""
        return self.read_lines([image])[0]

    def read_page(self, page) -> list[Reading]:
        """Read the lines of a page or photo from top to bottom; each reading's ``box`` says where on it the line is.

        Whatever is at least five times as wide as high is one line. A page without writing gives an empty list.
        Raises what :func:`hwrlib.page.lines.find_lines` raises.
        """
        pixels = load_page(page)
        if is_line(pixels):
            height, width = pixels.shape
            return [dataclasses.replace(self.read(page), box=(0, 0, width, height))]  # an error then names the file
        return self.read_found(find_lines(pixels))

    def read_found(self, lines: list[PageLine]) -> list[Reading]:
        """Read the lines that :func:`hwrlib.page.lines.find_lines` found; each reading has its line's ``box``."""
        readings = self.read_lines([line.image for line in lines])
        return [dataclasses.replace(r, box=line.box) for r, line in zip(readings, lines, strict=True)]

    def read_lines(self, images, batch_size: int = 8, progress: bool = False) -> list[Reading]:
        """Read many lines, in batches of like width; the readings come in the order of the images."""
        pixels = [prepare_pixels(image, width_divisor=self.model.width_divisor) for image in images]
        return self.read_prepared(pixels, batch_size, progress)

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
                readings[k] = dataclasses.replace(
                    reading, confidence=calibrated(reading.confidence, offset, slope)
                )
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
