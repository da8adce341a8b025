"""Train the network: any device, resumable, averaged, with clear ends (chapter 4)."""

import copy
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, gather_object, reduce
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hwrlib.aids import WithAuxiliaryHead, follow
from hwrlib.data import BucketSampler, Lines, collate
from hwrlib.metrics import cer, wer
from hwrlib.model import CRNN
from hwrlib.precision import best_precision
from hwrlib.presets import PRESETS, Settings
from hwrlib.recognizer import Recognizer
from hwrlib.runs import TrainingError, memory_explained, on_interrupt, read_state, write_whole

COLUMNS = ["epoch", "steps", "lines", "minutes", "learning_rate", "loss", "cer", "wer"]
SAVE_EVERY = 600  # seconds, within an epoch: on a CPU one takes long


class Trainer:
    """Trains a network on lines and keeps all that is needed to go on in a folder.

    CTC (Graves et al., 2006) on Hugging Face Accelerate: CPU, GPU, several processes (``accelerate launch``).
    Chapter 4 teaches it: notebooks/04_train_on_colab.ipynb.

    The folder holds ``best/`` (weights with the lowest validation CER, for ``CRNN.from_pretrained``), ``state.pt``
    (everything to go on from), ``history.csv`` and ``settings.json``.

    Arguments:
        model: the network to train; it is changed in place.
        lines, validation: prepared lines.
        folder: where the run is kept.
        settings: a preset of ``PRESETS`` or one's own.
        resume: go on with the run in ``folder``; otherwise the folder must hold none.
        on_epoch: called with the history (a DataFrame) after each epoch.

    Raises:
        FileNotFoundError, FileExistsError: nothing to resume, or a run that would be overwritten.
        TrainingError: a state of another alphabet, a loss that is not finite, too little memory, a full disk.
    """

    def __init__(
        self,
        model: CRNN,
        lines: Lines,
        validation: Lines,
        folder: str | Path,
        settings: Settings = PRESETS["recipe"],
        resume: bool = False,
        on_epoch: Callable[[pd.DataFrame], None] | None = None,
    ):
        self.folder, self.settings, self.on_epoch = Path(folder), settings, on_epoch
        self.lines, self.validation = lines, validation
        if not len(lines) or not len(validation):
            raise TrainingError(f"{len(lines)} lines to train on and {len(validation)} to validate on: both need some")
        torch.manual_seed(settings.seed)
        AcceleratorState._reset_state()  # a notebook trains more than once, in more than one precision
        self.precision = settings.precision or best_precision("cuda" if torch.cuda.is_available() else "cpu")
        self.accelerator = Accelerator(mixed_precision=self.precision)
        self.sampler = BucketSampler(
            lines.widths,
            settings.batch_size,
            settings.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        model.to(memory_format=torch.channels_last)
        trainee = WithAuxiliaryHead(model, settings.auxiliary > 0, settings.frozen)
        optimizer = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
        optimizer = optimizer(trainee.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
        self.trainee, self.optimizer = self.accelerator.prepare(trainee, optimizer)
        self.model = model
        self.averaged = copy.deepcopy(model) if settings.average else model
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer.optimizer, factor=0.5, patience=3)
        self.ctc = nn.CTCLoss(zero_infinity=True)
        self.progress = {"epoch": 0, "batch": 0, "step": 0, "lines": 0, "seconds": 0.0, "loss": 0.0}
        self.history: list[dict] = []
        self.saved = 0.0
        if resume:
            self._load()
        elif (self.folder / "state.pt").exists():
            raise FileExistsError(f"{self.folder} holds a run: resume it, or give another folder")

    def run(self, bar: bool = True) -> CRNN:
        """Train to the end of the epochs, the minutes or the patience, or to Ctrl-C; return the averaged network."""
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "settings.json").write_text(json.dumps(dataclasses.asdict(self.settings), indent=2) + "\n")
        self.stopped = False
        with on_interrupt(self._stop):
            if self.settings.patience and not self.history and not self.progress["step"]:
                self._note()  # epoch 0: the weights it starts from, which stay the best if no epoch beats them
            while self.progress["epoch"] < self.settings.epochs and (self.progress["batch"] or not self._over()):
                self._epoch(bar)
                if self.stopped:
                    self._save()
                    print(f"Stopped. The run is kept in {self.folder}; resume it to go on.")
                    break
                self.progress["epoch"] += 1
                self._note()
        return self.averaged.eval()

    def _stop(self) -> None:
        self.stopped = True

    def _epoch(self, bar: bool) -> None:
        self.sampler.resume(self.progress["epoch"], self.progress["batch"])
        self.lines.epoch = self.progress["epoch"]
        on_gpu = self.accelerator.device.type == "cuda"
        loader = DataLoader(
            self.lines,
            batch_sampler=self.sampler,
            collate_fn=functools.partial(collate, multiple=64),
            num_workers=min(8, max(0, (os.cpu_count() or 1) - 1)) if on_gpu else 0,
            pin_memory=on_gpu,
            generator=torch.Generator(),  # its own, so that a resumed run draws the same dropout
        )
        shown = tqdm(
            loader,
            f"epoch {self.progress['epoch'] + 1}",
            total=len(self.sampler),
            initial=self.progress["batch"],
            disable=not (bar and self.accelerator.is_main_process),
            leave=False,
        )
        self.trainee.train()
        began = time.monotonic() - self.progress["seconds"]
        for batch in shown:
            loss = self._step(batch)
            # Shared, so that all processes count alike and stop after the same step.
            shared = [time.monotonic() - began, float(self.stopped), loss, len(batch.texts)]
            shared = reduce(torch.tensor(shared, device=self.accelerator.device), "mean").tolist()
            self.progress["seconds"], self.stopped, loss = shared[0], shared[1] > 0, shared[2]
            self.progress["lines"] += round(shared[3] * self.accelerator.num_processes)
            self.progress["loss"] += loss
            shown.set_postfix(loss=f"{loss:.3f}")
            if self.progress["seconds"] - self.saved > SAVE_EVERY:
                self._save()
            if self.stopped or self._over():
                break

    def _step(self, batch) -> float:
        """One step of the optimiser; the loss."""
        rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = batch.to(self.accelerator.device)
        # The paper up to the batch's width counts as the line's own margin: the LSTM runs faster where all end alike.
        widths = torch.full_like(batch.widths, batch.images.shape[-1])
        steps = self.model.output_lengths(widths)
        with memory_explained(batch.images, self.folder):
            main, *auxiliary = (
                self.ctc(log_probs.transpose(0, 1), batch.labels, steps, batch.label_lengths)
                for log_probs in self.trainee(batch.images, widths)
            )
            loss = main + self.settings.auxiliary * sum(auxiliary)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss.item()} in epoch {self.progress['epoch'] + 1}, step {self.progress['step']}. "
                    f"The last good state is in {self.folder}; try a lower learning rate than {rate:g}."
                )
            self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.trainee.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.averaged is not self.model:
            follow(self.averaged, self.model, self.progress["step"], self.settings.average)
        self.progress["batch"] += 1
        self.progress["step"] += 1
        return main.item()

    def _learning_rate(self) -> float:
        """Warm-up, then a cosine to zero at the end of the epochs or minutes; or what the plateau has left of it."""
        settings = self.settings
        rate = settings.learning_rate * min(1, (self.progress["step"] + 1) / max(1, settings.warmup))
        if not settings.cosine:
            return min(rate, self.plateau.get_last_lr()[0])
        return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, self._done())))

    def _done(self) -> float:
        """The part of the training that is done, 0 to 1, by steps or by minutes, whichever is further."""
        done = self.progress["step"] / (self.settings.epochs * len(self.sampler))
        return max(done, self.progress["seconds"] / 60 / self.settings.minutes) if self.settings.minutes else done

    def _over(self) -> bool:
        best = int(np.argmin([row["cer"] for row in self.history])) if self.history else 0
        stalled = self.settings.patience and len(self.history) - 1 - best >= self.settings.patience
        return bool(stalled) or self._done() >= 1

    def _note(self) -> None:
        """After an epoch, or before the first: validate, note, keep the best and the last."""
        progress, rate = self.progress, self._learning_rate()
        error, words = self.validate()
        row = {
            "epoch": progress["epoch"],
            "steps": progress["step"],
            "lines": progress["lines"],
            "minutes": round(progress["seconds"] / 60, 2),
            "learning_rate": rate,
            "loss": progress["loss"] / progress["batch"] if progress["batch"] else math.nan,
            "cer": error,
            "wer": words,
        }
        best = not self.history or error < min(r["cer"] for r in self.history)
        self.history.append(row)
        self.plateau.step(error)
        progress.update(batch=0, loss=0.0)
        if best:
            self._write("best", lambda path: self.averaged.save_pretrained(path))
        self._save()
        if self.accelerator.is_main_process and self.on_epoch:
            self.on_epoch(pd.DataFrame(self.history))

    def validate(self) -> tuple[float, float]:
        """CER and WER of the averaged network on the validation lines, shared between the processes."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        self.averaged.to(self.accelerator.device)
        for buffer in self.averaged.buffers():  # each process has counted its own lines' statistics
            broadcast(buffer)
        training = self.averaged.training
        readings = Recognizer(self.averaged, self.precision).read_prepared(self.validation.pixels[rank::processes])
        self.averaged.train(training)
        pairs = gather_object(
            list(zip(self.validation.texts[rank::processes], [r.text for r in readings], strict=True))
        )
        references, predictions = zip(*pairs, strict=True)
        return cer(references, predictions), wer(references, predictions)

    def _parts(self) -> dict:
        """What has a state of its own."""
        parts = {"trainee": self.accelerator.unwrap_model(self.trainee), "averaged": self.averaged}
        parts |= {"optimizer": self.optimizer, "plateau": self.plateau}
        return parts | ({"scaler": self.accelerator.scaler} if self.accelerator.scaler else {})

    def _save(self) -> None:
        self.saved = self.progress["seconds"]
        state = {name: part.state_dict() for name, part in self._parts().items()} | {
            "alphabet": self.model.alphabet.characters,
            "settings": dataclasses.asdict(self.settings),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "progress": dict(self.progress),
            "history": self.history,
        }
        self._write("state.pt", lambda path: torch.save(state, path))
        self._write("history.csv", lambda path: pd.DataFrame(self.history, columns=COLUMNS).to_csv(path, index=False))

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        if self.accelerator.is_main_process:
            write_whole(self.folder / name, write)

    def _load(self) -> None:
        state = read_state(self.folder / "state.pt", self.model.alphabet, self.settings)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self.progress, self.history = state["progress"], state["history"]
