"""Read handwriting with a trained network: a line, many, or a page, on whatever machine this is (chapter 7)."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from hwrlib import WEIGHTS
from hwrlib.batches import pad
from hwrlib.beam import PrefixBeam
from hwrlib.cpu import PRECISIONS, best_precision, keep_freed
from hwrlib.ctc import Character, Reading, frames, greedy, path_confidence
from hwrlib.images import load_page, name_of, prepare_pixels, scale, slant, widen
from hwrlib.language import CharNgram
from hwrlib.model import CRNN, fused
from hwrlib.page.baselines import is_sideways
from hwrlib.page.lines import Kind, PageLine, Picture, find_lines, place_reading
from hwrlib.rerank import Reranker

DECODERS = {
    "greedy": lambda: greedy,
    "beam": PrefixBeam,
    "language": lambda: PrefixBeam(CharNgram.load()),
    "reranked": Reranker,
}
MARGIN = 16  # px of paper put after a line: in training most ended so, and the last letters of a tight cut read badly
# Frames a character: a line with fewer reads badly, is widened to so many, at most to so many times its width.
DENSE, WIDENED, WIDEST = 3.4, 4.2, 2.0
SLANTS = -0.12, 0.12  # px to the right for each px up: a beam sees a line so, too, where two texts are close
SURE = 0.8  # certainty: a page less sure may lie upside down
TRIED, CLEARLY = 3, 0.05  # so many lines are read each way; turned, they must be so much surer


def log_odds(share: float | np.ndarray) -> np.ndarray:
    """Logit of a share, or of each of an array, kept finite at 0 and 1."""
    share = np.clip(share, 1e-6, 1 - 1e-6)
    return np.log(share / (1 - share))


def calibrated(confidence: float, offset: float, slope: float) -> float:
    """The share of characters expected to be right, 0 to 1: Platt scaling (Platt, 1999) of a decoder's confidence."""
    return float(1 / (1 + np.exp(-offset - slope * log_odds(confidence))))


def certainty(readings: list[Reading]) -> float:
    """How sure the network itself is, per character: no language model, which makes sense of rubbish, has a share."""
    return path_confidence(sum(r.log_probability for r in readings), sum(len(r.text) for r in readings))


def mean_confidence(readings: list[Reading]) -> float | None:
    """The share of all characters of lines that is expected to be right, 0 to 1; None where there is no character."""
    characters = sum(len(reading.text) for reading in readings)
    return sum(r.confidence * len(r.text) for r in readings) / characters if characters else None


def place(character: Character, length: int, stretched: float = 1.0) -> Character:
    """The character with its frames on the line as given, ``length`` long, before it was widened and paper added."""
    end = min(max(1, round(character.end / stretched)), length)
    return dataclasses.replace(character, begin=min(int(character.begin / stretched), end - 1), end=end)


@dataclasses.dataclass(frozen=True)
class PageReading:
    """How far the reading of a page is."""

    lines: list[PageLine]  # all, in reading order; their places are on the page as given, each image is upright
    readings: list[Reading]  # of the first of them
    rotation: int = 0  # degrees clockwise by which the page was turned to be read: 0, 90, 180 or 270


class Recognizer:
    """Reads images of handwritten lines and pages.

    Arguments:
        model: a trained network; it stays on its device. Its ``calibration`` makes confidences come true. What it
            learns later has no effect here: make a new Recognizer.
        precision: "fp32", "bf16" or "fp16", for most convolutions: the rest is float32, so that the text hardly
            depends on it; measured on this machine where left out.
        decoder: "greedy", "beam", "language" (the beam with the embedded language model), "reranked" (a pre-trained one
            chooses among its texts; needs `transformers`), or a decoder.

    ``batch_size`` is the number of lines read at once, 1 on a CPU; the texts do not depend on it.
    """

    def __init__(self, model: CRNN, precision: str | None = None, decoder: str | Callable = "greedy"):
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.precision = precision or best_precision(self.device)
        on_a_cpu = self.device.type == "cpu"
        if on_a_cpu:
            keep_freed()
        self._fused = fused(model, winograd=on_a_cpu and self.precision == "fp32").to(memory_format=torch.channels_last)
        self._prepare = functools.partial(prepare_pixels, width_divisor=model.width_divisor)
        self.decoder = DECODERS[decoder]() if isinstance(decoder, str) else decoder
        # A CPU spends more on the padding of eight lines than their batch spares it; a GPU wants much at once.
        self.batch_size = 1 if on_a_cpu else 8

    @classmethod
    def from_pretrained(
        cls, source: str | Path = WEIGHTS, precision: str | None = None, decoder: str | Callable = "greedy"
    ) -> "Recognizer":
        """With the embedded weights, or those of a folder or of a name on the Hugging Face Hub."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(CRNN.from_pretrained(source).to(device), precision, decoder)

    def read(self, image: Picture) -> Reading:
        """Read the image of one line, whatever :func:`hwrlib.prepare` takes, without its margins, rulings and tilt."""
        return self.read_lines([image])[0]

    def read_page(self, image: Picture, kind: Kind = None) -> list[Reading]:
        """Read the lines of a page or photo, in reading order: the last of :meth:`iter_page`; none on blank paper."""
        *_, last = self.iter_page(image, kind)
        return last.readings

    def iter_page(self, image: Picture, kind: Kind = None, rotation: int | None = None) -> Iterator[PageReading]:
        """Read a page and yield how far it is: all lines first, then more and more of their readings.

        Where lines are found with the page on its side, or it reads badly and may lie upside down, three lines are read
        each way, and it is turned where that reads clearly better; the last that is yielded is the best.

        Arguments:
            image: a page or a line, whatever :func:`hwrlib.images.load_page` takes.
            kind: "line" or "page" says what it is; else it is a line where one line is found on it.
            rotation: degrees clockwise, 0, 90, 180 or 270, by which to turn it to be read; None finds it.
        """
        page, name = load_page(image), name_of(image)
        known = rotation is not None or kind == "line"
        turns = [rotation or 0] if known else [0, 90, 270] if is_sideways(page) else [0]
        found = {turn: find_lines(page, kind, turn) for turn in turns}
        turn = turns[0]
        if len(turns) > 1:  # in doubt as it is given
            turn = max(turns, key=lambda turn: self._certainty(found[turn], name) - CLEARLY * (turn > 0))
        states = self._iter_lines(found[turn], name, turn)
        for state in states:
            yield state
            if len(state.readings) >= min(TRIED, len(state.lines)):
                break
        if not known and turn == 0 and state.lines and certainty(state.readings) < SURE:
            turned = [line._replace(image=np.rot90(line.image, 2)) for line in found[0]]
            characters = sum(len(reading.text) for reading in state.readings)
            # One character of a short text counts for more than CLEARLY: "On" upside down is a fair "nO".
            surer = max(CLEARLY, 1 / characters) if characters else CLEARLY
            enough = self._certainty(found[0], name) + surer
            if self._certainty(turned, name) > enough:  # the page is searched again only then
                found[180] = find_lines(page, kind, 180)
                if self._certainty(found[180], name) > enough:
                    states = self._iter_lines(found[180], name, 180)
        yield from states

    def _certainty(self, lines: list[PageLine], name: str) -> float:
        """How surely the longest lines of a page read, 0 to 1."""
        longest = sorted(lines, key=lambda line: -line.image.shape[1] / len(line.image))[:TRIED]
        pixels = [self._prepare(line.image, name=name) for line in longest]
        read = [greedy(*self.log_probabilities([px]), self.model.alphabet)[0] for px in pixels]
        return certainty(read) if any(reading.text for reading in read) else 0.0

    def _iter_lines(self, lines: list[PageLine], name: str, rotation: int) -> Iterator[PageReading]:
        """Read the lines of a page that is turned so many degrees clockwise."""
        readings: list[Reading] = []
        yield PageReading(lines, readings, rotation)
        for start in range(0, len(lines), self.batch_size):
            some = lines[start : start + self.batch_size]
            pixels = [self._prepare(line.image, name=name) for line in some]
            read = self.read_prepared(pixels, above=[reading.text for reading in readings])
            placed = (place_reading(*known, rotation) for known in zip(read, some, pixels, strict=True))
            readings = [*readings, *placed]
            yield PageReading(lines, readings, rotation)

    def read_lines(self, images: Iterable[Picture]) -> list[Reading]:
        """Read many lines as :meth:`read` does; the readings come in the images' order."""
        return self.read_prepared([self.prepare(image) for image in images])

    def prepare(self, image: Picture) -> np.ndarray:
        """The image of one line as the network sees it, uint8 (128, W): cropped where it must be, then prepared."""
        (line,) = find_lines(image, "line")
        return self._prepare(line.image, name=name_of(image))

    def read_prepared(
        self, pixels: list[np.ndarray], progress: bool = False, above: list[str] | None = None
    ) -> list[Reading]:
        """Read lines that :func:`hwrlib.images.prepare_pixels` has prepared: uint8 (128, W) each.

        A dense line, with under 3.4 frames a character, is widened to 4.2, at most to twice its width, and read again.
        Lines that follow each other on a page have ``above``, the texts of those above them, maybe none.
        """
        # Paper without ink, which no training line shows, says nothing.
        readings = [Reading("", 0.0, 1.0, ())] * len(pixels)
        # A reranker's confidences are of the same paths as those of its beam.
        offset, slope = self.model.calibration.get(self.decoder.name, (0.0, 1.0))
        written = [k for k, line in enumerate(pixels) if line.min() < 255]
        follow = above is not None and isinstance(self.decoder, Reranker)
        order = written if follow else sorted(written, key=lambda k: pixels[k].shape[1])
        starts = range(0, len(order), self.batch_size)
        for start in tqdm(starts, "reading", disable=not progress, leave=False):
            chosen = order[start : start + self.batch_size]
            decoder = self.decoder.after([*above, *(r.text for r in readings[: chosen[0]])]) if follow else self.decoder
            for k, reading in zip(chosen, self._read_batch([pixels[k] for k in chosen], decoder), strict=True):
                readings[k] = dataclasses.replace(reading, confidence=calibrated(reading.confidence, offset, slope))
        return readings

    def _read_batch(self, pixels: list[np.ndarray], decoder: Callable) -> list[Reading]:
        """Read lines in one batch; the network sees those that are dense once more, widened."""
        alphabet, given, pixels = self.model.alphabet, [frames(line.shape[1]) for line in pixels], list(pixels)
        log_probs, lengths = self.log_probabilities(pixels)
        firsts = greedy(log_probs, lengths, alphabet)
        pitch = np.divide(given, [max(1, len(first.text)) for first in firsts])
        stretched = np.where(pitch < DENSE, np.minimum(WIDENED / pitch, WIDEST), 1.0)
        if (dense := np.flatnonzero(stretched > 1)).size:
            lines = [line[:n] for line, n in zip(log_probs, lengths, strict=True)]
            for k in dense:
                pixels[k] = widen(pixels[k], stretched[k])
            wide = self.log_probabilities([pixels[k] for k in dense])
            for k, line, n, first in zip(dense, *wide, greedy(*wide, alphabet), strict=True):
                lines[k], firsts[k] = line[:n], first
            log_probs, lengths = pad_sequence(lines, batch_first=True), [len(line) for line in lines]

        def views(k: int) -> list[torch.Tensor]:
            log_probs, lengths = self.log_probabilities([slant(pixels[k], by) for by in SLANTS])
            return [line[:n] for line, n in zip(log_probs, lengths, strict=True)]

        again = [views] if isinstance(decoder, PrefixBeam) else []
        read = zip(decoder(log_probs, lengths, alphabet, firsts, *again), given, stretched, strict=True)
        return [
            dataclasses.replace(reading, characters=tuple(place(c, own, times) for c in reading.characters))
            for reading, own, times in read
        ]

    @torch.inference_mode()
    def log_probabilities(self, pixels: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (N, T, classes) of prepared lines and the frames (N,) of each, for a decoder."""
        pixels = [np.pad(p, ((0, 0), (0, MARGIN)), constant_values=255) for p in pixels]
        images, widths = pad(pixels, 16 if len(pixels) > 1 else 1)  # a line alone needs no padding, and so no mask
        with torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32"):
            log_probs = self._fused(scale(images.to(self.device)), widths)
        lengths = frames(widths)
        return log_probs[:, : lengths.max()].cpu(), lengths


def load_recognizer(
    weights: str | Path = WEIGHTS, decoder: str = "language", precision: str | None = None
) -> Recognizer:
    """The recognizer that the command line and the app read with: the beam with the language model, if told nothing."""
    return Recognizer.from_pretrained(weights, precision, decoder)
