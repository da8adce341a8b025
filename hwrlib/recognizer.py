"""Read handwriting with a trained network: a line, many, or a page, on whatever machine this is (chapter 7)."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from hwrlib.data import collate
from hwrlib.decode import Reading, greedy
from hwrlib.images import load_page, prepare_pixels
from hwrlib.model import CRNN
from hwrlib.precision import DTYPES, best_precision
from hwrlib.segment import PageLine, find_lines

WEIGHTS = Path(__file__).parent / "weights"
MARGIN = 16  # px of paper put after a line: in training most ended so, and the last letters of a tight cut read badly


def is_line(page: np.ndarray) -> bool:
    """Whether a picture (H, W) is one line: at least five times as wide as high; all else is taken for a page."""
    height, width = page.shape
    return width >= 5 * height


class Recognizer:
    """Reads images of handwritten lines and pages.

    Chapter 7 teaches it: notebooks/07_read_your_handwriting.ipynb.

    Arguments:
        model: a trained network; it stays on its device.
        precision: "no" (float32), "bf16" or "fp16", for most convolutions: the rest is float32, so that the text hardly
            depends on it; measured on this machine where left out.
        decoder: from log-probabilities, lengths and alphabet to readings, as those of :mod:`hwrlib.decode`.

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
        Raises what :func:`hwrlib.segment.find_lines` raises.
        """
        pixels = load_page(page)
        if is_line(pixels):
            height, width = pixels.shape
            return [dataclasses.replace(self.read(page), box=(0, 0, width, height))]  # an error then names the file
        return self.read_found(find_lines(pixels))

    def read_found(self, lines: list[PageLine]) -> list[Reading]:
        """Read the lines that :func:`hwrlib.segment.find_lines` found; each reading has its line's ``box``."""
        readings = self.read_lines([line.image for line in lines])
        return [dataclasses.replace(r, box=line.box) for r, line in zip(readings, lines, strict=True)]

    def read_lines(self, images, batch_size: int = 8, progress: bool = False) -> list[Reading]:
        """Read many lines, in batches of like width; the readings come in the order of the images."""
        pixels = [prepare_pixels(image, squeeze=self.model.squeeze) for image in images]
        return self.read_prepared(pixels, batch_size, progress)

    def read_prepared(self, pixels: list[np.ndarray], batch_size: int = 8, progress: bool = False) -> list[Reading]:
        """Read lines that :func:`hwrlib.images.prepare_pixels` has prepared: uint8 (128, W) each."""
        # Paper without ink, which no training line shows, says nothing.
        readings = [Reading("", 0.0, 1.0, ())] * len(pixels)
        written = [k for k, line in enumerate(pixels) if line.min() < 255]
        order = sorted(written, key=lambda k: pixels[k].shape[1])
        for start in tqdm(range(0, len(order), batch_size), "reading", disable=not progress, leave=False):
            chosen = order[start : start + batch_size]
            log_probs, lengths = self.log_probabilities([pixels[k] for k in chosen])
            for k, reading in zip(chosen, self.decoder(log_probs, lengths, self.model.alphabet), strict=True):
                readings[k] = reading
        return readings

    @torch.inference_mode()
    def log_probabilities(self, pixels: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (N, T, classes) of prepared lines and the time steps (N,) of each, for a decoder."""
        pixels = [np.pad(p, ((0, 0), (0, MARGIN)), constant_values=255) for p in pixels]
        batch = collate([(p, [], "") for p in pixels], multiple=64).to(self.device)
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "no"):
            log_probs = self.model(batch.images, batch.widths)
        lengths = self.model.output_lengths(batch.widths)
        return log_probs[:, : lengths.max()].cpu(), lengths
