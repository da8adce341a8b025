"""How fast: training and reading beside the reference's own loops, and the network in other engines (chapter 6)."""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hwrlib import SAMPLE, WEIGHTS
from hwrlib.alphabet import REFERENCE
from hwrlib.batches import PreparedLine, prepare_lines
from hwrlib.cpu import PRECISIONS, best_precision, matmul_rate
from hwrlib.ctc import frames, greedy
from hwrlib.data import load_lines
from hwrlib.images import prepare
from hwrlib.model import CRNN, export_onnx, fused
from hwrlib.recognizer import Recognizer
from hwrlib.settings import PRESETS
from hwrlib.training import Trainer

PAGE = SAMPLE / "page.png"


def in_turn(ways: dict[Hashable, Callable], rounds: int = 3, clock: Callable = time.perf_counter) -> dict:
    """Mean seconds of each way, or of what it returns if that is a number; the first of several rounds is not counted.

    They take turns, so that whatever else the machine does meets them all.
    """
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = clock()
            own = way()
            seconds[name].append(own if isinstance(own, float) else clock() - start)
    return {name: float(np.mean(taken[1:] or taken)) for name, taken in seconds.items()}


class Reference:
    """The reference's loops as published: float32, batches of 8 as they come, each image decoded every time."""

    def __init__(self, rows: list[dict], device: str):
        self.rows, self.device, self.model = rows, device, CRNN(REFERENCE).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.loss = nn.CTCLoss(blank=0, zero_infinity=True)

    def prepare(self, image: bytes) -> torch.Tensor:
        """Decode, grey, 128 px high, from -1 to 1."""
        grey = Image.open(io.BytesIO(image)).convert("L")
        grey = grey.resize((max(8, int(grey.width * 128 / grey.height)), 128))
        return torch.from_numpy((np.array(grey, dtype=np.float32) / 255 - 0.5) / 0.5)[None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Log-probabilities; padding is read like any other column."""
        features = self.model.cnn(images.to(self.device)).permute(0, 3, 1, 2).flatten(2)
        return self.model.fc(self.model.rnn(self.model.map2seq(features))[0]).log_softmax(-1)

    def train(self) -> None:
        """One shuffled epoch."""
        self.model.train()
        for batch in torch.randperm(len(self.rows)).split(8):
            lines = [self.prepare(self.rows[k]["image"]) for k in batch]
            images = torch.zeros(len(lines), 1, 128, max(line.shape[-1] for line in lines))  # 0 is mid-grey
            for image, line in zip(images, lines, strict=True):
                image[..., : line.shape[-1]] = line
            labels = [torch.tensor(REFERENCE.encode(REFERENCE.drop(self.rows[k]["text"]))) for k in batch]
            log_probs, lengths = self.forward(images).transpose(0, 1), torch.tensor([len(line) for line in labels])
            steps = torch.full((len(lines),), len(log_probs))
            loss = self.loss(log_probs, torch.cat(labels).to(self.device), steps, lengths)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimizer.step()
            loss.item()

    @torch.no_grad()
    def read(self) -> None:
        """Every line, one at a time."""
        self.model.eval()
        for row in self.rows:
            best = self.forward(self.prepare(row["image"])[None])[0].argmax(-1).tolist()
            REFERENCE.decode([k for k, before in zip(best, [0, *best], strict=False) if k and k != before])


def train(model: CRNN, lines: list[PreparedLine], precision: str) -> float:
    """One epoch of the recipe; its seconds without validation and saving, which the reference's leave out too."""
    settings = dataclasses.replace(PRESETS["recipe"], epochs=1, precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, lines, lines[:1], folder, settings)
        trainer.run(bar=False)
    return trainer.progress["seconds"]


def compare(rows: list[dict], width_divisors: list[float]) -> list[dict]:
    """Lines a second of the reference's loops and ours on the same lines, with untrained networks.

    Ours: the recipe on lines prepared beforehand, and :class:`Recognizer`. Each row has the ratio to the reference, and
    share: the network's operations (three times those of reading in training; padding left out) in parts of the rate
    of matrix products in the same precision.

    Arguments:
        rows: with image (an encoded file) and text.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision, reference = best_precision(device), Reference(rows, device)
    ways = {("reference", "train"): reference.train, ("reference", "read"): reference.read}
    kinds = {"reference": ("fp32", 1.0)}
    for divisor in width_divisors:
        name, model = f"recipe, width / {divisor:g}", CRNN(width_divisor=divisor).to(device)
        recognizer, kinds[name] = Recognizer(model, precision), (precision, divisor)
        lines = prepare_lines(rows, model.alphabet, divisor)
        ways[name, "train"] = functools.partial(train, model, lines, precision)
        ways[name, "read"] = lambda recognizer=recognizer: [recognizer.read(row["image"]) for row in rows]
    with FlopCounterMode(display=False) as counter, torch.no_grad():  # it leaves out the LSTM
        steps = sum(reference.forward(reference.prepare(row["image"])[None]).shape[1] for row in rows)
    recurrent = sum(weight.numel() for weight in reference.model.rnn.parameters() if weight.ndim > 1)
    flops = counter.get_total_flops() + 2 * steps * recurrent
    rates = {precision: matmul_rate(PRECISIONS[precision], device, seconds=1) for precision, _ in kinds.values()}
    table, found = [], in_turn(ways)
    for (side, task), seconds in found.items():
        precision, divisor = kinds[side]
        work = flops * {"train": 3, "read": 1}[task] / divisor / rates[precision]
        row = {"task": task, "side": side, "precision": str(PRECISIONS[precision])[6:]}
        row |= {"lines_per_second": len(rows) / seconds, "ratio": found["reference", task] / seconds}
        table.append(row | {"share": work / seconds})
    return table


def engines(model: CRNN, folder: Path) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Ways to get log-probabilities from one line (1, 1, 128, W) on the CPU, of the engines that are installed."""

    def read(line: torch.Tensor, reading: CRNN, dtype: torch.dtype) -> torch.Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return reading(line)

    ways, threads = {"torch, batch norm apart": model.eval()}, torch.get_num_threads()
    for precision in dict.fromkeys(["fp32", best_precision()]):
        dtype = PRECISIONS[precision]
        reading = fused(model, winograd=precision == "fp32").to(memory_format=torch.channels_last)
        ways[f"torch as hwrlib reads, {str(dtype)[6:]}"] = functools.partial(read, reading=reading, dtype=dtype)
    if not importlib.util.find_spec("onnx"):
        return ways
    export_onnx(model, folder / "model.onnx")
    with contextlib.suppress(ImportError):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        ways["ONNX Runtime"] = lambda line: torch.from_numpy(session.run(None, {"image": line.numpy()})[0])
    with contextlib.suppress(ImportError):
        import openvino

        compiled = openvino.compile_model(folder / "model.onnx", "CPU", {"INFERENCE_NUM_THREADS": threads})
        ways["OpenVINO"] = lambda line: torch.from_numpy(compiled([line.numpy()])[0].copy())
    return ways


@torch.inference_mode()
def compare_engines(rows: list[dict], model: CRNN) -> list[dict]:
    """A row for each of :func:`engines` with a trained network: engine, seconds, ratio to the first, and same.

    Seconds are those of all processor cores together, for a line; same is the share of lines that greedy decoding gives
    the same text as the first.
    """
    lines = [prepare(row["image"], width_divisor=model.width_divisor)[None] for row in rows]

    def texts(way: Callable) -> list[str]:
        return [greedy(way(line), [frames(line.shape[-1])], model.alphabet)[0].text for line in lines]

    with tempfile.TemporaryDirectory() as folder:
        ways = engines(model, Path(folder))
        reading = {name: lambda way=way: [way(line) for line in lines] for name, way in ways.items()}
        found, first = in_turn(reading, clock=time.process_time), texts(model)
        same = {name: np.mean([a == b for a, b in zip(texts(way), first, strict=True)]) for name, way in ways.items()}
    table = pd.DataFrame({"seconds": found, "same": same}).rename_axis("engine").reset_index()
    table["seconds"] /= len(lines)
    return table.assign(ratio=table.seconds / table.seconds[0]).to_dict("records")


def read_a_page() -> dict[str, float]:
    """What the embedded page costs: its lines, the seconds, the most memory of a process."""
    recognizer = Recognizer.from_pretrained(decoder="language")
    page = {"page, lines": len(recognizer.read_page(PAGE))}
    page["page, seconds"] = round(in_turn({"page": lambda: recognizer.read_page(PAGE)})["page"], 2)
    if importlib.util.find_spec("resource"):  # not on Windows
        import resource

        subprocess.run([sys.executable, "-m", "hwrlib", "read", str(PAGE)], check=True, stdout=subprocess.DEVNULL)
        page["page, gigabytes"] = round(1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e9, 2)
    return page


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print JSON: the machine, programs (:func:`compare`) and engines."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.bench", description=__doc__)
    parser.add_argument("--source", default="sample", help="sample, iam, or a path as for load_lines (default: sample)")
    parser.add_argument("--lines", type=int, default=32, help="how many lines, spread over the source (default: 32)")
    options = parser.parse_args(arguments)
    lines = load_lines("train", options.source).cast_column("image", datasets.Image(decode=False))
    lines = lines.select(np.unique(np.linspace(0, len(lines) - 1, options.lines).astype(int))).to_list()
    rows = [line | {"image": line["image"]["bytes"] or Path(line["image"]["path"]).read_bytes()} for line in lines]
    machine = {"threads": torch.get_num_threads(), "lines": len(rows), "source": options.source}
    machine |= {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}
    machine |= {"matrix products, GFLOP/s": round(matmul_rate(torch.float32) / 1e9)}
    machine |= read_a_page()  # before the rest: a process counts what its parent held as its own
    model = CRNN.from_pretrained(WEIGHTS)
    tables = {"programs": compare(rows, sorted({1.0, model.width_divisor})), "engines": compare_engines(rows, model)}
    print(json.dumps({"machine": machine, **tables}, indent=2))


if __name__ == "__main__":
    main()
