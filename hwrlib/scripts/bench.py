"""How fast: training and reading beside the reference's own loops, and the network in other engines (chapter 6)."""

import argparse
import copy
import dataclasses
import functools
import importlib.util
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from hwrlib import SAMPLE, WEIGHTS
from hwrlib.alphabet import REFERENCE
from hwrlib.batches import prepare_lines
from hwrlib.ctc import frames, greedy
from hwrlib.data import load_lines
from hwrlib.images import prepare_pixels, to_tensor
from hwrlib.model import CRNN, export_onnx, fused, layer_table
from hwrlib.recognizer import DTYPES, Recognizer, best_precision, load_recognizer, matmul_rate
from hwrlib.settings import PRESETS
from hwrlib.training import Trainer

PAGE = SAMPLE / "page.png"


class Reference:
    """The reference's loops as published: float32, batches of 8 as they come, each image decoded every time."""

    name, dtype, width_divisor = "reference", torch.float32, 1.0

    def __init__(self, images: list[bytes], texts: list[str], device: str):
        self.images, self.device = images, device
        self.labels = [torch.tensor(REFERENCE.encode(REFERENCE.drop(text))) for text in texts]
        self.model = CRNN(REFERENCE).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.loss = nn.CTCLoss(blank=0, zero_infinity=True)

    def prepare(self, image: bytes) -> torch.Tensor:
        """Decode, grey, 128 px high, from -1 to 1."""
        grey = Image.open(io.BytesIO(image)).convert("L")
        grey = grey.resize((max(8, int(grey.width * 128 / grey.height)), 128))
        return torch.from_numpy((np.array(grey, dtype=np.float32) / 255 - 0.5) / 0.5)[None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Log-probabilities; padding is read like any other column."""
        features = self.model.cnn(images).permute(0, 3, 1, 2).flatten(2)
        return self.model.fc(self.model.rnn(self.model.map2seq(features))[0]).log_softmax(-1)

    def train(self) -> float:
        """One shuffled epoch; its seconds."""
        start = time.perf_counter()
        self.model.train()
        for batch in torch.randperm(len(self.images)).split(8):
            lines = [self.prepare(self.images[k]) for k in batch]
            images = torch.zeros(len(lines), 1, 128, max(line.shape[-1] for line in lines))  # 0 is mid-grey
            for image, line in zip(images, lines, strict=True):
                image[..., : line.shape[-1]] = line
            labels = [self.labels[k] for k in batch]
            log_probs = self.forward(images.to(self.device)).transpose(0, 1)
            steps = torch.full((len(lines),), len(log_probs))
            lengths = torch.tensor([len(line) for line in labels])
            loss = self.loss(log_probs, torch.cat(labels).to(self.device), steps, lengths)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimizer.step()
            loss.item()
        return time.perf_counter() - start

    @torch.no_grad()
    def read(self) -> float:
        """Every line, one at a time; the seconds."""
        start = time.perf_counter()
        self.model.eval()
        for image in self.images:
            best = self.forward(self.prepare(image)[None].to(self.device))[0].argmax(-1).tolist()
            REFERENCE.decode([k for k, before in zip(best, [0, *best], strict=False) if k and k != before])
        return time.perf_counter() - start


class Ours:
    """The ``recipe`` preset, augmentation included, and ``Recognizer.read``; lines were prepared once, beforehand."""

    def __init__(self, images: list[bytes], texts: list[str], device: str, precision: str, width_divisor: float):
        self.name, self.width_divisor = f"recipe, width / {width_divisor:g}", width_divisor
        self.dtype = DTYPES[precision]
        self.images, self.settings = images, dataclasses.replace(PRESETS["recipe"], epochs=1, precision=precision)
        self.model = CRNN(width_divisor=width_divisor).to(device)
        rows = [{"image": image, "text": text} for image, text in zip(images, texts, strict=True)]
        self.lines = prepare_lines(rows, self.model.alphabet, width_divisor)
        self.recognizer = Recognizer(self.model, precision)

    def train(self) -> float:
        """One epoch; its seconds, without validation and saving, which the reference's leave out too."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(self.model, self.lines, self.lines[:1], folder, self.settings)
            trainer.run(bar=False)
        return trainer.progress["seconds"]

    def read(self) -> float:
        """Every line, one at a time; the seconds."""
        self.model.eval()
        start = time.perf_counter()
        for image in self.images:
            self.recognizer.read(image)
        return time.perf_counter() - start


def compare(
    images: list[bytes], texts: list[str], width_divisors: Sequence[float] = (1.0,), rounds: int = 3
) -> pd.DataFrame:
    """Lines a second of both sides on the same lines, in turn, untrained networks on either side.

    Chapter 4: notebooks/04_train_on_colab.ipynb.

    Arguments:
        images: encoded image files, one line each.
        texts: their transcripts.
        width_divisors: our side is measured at each: what the lines' widths are divided by.
        rounds: how often each side trains one epoch and reads every line; the first of several is not counted.

    Returns:
        a row for each task and side: task, side, precision, lines_per_second, ratio to the reference, and share: the
        network's multiply-adds (three times those of reading in training; padding left out) in parts of the rate of
        matrix products measured in the same minutes in the same precision.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = best_precision(device)
    sides = [Reference(images, texts, device), *(Ours(images, texts, device, precision, s) for s in width_divisors)]
    widths = [sides[0].prepare(image).shape[-1] for image in images]
    flops = 2 * layer_table(sides[0].model, width=1600).multiply_adds.sum() / 1600 * np.mean(widths)
    rows = []
    for _ in range(rounds):  # the sides take turns, so that whatever else the machine does meets them all
        for side in sides:
            for task, passes in (("train", 3), ("read", 1)):
                rate = matmul_rate(side.dtype, device, seconds=0.3)
                seconds = getattr(side, task)()
                work = passes * flops * len(images) / side.width_divisor / rate  # the seconds of matrix products alone
                rows.append((task, side.name, str(side.dtype).removeprefix("torch."), seconds, work))
    rows = rows[len(rows) // rounds :] if rounds > 1 else rows
    table = pd.DataFrame(rows, columns=["task", "side", "precision", "seconds", "work"])
    table = table.groupby(["task", "side", "precision"], sort=False).sum().reset_index()
    table["lines_per_second"] = len(images) * max(1, rounds - 1) / table.seconds
    reference = table[table.side == "reference"].set_index("task").lines_per_second
    table["ratio"] = table.lines_per_second / table.task.map(reference)
    table["share"] = table.work / table.seconds
    return table.drop(columns=["seconds", "work"])


def engines(model: CRNN, folder: Path) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Ways to get log-probabilities (1, T, classes) from one line (1, 1, 128, W), of the engines that are installed.

    Arguments:
        model: the network; it is read on the CPU, in as many threads as torch takes.
        folder: where its ONNX file is put.
    """
    model, threads = copy.deepcopy(model).cpu().eval(), torch.get_num_threads()

    def read(line: torch.Tensor, reading: CRNN, precision: str) -> torch.Tensor:
        with torch.autocast("cpu", DTYPES[precision], enabled=precision != "no"):
            return reading(line)

    ways = {"torch, batch norm apart": model}
    for precision in dict.fromkeys(["no", best_precision()]):
        name = str(DTYPES[precision]).removeprefix("torch.")
        reading = fused(model, winograd=precision == "no").to(memory_format=torch.channels_last)
        ways[f"torch as hwrlib reads, {name}"] = functools.partial(read, reading=reading, precision=precision)
    path = folder / "model.onnx"
    export_onnx(model, path)
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        ways["ONNX Runtime"] = lambda line: torch.from_numpy(session.run(None, {"image": line.numpy()})[0])
    if importlib.util.find_spec("openvino"):
        import openvino

        compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_NUM_THREADS": threads})
        ways["OpenVINO"] = lambda line: torch.from_numpy(compiled([line.numpy()])[0].copy())
    return ways


def compare_engines(images: list[bytes], model: CRNN, rounds: int = 3) -> pd.DataFrame:
    """Processor seconds a line of the trained network in each of :func:`engines`, on the same prepared lines.

    Chapter 6: notebooks/06_analyse_the_errors.ipynb.

    Arguments:
        images: encoded image files, one line each.
        model: a trained network.
        rounds: how often each engine reads every line, in turn; the first of several is not counted.

    Returns:
        a row for each engine: engine, seconds (of all processor cores together, for a line), ratio to the first, and
        same: the share of lines that greedy decoding gives the same text as the first.
    """
    lines = [to_tensor(prepare_pixels(image, width_divisor=model.width_divisor))[None] for image in images]
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        ways = engines(model, Path(folder))
        for _ in range(rounds):
            for name, read in ways.items():
                start = time.process_time()
                found = [read(line) for line in lines]
                seconds = time.process_time() - start
                texts = [
                    greedy(x, frames(torch.tensor([line.shape[-1]])), model.alphabet)[0].text
                    for x, line in zip(found, lines, strict=True)
                ]
                rows.append((name, seconds / len(lines), texts))
    first = rows[0][2]
    rows = rows[len(ways) :] if rounds > 1 else rows
    table = pd.DataFrame(rows, columns=["engine", "seconds", "texts"])
    table["same"] = [np.mean([a == b for a, b in zip(texts, first, strict=True)]) for texts in table.texts]
    table = table.groupby("engine", sort=False)[["seconds", "same"]].mean().reset_index()
    return table.assign(ratio=table.seconds / table.seconds[0])[["engine", "seconds", "ratio", "same"]]


def read_a_page(rounds: int = 3) -> dict[str, float]:
    """What the embedded page costs: its lines, the least seconds of all rounds, the most memory of a process."""
    recognizer, seconds = load_recognizer(), []
    for _ in range(rounds):
        start = time.perf_counter()
        lines = len(recognizer.read_page(PAGE))
        seconds.append(time.perf_counter() - start)
    command = [sys.executable, "-m", "hwrlib", "read", str(PAGE)]
    subprocess.run(command, cwd=WEIGHTS.parents[1], check=True, stdout=subprocess.DEVNULL)
    memory = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"lines": lines, "seconds": round(min(seconds), 2), "gigabytes": round(memory / 1e9, 2)}


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m hwrlib.scripts.bench", description=__doc__)
    parser.add_argument("--source", default="sample", help="sample, iam, or a path as for load_lines (default: sample)")
    parser.add_argument("--lines", type=int, default=32, help="how many lines, spread over the source (default: 32)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if options.lines < 1:
        parser.error(f"--lines {options.lines}: at least one line is needed")
    rows = load_lines("train", options.source).cast_column("image", datasets.Image(decode=False))
    rows = rows.select(np.unique(np.linspace(0, len(rows) - 1, options.lines).astype(int)))
    images = [image["bytes"] or Path(image["path"]).read_bytes() for image in rows["image"]]
    width_divisor = json.loads((WEIGHTS / "config.json").read_text())["width_divisor"]
    page = read_a_page()  # first: a process counts what its parent held as its own
    programs = compare(images, list(rows["text"]), sorted({1.0, width_divisor}))
    network = compare_engines(images, CRNN.from_pretrained(WEIGHTS))
    machine = {"threads": torch.get_num_threads(), "lines": len(images), "source": options.source}
    machine |= {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}
    machine |= {"matrix products, GFLOP/s": round(matmul_rate(torch.float32) / 1e9)}
    machine |= {f"page, {name}": value for name, value in page.items()}
    if options.json:
        tables = {"programs": programs.round(4).to_dict("records"), "engines": network.round(4).to_dict("records")}
        print(json.dumps({"machine": machine, **tables}, indent=2))
    else:
        print(
            pd.Series(machine).to_string(),
            *(t.round(3).to_string(index=False) for t in (programs, network)),
            sep="\n\n",
        )


if __name__ == "__main__":
    main()
