"""How fast: training and reading beside the reference's own loops, and the network in other engines."""

import argparse
import dataclasses
import functools
import importlib.util
import io
import json
import tempfile
import time
from collections.abc import Callable, Hashable
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hwrlib import SAMPLE, WEIGHTS
from hwrlib.alphabet import REFERENCE
from hwrlib.batches import PreparedLine, prepare_lines
from hwrlib.cpu import PRECISIONS, best_precision, matmul_rate
from hwrlib.data import load_lines
from hwrlib.images import prepare_pixels, to_tensor
from hwrlib.model import CRNN, export_onnx
from hwrlib.recognizer import Recognizer
from hwrlib.settings import PRESETS
from hwrlib.training import Trainer

PAGE = SAMPLE / "page.png"


def in_turn(ways: dict[Hashable, Callable], rounds: int = 3, clock: Callable = time.perf_counter) -> dict:
    """Mean seconds of each way, or what it returns, in turn; the first of several rounds does not count."""
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

    def prepare(self, image: bytes) -> torch.Tensor:
        """Decode, grey, 128 px high, from -1 to 1."""
        grey = Image.open(io.BytesIO(image)).convert("L")
        grey = grey.resize((max(8, int(grey.width * 128 / grey.height)), 128))
        return torch.from_numpy((np.array(grey, dtype=np.float32) / 255 - 0.5) / 0.5)[None]

    def train(self) -> None:
        """One shuffled epoch; padding is mid-grey and read like any other column."""
        self.model.train()
        for batch in torch.randperm(len(self.rows)).split(8):
            lines = [self.prepare(self.rows[k]["image"]).mT[0] for k in batch]
            images = nn.utils.rnn.pad_sequence(lines, batch_first=True).mT[:, None]
            labels = [torch.tensor(REFERENCE.encode(REFERENCE.drop(self.rows[k]["text"]))) for k in batch]
            log_probs = self.model(images.to(self.device)).transpose(0, 1)
            lengths = torch.full((len(lines),), len(log_probs)), torch.tensor([len(line) for line in labels])
            loss = nn.functional.ctc_loss(log_probs, torch.cat(labels).to(self.device), *lengths, zero_infinity=True)
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
            best = self.model(self.prepare(row["image"])[None].to(self.device))[0].argmax(-1).tolist()
            REFERENCE.decode([k for k, before in zip(best, [0, *best], strict=False) if k and k != before])


def compare(rows: list[dict], width_divisors: list[float]) -> list[dict]:
    """Lines a second of the reference's loops and ours (the recipe, :class:`Recognizer`), with untrained networks.

    Each row has the ratio to the reference, and share: the network's operations (three times those of reading in
    training; padding left out) in parts of the rate of matrix products in the same precision.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision, reference = best_precision(device), Reference(rows, device)
    ways = {("reference", "train"): reference.train, ("reference", "read"): reference.read}
    kinds = {"reference": ("fp32", 1.0)}

    def train(model: CRNN, lines: list[PreparedLine]) -> float:  # validation and saving left out, as by the reference
        settings = dataclasses.replace(PRESETS["recipe"], epochs=1, precision=precision)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(model, lines, lines[:1], folder, settings)
            trainer.run(bar=False)
        return trainer.progress["seconds"]

    for divisor in width_divisors:
        name, model = f"recipe, width / {divisor:g}", CRNN(width_divisor=divisor).to(device)
        recognizer, kinds[name] = Recognizer(model, precision), (precision, divisor)
        ways[name, "train"] = functools.partial(train, model, prepare_lines(rows, model.alphabet, divisor))
        ways[name, "read"] = lambda recognizer=recognizer: [recognizer.read(row["image"]) for row in rows]
    with FlopCounterMode(display=False) as counter, torch.no_grad():  # it leaves out the LSTM
        steps = sum(reference.model(reference.prepare(row["image"])[None].to(device)).shape[1] for row in rows)
    recurrent = sum(weight.numel() for weight in reference.model.rnn.parameters() if weight.ndim > 1)
    flops = counter.get_total_flops() + 2 * steps * recurrent
    rates = {kind: matmul_rate(PRECISIONS[kind], device, seconds=1) for kind, _ in kinds.values()}
    table, found = [], in_turn(ways)
    for (side, task), seconds in found.items():
        kind, divisor = kinds[side]
        row = {"task": task, "side": side, "precision": str(PRECISIONS[kind])[6:]}
        row |= {"lines_per_second": len(rows) / seconds, "ratio": found["reference", task] / seconds}
        work = flops * {"train": 3, "read": 1}[task] / divisor
        table.append(row | {"share": work / rates[kind] / seconds})
    return table


@torch.inference_mode()
def compare_engines(rows: list[dict], model: CRNN) -> list[dict]:
    """A row for each engine, with a trained network on the CPU: seconds of all cores together for a line, and ratio."""
    pixels = [prepare_pixels(row["image"], width_divisor=model.width_divisor) for row in rows]
    lines = [to_tensor(line)[None] for line in pixels]
    ways = {"torch, batch norm apart": lambda: [model.eval()(line) for line in lines]}
    for precision in dict.fromkeys(["fp32", best_precision()]):
        read = Recognizer(model, precision).log_probabilities
        ways[f"torch as hwrlib reads, {precision}"] = lambda read=read: [read([line]) for line in pixels]
    if all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            export_onnx(model, Path(folder) / "model.onnx")
            session = onnxruntime.InferenceSession(Path(folder) / "model.onnx")
        ways["ONNX Runtime"] = lambda: [session.run(None, {"image": line.numpy()}) for line in lines]
    found = in_turn(ways, clock=time.process_time)
    first = next(iter(found.values()))
    return [{"engine": name, "seconds": s / len(lines), "ratio": s / first} for name, s in found.items()]


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print JSON: the machine, programs and engines."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.bench", description=__doc__)
    parser.add_argument("--source", default="sample", help="sample, iam, or a path as for load_lines (default: sample)")
    parser.add_argument("--lines", type=int, default=32, help="how many lines, spread over the source (default: 32)")
    options = parser.parse_args(arguments)
    lines = load_lines("train", options.source).cast_column("image", datasets.Image(decode=False))
    lines = lines.select(np.unique(np.linspace(0, len(lines) - 1, options.lines).astype(int))).to_list()
    rows = [line | {"image": line["image"]["bytes"] or Path(line["image"]["path"]).read_bytes()} for line in lines]
    recognizer = Recognizer.from_pretrained(decoder="language")
    machine = {"threads": torch.get_num_threads(), "lines": len(rows), "source": options.source}
    machine["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    machine["matrix products, GFLOP/s"] = round(matmul_rate(torch.float32) / 1e9)
    machine["page, lines"] = len(recognizer.read_page(PAGE))
    machine["page, seconds"] = round(in_turn({"page": lambda: recognizer.read_page(PAGE)})["page"], 2)
    model = CRNN.from_pretrained(WEIGHTS)
    tables = {"programs": compare(rows, sorted({1.0, model.width_divisor})), "engines": compare_engines(rows, model)}
    print(json.dumps({"machine": machine, **tables}, indent=2))


if __name__ == "__main__":
    main()
