"""Train the network: any device, resumable, averaged, with clear ends (chapter 4)."""

import contextlib
import copy
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import AutocastKwargs, GradScalerKwargs, broadcast, gather_object
from datasets import Dataset
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from hwrlib.batches import AugmentedLines, Batch, BucketSampler, PreparedLine, load_batches, prepare_lines, replay
from hwrlib.checkpoints import fingerprint, load_state, save_state, states, stop_signals
from hwrlib.cpu import best_precision, keep_freed, tile
from hwrlib.files import one_run, write_whole
from hwrlib.metrics import cer, wer
from hwrlib.model import CRNN, AuxiliaryHead
from hwrlib.recognizer import Recognizer
from hwrlib.settings import PRESETS, Settings, learning_rate_at

COLUMNS = ["epoch", "steps", "lines", "minutes", "learning_rate", "loss", "cer", "wer"]
FIXED = ("batch_size", "seed", "aux_weight", "weight_decay", "frozen")  # what a run cannot change half-way
SAVE_EVERY = 180  # seconds: on a CPU an epoch takes hours; on a GPU it ends before its state is on Google Drive


def make_trainer(
    start: CRNN,
    rows: Dataset,
    held_out: Dataset,
    folder: str | Path,
    settings: Settings = PRESETS["recipe"],
    extra: Iterable[Dataset] = (),
    replay_rows: Dataset | None = None,
    repeat: int = 1,
    skip_bad: bool = False,
    **options,
) -> "Trainer":
    """A Trainer, with its ``options``, that starts from a copy of a network and learns rows of ``image`` and ``text``.

    Each of ``rows`` comes ``repeat`` times an epoch, each of ``extra`` once, and as many of ``replay_rows`` are mixed
    in, against forgetting; for ``skip_bad`` see :func:`hwrlib.batches.prepare_lines`.
    """
    about = {"alphabet": start.alphabet, "width_divisor": start.width_divisor, "skip_bad": skip_bad}
    lines, general = prepare_lines(rows, **about) * repeat, []
    for more in extra:
        lines += prepare_lines(more, **about)
    if replay_rows is not None:  # no more of them than can be drawn
        drawn = range(min(len(replay_rows), len(lines) + 32))
        general = prepare_lines(replay_rows.shuffle(seed=settings.seed).select(drawn), **about)
    lines = replay(lines, general, seed=settings.seed)
    return Trainer(copy.deepcopy(start), lines, prepare_lines(held_out, **about), folder, settings, **options)


@dataclass(eq=False, repr=False)
class Trainer:
    """Trains a network, changed in place, on prepared lines, and keeps all that is needed to go on in a folder.

    CTC (Graves et al., 2006) on Hugging Face Accelerate: CPU, GPU, several processes (``accelerate launch``).
    The folder holds ``best/`` (weights with the lowest validation CER, for ``CRNN.from_pretrained``), ``state-STEPS/``
    (all to go on from), ``history.csv`` and ``settings.json``.

    Raises:
        FileNotFoundError, FileExistsError, OSError: nothing to resume; a run would be overwritten; a full disk.
        RuntimeError: a damaged state or one of other lines or another network, a folder in use, a loss not finite.
    """

    model: CRNN
    lines: list[PreparedLine]
    validation: list[PreparedLine]
    folder: str | Path
    settings: Settings = PRESETS["recipe"]
    resume: bool = False  # go on with the run in the folder, which must hold none otherwise
    on_epoch: Callable[[pd.DataFrame], None] | None = None  # called with the history after each epoch
    # Called after each step with the steps done and the most there can be; True ends the run as Ctrl-C does.
    on_step: Callable[[int, int], bool | None] | None = None

    def __post_init__(self):
        settings, model, self.folder, self.history, self.saved = self.settings, self.model, Path(self.folder), [], 0.0
        self.progress = {"epoch": 0, "batch": 0, "step": 0, "lines": 0, "seconds": 0.0, "loss": 0.0}
        self.precision = settings.precision or best_precision(PartialState().device)
        half, usual = self.precision != "fp32", best_precision("cuda") if torch.cuda.is_available() else "bf16"
        self.accelerator = Accelerator(
            # Accelerate has one type of 16 bits in a process, and a notebook trains more than once: float32 is it, off.
            mixed_precision=self.precision if half else usual,
            kwargs_handlers=[AutocastKwargs(enabled=half), GradScalerKwargs(enabled=half)],
            dataloader_config=DataLoaderConfiguration(even_batches=False, non_blocking=True),
        )
        self.main, device = self.accelerator.is_main_process, self.accelerator.device
        self.fetch_every = 20 if device.type == "cuda" else 1  # steps: a GPU waits at each fetch
        torch.manual_seed(settings.seed)
        # channels_last is for 16 bits: in float32 a CPU (AVX2) trains in 0.75 of the time without it.
        model.to(device, memory_format=torch.channels_last if half else torch.contiguous_format)
        model.cnn.requires_grad_(not settings.frozen)
        if device.type == "cpu":
            keep_freed()
            if not half:
                tile(model)
        ema = AveragedModel(model, use_buffers=True)
        trainee = AuxiliaryHead(model) if settings.aux_weight else model
        optimizer = torch.optim.AdamW(trainee.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
        widths, processes = [line.pixels.shape[1] for line in self.lines], self.accelerator.num_processes
        self.augmented = AugmentedLines(self.lines, settings.augmentation, model.width_divisor, settings.seed)
        self.sampler = BucketSampler(widths, settings.batch_size, settings.seed, processes)
        loader = load_batches(self.augmented, self.sampler, device.type == "cuda")
        self.trainee, self.optimizer, self.loader = self.accelerator.prepare(trainee, optimizer, loader)
        self.ema = self.accelerator.prepare_model(ema, device_placement=False, evaluation_mode=True)  # saved as well
        self.averaged = ema.module
        self.made_of = {"alphabet": model.alphabet.characters, "width divisor": model.width_divisor}
        self.made_of |= {"set of lines": fingerprint(self.lines), "number of processes": processes}
        self.made_of |= {"set of validation lines": fingerprint(self.validation)}
        self.made_of |= {name: getattr(settings, name) for name in FIXED}
        if self.resume:
            rest = load_state(self.accelerator, self.folder, self.made_of)
            self.progress, self.history, self.saved = rest["progress"], rest["history"], rest["progress"]["seconds"]
        elif states(self.folder) or (self.folder / "best").exists():
            raise FileExistsError(f"{self.folder} holds a run: resume it, or give another folder")

    def run(self, bar: bool = True) -> CRNN:
        """Train to the end of the epochs, the minutes or the patience, or to Ctrl-C; return the averaged network."""
        now = self.progress
        alone = one_run(self.folder) if self.main else contextlib.nullcontext()
        with alone, stop_signals() as asked:
            if self.settings.patience and not self.history and not now["step"]:
                self._end_epoch()  # epoch 0: the weights it starts from, which stay the best if no epoch beats them
            stopped = False
            while not stopped and now["epoch"] < self.settings.epochs and (now["batch"] or self._done() < 1):
                if not (stopped := self._epoch(bar, asked)):
                    now["epoch"] += 1
                    self._end_epoch()
            self._save()
        self.accelerator.wait_for_everyone()  # a process that ends while others are at work may abort
        if stopped:
            self.accelerator.print(f"Stopped. The run is kept in {self.folder}; resume it to go on.")
        return self.averaged.eval()

    def _epoch(self, bar: bool, asked: list) -> bool:
        """Train on the rest of the epoch, or of the minutes; whether it was ``asked`` to stop."""
        now = self.progress
        self.sampler.epoch = self.augmented.epoch = now["epoch"]
        rest = self.accelerator.skip_first_batches(self.loader, now["batch"])
        shown = tqdm(rest, f"epoch {now['epoch'] + 1}", disable=not (bar and self.main), leave=False)
        self.trainee.train()
        self.model.cnn.train(not self.settings.frozen)  # or batch norm would still count what it sees
        began, lines, losses = time.monotonic() - now["seconds"], 0, 0
        for batch in shown:
            losses, lines = losses + self._step(batch), lines + len(batch.texts)
            now["batch"], now["step"] = now["batch"] + 1, now["step"] + 1
            if self.on_step and self.on_step(now["step"], self.settings.epochs * len(self.loader)):
                asked.append(self.on_step)
            if now["step"] % self.fetch_every and now["batch"] < len(self.loader):
                continue
            # One clock, one end and one loss for all processes.
            own = torch.cat([losses.new_tensor([time.monotonic() - began, len(asked), lines]), losses[None]])
            seconds, stopped, lines, loss = self.accelerator.reduce(own, "mean").tolist()
            if not math.isfinite(loss):
                raise RuntimeError(
                    f"the loss is {loss} in epoch {now['epoch'] + 1}, step {now['step']}. The last good state is in "
                    f"{self.folder}; try a lower learning rate than {self._learning_rate():g}."
                )
            now["lines"] += round(lines * self.accelerator.num_processes)
            now["seconds"], now["loss"], lines, losses = seconds, now["loss"] + loss, 0, 0
            shown.set_postfix(loss=f"{now['loss'] / now['batch']:.3f}")
            if now["seconds"] - self.saved > SAVE_EVERY:
                self._save()
            if stopped or self._done() == 1:
                return stopped > 0
        return False

    def _step(self, batch: Batch) -> torch.Tensor:
        """One step of the optimiser; the loss, still on its device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        # The paper up to the batch's width counts as the line's own margin: the LSTM runs faster where all end alike.
        widths = torch.full_like(batch.widths, batch.images.shape[-1])
        # cuDNN tries out its kernels for each shape: there are few in training, and many where lines are read.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            outputs = self.trainee(batch.images, widths)
            main, *auxiliary = map(batch.ctc_loss, outputs if self.settings.aux_weight else [outputs])
            self.accelerator.backward(main + self.settings.aux_weight * sum(auxiliary))
        self.accelerator.clip_grad_norm_(self.trainee.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.optimizer.step_was_skipped:  # as float16 does while it looks for its scale
            decay = min(self.settings.ema_decay, (1 + self.progress["step"]) / (10 + self.progress["step"]))
            self.ema.multi_avg_fn = get_ema_multi_avg_fn(decay)  # faster at first, while the averages are poor
            self.ema.update_parameters(self.model)
        return main.detach()

    def _learning_rate(self) -> float:
        if self.settings.schedule != "plateau":
            return learning_rate_at(self.progress["step"], self._done(), self.settings)
        own = torch.optim.SGD([torch.zeros(1)], self.settings.learning_rate)  # whose rate each step takes over
        plateau = ReduceLROnPlateau(own, factor=0.5, patience=3)
        for row in self.history:
            plateau.step(row["cer"])
        return plateau.get_last_lr()[0]

    def _done(self) -> float:
        """The part of the training that is done, 0 to 1, by steps, minutes or patience, whichever is further."""
        errors, patience = [row["cer"] for row in self.history], self.settings.patience
        if patience and errors and len(errors) - 1 - errors.index(min(errors)) >= patience:
            return 1.0
        by_steps = self.progress["step"] / (self.settings.epochs * len(self.loader))
        by_minutes = self.progress["seconds"] / 60 / self.settings.minutes if self.settings.minutes else 0
        return min(1.0, max(by_steps, by_minutes))

    def _end_epoch(self) -> None:
        """After an epoch, or before the first: validate, write it down, keep the best and the last."""
        now, best = self.progress, min((row["cer"] for row in self.history), default=math.inf)
        broadcast(list(self.averaged.buffers()))  # each process has counted its own lines' statistics
        with self.accelerator.split_between_processes(self.validation) as own:
            readings = Recognizer(self.averaged, self.precision).read_prepared([line.pixels for line in own])
            pairs = gather_object([(line.text, reading.text) for line, reading in zip(own, readings, strict=True)])
        texts, read = zip(*pairs, strict=True)
        error, loss = cer(texts, read), now["loss"] / now["batch"] if now["batch"] else math.nan
        row = [now["epoch"], now["step"], now["lines"], round(now["seconds"] / 60, 2), self._learning_rate(), loss]
        self.history.append(dict(zip(COLUMNS, [*row, error, wer(texts, read)], strict=True)))
        now.update(batch=0, loss=0.0)
        if error < best and self.main:
            write_whole(self.folder / "best", self.averaged.save_pretrained)
        if len(self.history) == 1 or now["seconds"] - self.saved > SAVE_EVERY:
            self._save()
        if self.on_epoch and self.main:
            self.on_epoch(pd.DataFrame(self.history))

    def _save(self) -> None:
        self.saved = self.progress["seconds"]
        if self.main:
            rest = {"made_of": self.made_of, "progress": self.progress, "history": self.history}
            save_state(self.accelerator, self.folder, rest)
            settings, history = json.dumps(asdict(self.settings), indent=2), pd.DataFrame(self.history, columns=COLUMNS)
            write_whole(self.folder / "settings.json", lambda file: file.write_text(settings + "\n"))
            write_whole(self.folder / "history.csv", lambda file: history.to_csv(file, index=False))
