"""Train the network: any device, resumable, averaged, with clear ends (chapter 4)."""

import contextlib
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
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, gather_object, reduce
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hwrlib import checkpoints
from hwrlib.alphabet import IAM, Alphabet
from hwrlib.batches import AugmentedLines, Batch, BucketSampler, PreparedLine, collate
from hwrlib.checkpoints import TrainingError
from hwrlib.ctc import frames
from hwrlib.memory import keep_freed
from hwrlib.metrics import cer, wer
from hwrlib.model import CRNN, AuxiliaryHead, tile
from hwrlib.recognizer import Recognizer, best_precision
from hwrlib.settings import PRESETS, Settings, rate

COLUMNS = ["epoch", "steps", "lines", "minutes", "learning_rate", "loss", "cer", "wer"]
SAVE_EVERY = 180  # seconds: an epoch takes hours on a CPU, and on a GPU less than its state takes to Google Drive
FETCH_EVERY = 20  # steps on a GPU, which waits at each fetch
WORST = 20  # steps in a row whose loss is not finite: float16 may skip a few while it looks for its scale


def new_model(settings: Settings, alphabet: Alphabet = IAM, width_divisor: float = 1.0) -> CRNN:
    """An untrained network whose first weights the seed of the settings decides."""
    torch.manual_seed(settings.seed)
    return CRNN(alphabet, width_divisor)


class Trainer:
    """Trains a network on lines and keeps all that is needed to go on in a folder.

    CTC (Graves et al., 2006) on Hugging Face Accelerate: CPU, GPU, several processes (``accelerate launch``).
    The folder holds ``best/`` (weights with the lowest validation CER, for ``CRNN.from_pretrained``), ``state.pt``
    (everything to go on from), ``history.csv`` and ``settings.json``. Chapter 4: notebooks/04_train_on_colab.ipynb.

    Arguments:
        model: the network to train; it is changed in place.
        lines, validation: prepared lines; those to train on are augmented anew each epoch.
        folder: where the run is kept.
        settings: a preset of ``PRESETS`` or one's own.
        resume: go on with the run in ``folder``; otherwise the folder must hold none.
        on_epoch: called with the history (a DataFrame) after each epoch.

    Raises:
        FileNotFoundError, FileExistsError: nothing to resume, or a run that would be overwritten.
        TrainingError: a state that is damaged or of another alphabet, width divisor or lines, a folder in use, a loss
            that is not finite, too little memory.
        OSError: a full disk.
    """

    def __init__(
        self,
        model: CRNN,
        lines: list[PreparedLine],
        validation: list[PreparedLine],
        folder: str | Path,
        settings: Settings = PRESETS["recipe"],
        resume: bool = False,
        on_epoch: Callable[[pd.DataFrame], None] | None = None,
    ):
        self.folder, self.settings, self.on_epoch = Path(folder), settings, on_epoch
        if not lines or not validation:
            raise TrainingError(f"{len(lines)} lines to train on and {len(validation)} to validate on: both need some")
        self.lines = AugmentedLines(lines, settings.strength, model.width_divisor, settings.seed)
        self.validation = validation
        torch.manual_seed(settings.seed)
        AcceleratorState._reset_state()  # a notebook trains more than once, in more than one precision
        self.precision = settings.precision or best_precision(PartialState().device)
        self.accelerator = Accelerator(mixed_precision=self.precision)
        self.main, self.device = self.accelerator.is_main_process, self.accelerator.device
        rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        widths = [line.pixels.shape[1] for line in lines]
        self.sampler = BucketSampler(widths, settings.batch_size, settings.seed, rank, self.processes)
        # channels_last is for 16 bits: in float32 a CPU (AVX2) trains in 0.75 of the time without it.
        self.model = model if self.precision == "no" else model.to(memory_format=torch.channels_last)
        model.cnn.requires_grad_(not settings.frozen)
        if self.device.type == "cpu":
            keep_freed()
            if self.precision == "no":
                tile(model)
        trainee = AuxiliaryHead(model) if settings.auxiliary else model
        optimizer = torch.optim.AdamW(trainee.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
        self.trainee, self.optimizer = self.accelerator.prepare(trainee, optimizer)
        self.averaged = copy.deepcopy(model) if settings.average else model
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer.optimizer, factor=0.5, patience=3)
        self.ctc = nn.CTCLoss(zero_infinity=True)
        # A CPU has its loss at once, and the scaler of float16 waits for the GPU in any case.
        self.fetch_every = 1 if self.device.type == "cpu" or self.accelerator.scaler else FETCH_EVERY
        self.progress = {"epoch": 0, "batch": 0, "step": 0, "lines": 0, "seconds": 0.0, "loss": 0.0, "losses": 0}
        self.history, self.saved, self.not_finite = [], 0.0, 0
        # What a state is made of, and what it keeps.
        self.origin = {"alphabet": model.alphabet.characters, "width divisor": model.width_divisor}
        for name, some in (("set of lines", lines), ("set of validation lines", validation)):
            self.origin[name] = checkpoints.fingerprint(some)
        self.parts = {"trainee": self.accelerator.unwrap_model(self.trainee), "averaged": self.averaged}
        self.parts |= {"optimizer": self.optimizer, "plateau": self.plateau}
        self.parts |= {"scaler": self.accelerator.scaler} if self.accelerator.scaler else {}
        if resume:
            self._load()
        elif (self.folder / "state.pt").exists() or (self.folder / "best").exists():
            raise FileExistsError(f"{self.folder} holds a run: resume it, or give another folder")

    def run(self, bar: bool = True) -> CRNN:
        """Train to the end of the epochs, the minutes or the patience, or to Ctrl-C; return the averaged network."""
        alone = checkpoints.one_run(self.folder) if self.main else contextlib.nullcontext()
        with alone, checkpoints.on_stop() as self.signals:
            if self.settings.patience and not self.history and not self.progress["step"]:
                self._note()  # epoch 0: the weights it starts from, which stay the best if no epoch beats them
            while self.progress["epoch"] < self.settings.epochs and (self.progress["batch"] or not self._over()):
                if self._epoch(bar):
                    self._save()
                    print(f"Stopped. The run is kept in {self.folder}; resume it to go on.")
                    break
                self.progress["epoch"] += 1
                self._note()
            if self.progress["seconds"] > self.saved:
                self._save()
        return self.averaged.eval()

    def _epoch(self, bar: bool) -> bool:
        """Train on the rest of the epoch, or of the minutes; whether a signal stopped it."""
        self.sampler.go_to(self.progress["epoch"], self.progress["batch"])
        self.lines.epoch = self.progress["epoch"]
        on_gpu = self.device.type == "cuda"
        loader = DataLoader(
            self.lines,
            batch_sampler=self.sampler,
            collate_fn=functools.partial(collate, multiple=64),
            num_workers=min(8, os.cpu_count() or 1) if on_gpu else 0,
            worker_init_fn=checkpoints.own_group,
            pin_memory=on_gpu,
            generator=torch.Generator(),  # its own, so that a resumed run draws the same dropout
        )
        label, hidden = f"epoch {self.progress['epoch'] + 1}", not (bar and self.main)
        shown = tqdm(loader, label, initial=self.progress["batch"], disable=hidden, leave=False)
        self.trainee.train()
        if self.settings.frozen:
            self.model.cnn.eval()  # or batch norm would still count what it sees
        began, pending = time.monotonic() - self.progress["seconds"], []
        for batch in shown:
            pending.append((self._step(batch), len(batch.texts)))
            if self.progress["step"] % self.fetch_every and self.progress["batch"] < len(self.sampler):
                continue
            loss, stopped = self._fetch(pending, began)
            pending.clear()
            shown.set_postfix(loss=f"{loss:.3f}")
            if self._due():
                self._save()
            if stopped or self._over():
                return stopped
        return False

    def _step(self, batch: Batch) -> torch.Tensor:
        """One step of the optimiser; the loss, still on its device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        statistics = [buffer.clone() for buffer in self.model.buffers()] if self.accelerator.scaler else []
        batch = batch.to(self.device)
        # The paper up to the batch's width counts as the line's own margin: the LSTM runs faster where all end alike.
        widths = torch.full_like(batch.widths, batch.images.shape[-1])
        with checkpoints.memory_explained(batch.images, self.folder):
            outputs = self.trainee(batch.images, widths)
            main, *auxiliary = (
                self.ctc(log_probs.transpose(0, 1), batch.labels, frames(widths), batch.label_lengths)
                for log_probs in (outputs if self.settings.auxiliary else [outputs])
            )
            if self.fetch_every == 1:
                self._check(main.item())  # before it spoils the weights
            self.accelerator.backward(main + self.settings.auxiliary * sum(auxiliary))
        self.accelerator.clip_grad_norm_(self.trainee.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.optimizer.step_was_skipped:  # by the scaler: what batch norm counted is no better than the gradient
            for buffer, before in zip(self.model.buffers(), statistics, strict=True):
                buffer.copy_(before)
        if self.averaged is not self.model:
            self._update_ema()
        self.progress["batch"] += 1
        self.progress["step"] += 1
        return main.detach()

    @torch.no_grad()
    def _update_ema(self) -> None:
        """Move the averaged weights and statistics towards the current ones, faster at first, while these are poor."""
        decay = min(self.settings.average, (1 + self.progress["step"]) / (10 + self.progress["step"]))
        for mean, value in zip(self.averaged.state_dict().values(), self.model.state_dict().values(), strict=True):
            mean.lerp_(value, 1 - decay) if mean.is_floating_point() else mean.copy_(value)

    def _fetch(self, pending: list[tuple[torch.Tensor, int]], began: float) -> tuple[float, bool]:
        """Fetch the losses since the last time; share them, the clock and the signals, so that all processes agree."""
        losses, lines = zip(*pending, strict=True)
        own = torch.tensor([time.monotonic() - began, len(self.signals), sum(lines)], device=self.device)
        seconds, signals, lines, *losses = reduce(torch.cat([own, torch.stack(losses)]), "mean").tolist()
        if self.fetch_every > 1:
            for loss in losses:
                self._check(loss)
        finite = [loss for loss in losses if math.isfinite(loss)]
        self.progress["loss"] += sum(finite)
        self.progress["losses"] += len(finite)
        self.progress["lines"] += round(lines * self.processes)
        self.progress["seconds"] = seconds
        return losses[-1], signals > 0

    def _check(self, loss: float) -> None:
        """End the run at a loss that is not finite; under float16, whose scaler skips the step, when it repeats."""
        self.not_finite = 0 if math.isfinite(loss) else self.not_finite + 1
        if self.not_finite >= (WORST if self.accelerator.scaler else 1):
            raise TrainingError(
                f"the loss is {loss} in epoch {self.progress['epoch'] + 1}, step {self.progress['step']}. "
                f"The last good state is in {self.folder}; try a lower learning rate than {self._rate():g}."
            )

    def _rate(self) -> float:
        if self.settings.schedule == "plateau":
            return self.plateau.get_last_lr()[0]
        return rate(self.progress["step"], self._done(), self.settings)

    def _done(self) -> float:
        """The part of the training that is done, 0 to 1, by steps or by minutes, whichever is further."""
        by_steps = self.progress["step"] / (self.settings.epochs * len(self.sampler))
        by_minutes = self.progress["seconds"] / 60 / self.settings.minutes if self.settings.minutes else 0
        return min(1.0, max(by_steps, by_minutes))

    def _over(self) -> bool:
        best = int(np.argmin([row["cer"] for row in self.history])) if self.history else 0
        stalled = self.settings.patience and len(self.history) - 1 - best >= self.settings.patience
        return bool(stalled) or self._done() >= 1

    def _note(self) -> None:
        """After an epoch, or before the first: validate, note, keep the best and the last."""
        now, best = self.progress, min((row["cer"] for row in self.history), default=math.inf)
        loss = now["loss"] / now["losses"] if now["losses"] else math.nan
        row = [now["epoch"], now["step"], now["lines"], round(now["seconds"] / 60, 2), self._rate(), loss]
        error, words = self.validate()
        self.history.append(dict(zip(COLUMNS, [*row, error, words], strict=True)))
        now.update(batch=0, loss=0.0, losses=0)
        if self.settings.schedule == "plateau":
            self.plateau.step(error)
        if error < best and self.main:
            checkpoints.write_whole(self.folder / "best", self.averaged.save_pretrained)
        if len(self.history) == 1 or self._due():
            self._save()
        if self.main and self.on_epoch:
            self.on_epoch(pd.DataFrame(self.history))

    def validate(self) -> tuple[float, float]:
        """CER and WER of the averaged network on the validation lines, shared between the processes."""
        own = self.validation[self.accelerator.process_index :: self.processes]
        self.averaged.to(self.device)
        for buffer in self.averaged.buffers():  # each process has counted its own lines' statistics
            broadcast(buffer)
        training = self.averaged.training
        readings = Recognizer(self.averaged, self.precision).read_prepared([line.pixels for line in own])
        self.averaged.train(training)
        pairs = gather_object([(line.text, reading.text) for line, reading in zip(own, readings, strict=True)])
        references, predictions = zip(*pairs, strict=True)
        return cer(references, predictions), wer(references, predictions)

    def _due(self) -> bool:
        return self.progress["seconds"] - self.saved > SAVE_EVERY

    def _save(self) -> None:
        self.saved = self.progress["seconds"]
        if self.main:
            rest = {"progress": self.progress, "history": self.history}
            checkpoints.write_state(self.folder / "state.pt", self.parts, self.origin, self.settings, **rest)
            tables = {"history.csv": pd.DataFrame(self.history, columns=COLUMNS).to_csv(index=False)}
            tables["settings.json"] = json.dumps(dataclasses.asdict(self.settings), indent=2) + "\n"
            for name, text in tables.items():
                checkpoints.write_whole(self.folder / name, functools.partial(Path.write_text, data=text))

    def _load(self) -> None:
        path = self.folder / "state.pt"
        rest = checkpoints.read_state(path, self.parts, self.origin, self.settings)
        with checkpoints.damage_explained(path):
            self.progress = {name: type(value)(rest["progress"][name]) for name, value in self.progress.items()}
            self.history = [{name: row[name] + 0 for name in COLUMNS} for row in rest["history"]]  # numbers, all
        self.saved = self.progress["seconds"]
