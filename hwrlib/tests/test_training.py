"""Training: it resumes to the same curve, ends with a reason, and never loses the last good state."""

import copy
import dataclasses
import functools
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from hwrlib import checkpoints, training
from hwrlib.alphabet import IAM, Alphabet
from hwrlib.batches import PreparedLine, prepare_lines
from hwrlib.checkpoints import TrainingError, fingerprint, on_stop, one_run, own_group, write_whole
from hwrlib.model import CRNN
from hwrlib.settings import PRESETS, Settings, parse_setting
from hwrlib.training import Trainer, new_model
from hwrlib.winograd import WinogradConv2d

AB = Alphabet("ab")
pytestmark = pytest.mark.usefixtures("one_thread")
COLUMNS = ["epoch", "steps", "lines", "minutes", "learning_rate", "loss", "cer", "wer"]


class Small(CRNN, coders={Alphabet: (lambda alphabet: alphabet.characters, Alphabet)}, license="mit", tags=[]):
    """The network with a hundredth of its weights: what is tested here is not what it learns."""

    def __init__(self, alphabet: Alphabet = AB, width_divisor: float = 1.0, calibration: dict | None = None):
        nn.Module.__init__(self)
        self.alphabet, self.width_divisor, self.calibration = alphabet, width_divisor, calibration or {}
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d((2, 2)),
            nn.Conv2d(4, 8, 3, padding=1),
            nn.MaxPool2d((2, 2)),
            nn.MaxPool2d((4, 1)),
            nn.Conv2d(8, 8, 2),
        )
        self.map2seq = nn.Linear(8 * 7, 256)
        self.rnn = nn.LSTM(256, 8, num_layers=2, dropout=0.3, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(16, alphabet.classes)


def small(alphabet=AB):
    torch.manual_seed(5)
    return Small(alphabet)


def drawn(count, alphabet=AB, first=0):
    """Lines of strokes ("a") and blots ("b") of many widths."""
    rows = []
    for k in range(first, first + count):
        rng = np.random.default_rng(k)
        text = "".join(rng.choice(["a", "b"], rng.integers(2, 5)))
        pixels = np.full((32, 14 + 14 * len(text) + k % 5), 255, np.uint8)
        for position, character in enumerate(text):
            x = 7 + 14 * position
            pixels[6:26, x : x + (2 if character == "a" else 8)] = 0
        rows.append({"image": Image.fromarray(pixels), "text": text})
    return prepare_lines(rows, alphabet)


LINES, VALIDATION = drawn(18), drawn(6, first=100)
FEW = dataclasses.replace(PRESETS["recipe"], epochs=2, batch_size=4, warmup=2, average=0.9, strength=0, precision="no")


def trainer(folder, settings=FEW, lines=LINES, model=None, **options):
    return Trainer(model or small(), lines, VALIDATION, folder, settings, **options)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def loaded(folder):
    model = Small()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    assert json.loads((folder / "config.json").read_text())["alphabet"] == "ab"
    return model


def state_of(folder):
    return torch.load(folder / "state.pt", weights_only=True)


def stop(trainer):
    """As a signal would."""
    trainer.signals.append(signal.SIGINT)


def steps_of(trainer):
    """Note the loss of every step."""
    losses, step = [], trainer._step

    def noting(batch):
        loss = step(batch)
        losses.append(loss.item())
        return loss

    trainer._step = noting
    return losses


def after(trainer, count, act):
    """Do something right after so many steps from now."""
    step, done = trainer._step, []

    def acting(batch):
        done.append(step(batch))
        if len(done) == count:
            act()
        return done[-1]

    trainer._step = acting


# What a run leaves


def test_a_run_keeps_the_best_the_last_its_history_and_its_settings(tmp_path):
    seen = []
    training_run = trainer(tmp_path / "run", on_epoch=lambda history: seen.append(len(history)))
    model = training_run.run(bar=False)
    assert not model.training
    assert seen == [1, 2]
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert list(history) == COLUMNS
    assert history.epoch.tolist() == [1, 2]
    assert history.steps.tolist() == [5, 10]
    assert history.lines.tolist() == [18, 36]
    assert np.isfinite(history).all(axis=None)
    assert json.loads((tmp_path / "run" / "settings.json").read_text()) == dataclasses.asdict(FEW)
    left = {".lock", "best", "state.pt", "history.csv", "settings.json"}
    assert {p.name for p in (tmp_path / "run").iterdir()} == left
    best = loaded(tmp_path / "run" / "best")
    assert best.alphabet == AB
    assert same(state_of(tmp_path / "run")["parts"]["averaged"], model.state_dict())
    if history.cer.idxmin() == 1:
        assert same(best.state_dict(), model.state_dict())


@pytest.mark.parametrize("preset", ["reference", "recipe"])
def test_both_presets_train_the_real_network(tmp_path, preset):
    torch.manual_seed(0)
    settings = dataclasses.replace(PRESETS[preset], epochs=1, batch_size=4, precision="no")
    run = Trainer(CRNN(), drawn(4, IAM), drawn(1, IAM), tmp_path, settings)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    losses = steps_of(run)
    run.run(bar=False)
    assert len(losses) == 1
    assert np.isfinite(losses).all()
    changed = [name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])]
    assert {name.split(".")[0] for name in changed} == {"cnn", "map2seq", "rnn", "fc"}
    assert CRNN.from_pretrained(tmp_path / "best").alphabet == IAM
    assert (run.averaged is run.model) == (preset == "reference")
    assert run.optimizer.param_groups[0]["weight_decay"] == settings.weight_decay


def test_the_presets_are_the_designed_ones():
    reference = PRESETS["reference"]
    assert (reference.epochs, reference.batch_size, reference.learning_rate, reference.clip) == (10, 8, 1e-3, 5)
    assert reference.schedule == "plateau"
    assert reference.weight_decay == reference.average == reference.auxiliary == reference.strength == 0
    recipe = PRESETS["recipe"]
    assert recipe.schedule == "fall"
    assert min(recipe.warmup, recipe.weight_decay, recipe.average, recipe.strength) > 0
    assert recipe.auxiliary == 0.1


def test_the_personal_preset_is_gentle_and_can_stop_early():
    personal, recipe = PRESETS["personal"], PRESETS["recipe"]
    assert personal.learning_rate < recipe.learning_rate
    assert personal.epochs < recipe.epochs
    assert personal.patience
    assert personal.auxiliary == 0
    assert not personal.frozen


@pytest.mark.parametrize(("precision", "count"), [("no", 4), ("bf16", 0)])
def test_in_float32_on_a_cpu_the_large_convolutions_learn_in_tiles(tmp_path, precision, count):
    run = trainer(tmp_path, dataclasses.replace(FEW, precision=precision), model=CRNN())
    assert sum(isinstance(layer, WinogradConv2d) for layer in run.model.cnn) == count
    assert list(run.model.state_dict()) == list(CRNN().state_dict())


def test_frozen_convolutions_stay_as_they_are_while_the_rest_learns(tmp_path):
    settings = dataclasses.replace(FEW, average=0, frozen=True)
    run = trainer(tmp_path, settings)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.run(bar=False)
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"map2seq", "rnn", "fc"}
    assert any("running_mean" in name for name in before)
    with pytest.raises(TrainingError, match="another frozen"):
        trainer(tmp_path, dataclasses.replace(settings, frozen=False), resume=True)
    thawed = trainer(tmp_path / "thawed", dataclasses.replace(settings, frozen=False), model=run.model)
    thawed.run(bar=False)
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert "cnn.0.weight" in changed
    assert "cnn.1.running_mean" in changed


def test_it_learns(tmp_path):
    run = trainer(tmp_path, dataclasses.replace(FEW, epochs=6, learning_rate=1e-2))
    run.run(bar=False)
    losses = [row["loss"] for row in run.history]
    assert losses[-1] < 0.7 * losses[0]


def test_the_average_is_the_exponential_moving_average(tmp_path):
    run = trainer(tmp_path, dataclasses.replace(FEW, epochs=1, average=0.2))
    mean = run.model.fc.weight.detach().clone()
    step = run._step

    def following(batch):
        loss = step(batch)
        decay = min(0.2, run.progress["step"] / (9 + run.progress["step"]))
        mean.lerp_(run.model.fc.weight.detach(), 1 - decay)
        return loss

    run._step = following
    run.run(bar=False)
    assert (mean - run.averaged.fc.weight).abs().max() < 0.3 * (
        run.model.fc.weight - run.averaged.fc.weight
    ).abs().max()
    assert not torch.equal(run.averaged.fc.weight, run.model.fc.weight)
    assert torch.equal(run.averaged.cnn[1].num_batches_tracked, run.model.cnn[1].num_batches_tracked)


def rates_of(trainer):
    """Note the learning rate of every step."""
    rates, step = [], trainer._step

    def noting(batch):
        loss = step(batch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return loss

    trainer._step = noting
    return rates


@pytest.mark.parametrize("schedule", ["fall", "hold"])
def test_the_learning_rate_warms_up_holds_and_falls_to_zero_in_the_last_quarter(tmp_path, schedule):
    run = trainer(tmp_path, dataclasses.replace(FEW, epochs=4, schedule=schedule))
    rates = rates_of(run)
    run.run(bar=False)
    assert rates[0] == pytest.approx(0.5e-3)
    assert rates[1:16] == [1e-3] * 15
    assert rates[16:] == ([1e-3] * 4 if schedule == "hold" else pytest.approx([0.8e-3, 0.6e-3, 0.4e-3, 0.2e-3]))


def test_the_learning_rate_halves_on_a_plateau(tmp_path, monkeypatch):
    run = trainer(tmp_path, dataclasses.replace(PRESETS["reference"], epochs=6, precision="no"))
    monkeypatch.setattr(run, "validate", lambda: (0.5, 0.5))
    run.run(bar=False)
    assert [row["learning_rate"] for row in run.history] == [1e-3] * 5 + [0.5e-3]


def test_runs_chain_while_the_rate_is_held(tmp_path):
    held = dataclasses.replace(FEW, epochs=1, schedule="hold")
    trainer(tmp_path, held).run(bar=False)
    run = trainer(tmp_path, dataclasses.replace(held, epochs=3, schedule="fall"), resume=True)
    rates = rates_of(run)
    run.run(bar=False)
    assert rates[:6] == [1e-3] * 6
    assert rates[-1] == pytest.approx(1e-3 * 4 / 15)


def test_the_seed_decides_the_first_weights():
    first, again, other = (new_model(Settings(seed=seed), AB, 4.0) for seed in (1, 1, 2))
    assert same(first.state_dict(), again.state_dict())
    assert not same(first.state_dict(), other.state_dict())
    assert (first.alphabet, first.width_divisor) == (AB, 4.0)


def test_the_lines_are_augmented_as_the_settings_and_the_network_say(tmp_path):
    model = small()
    model.width_divisor = 2.5
    lines = trainer(tmp_path, dataclasses.replace(FEW, strength=0.7, seed=3), model=model).lines
    assert (lines.strength, lines.width_divisor, lines.seed) == (0.7, 2.5, 3)


@pytest.mark.parametrize("auxiliary", [0, 0.1])
def test_the_loss_of_a_batch_is_that_of_ctc_and_of_the_auxiliary_head(tmp_path, auxiliary):
    run = trainer(tmp_path, dataclasses.replace(FEW, auxiliary=auxiliary, average=0, learning_rate=0))
    losses, given = steps_of(run), []
    step = run._step
    run._step = lambda batch: given.append(batch) or step(batch)
    backward = run.accelerator.backward
    total = []
    run.accelerator.backward = lambda loss: total.append(loss.item()) or backward(loss)
    run.model.rnn.dropout = 0
    run.run(bar=False)
    model, batch = run.model.train(), given[0].to("cpu")
    widths = torch.full_like(batch.widths, batch.images.shape[-1])
    steps = widths // 4 - 1
    ctc = functools.partial(torch.nn.functional.ctc_loss, zero_infinity=True)
    sequence = model.features(batch.images, widths)
    main = ctc(model.classify(sequence, widths).transpose(0, 1), batch.labels, steps, batch.label_lengths)
    assert losses[0] == pytest.approx(main.item(), rel=1e-5)
    if auxiliary:
        head = run.accelerator.unwrap_model(run.trainee).head(sequence.transpose(1, 2)).transpose(1, 2).log_softmax(-1)
        main = main + 0.1 * ctc(head.transpose(0, 1), batch.labels, steps, batch.label_lengths)
    assert total[0] == pytest.approx(main.item(), rel=1e-5)


# Settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs=abc", "epochs is 'abc'; give a whole number from 1"),
        ("epochs=2.5", "epochs is 2.5; give a whole number"),
        ("epochs=null", "epochs is None"),
        ("epochs", "epochs is ''"),
        ("batch_size=0", "batch_size is 0; give a whole number from 1 to 4,096"),
        ("average=2", "average is 2; give a number from 0 to 1"),
        ("learning_rate=NaN", "learning_rate is nan; give a number from 0 to 1"),
        ("auxiliary=true", "auxiliary is True; give a number"),
        ("frozen=yes", "frozen is 'yes'; give true or false"),
        ("frozen=1", "frozen is 1; give true or false"),
        ("schedule=cosine", "schedule is 'cosine'; give fall or hold or plateau"),
        ("precision=half", "precision is 'half'; give no or bf16 or fp16, or null"),
        ("minutes=-1", "minutes is -1; give a number from 0.001 .*, or null"),
        ("seed=" + "9" * 5000, "seed is '999.*; give a whole number"),
        ("momentum=0.9", "'momentum' is no setting; there are epochs, minutes, batch_size"),
    ],
)
def test_a_setting_of_another_type_or_out_of_range_is_named_with_its_range(text, message):
    with pytest.raises(ValueError, match=message):
        parse_setting(text)


def test_settings_are_typed():
    texts = ["epochs=3", "learning_rate=1e-4", "weight_decay=0", "minutes=null", "frozen=true", "precision=bf16"]
    assert [parse_setting(text)[1] for text in texts] == [3, 1e-4, 0, None, True, "bf16"]
    with pytest.raises(ValueError, match="batch_size is 0"):
        dataclasses.replace(PRESETS["recipe"], batch_size=0)
    with pytest.raises(ValueError, match="frozen is 'yes'"):
        Settings(frozen="yes")


# Stopped and resumed


@pytest.mark.parametrize("preset", ["reference", "recipe"])
@pytest.mark.parametrize("count", [2, 5, 7])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, preset, count):
    settings = dataclasses.replace(PRESETS[preset], epochs=2, batch_size=4, warmup=3, precision="no")
    whole = trainer(tmp_path / "whole", settings)
    expected = steps_of(whole)
    model = whole.run(bar=False)

    first = trainer(tmp_path / "run", settings)
    losses = steps_of(first)
    after(first, count, lambda: stop(first))
    first.run(bar=False)
    assert len(losses) == count
    torch.manual_seed(99)  # another process would have drawn other numbers
    second = trainer(tmp_path / "run", settings, model=Small(AB), resume=True)
    losses_after = steps_of(second)
    resumed = second.run(bar=False)
    assert losses + losses_after == expected
    assert same(resumed.state_dict(), model.state_dict())
    assert same(second.model.state_dict(), whole.model.state_dict())
    columns = ["epoch", "steps", "lines", "loss", "cer", "wer", "learning_rate"]
    histories = [pd.read_csv(tmp_path / name / "history.csv")[columns] for name in ("whole", "run")]
    pd.testing.assert_frame_equal(*histories)


@pytest.fixture
def usual():
    """Signals as in a terminal: a shell's background job starts with some ignored."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield {n: signal.getsignal(n) for n in before}
    for n, handler in before.items():
        signal.signal(n, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, capsys, usual, number):
    run = trainer(tmp_path)
    after(run, 3, lambda: os.kill(os.getpid(), number))
    run.run(bar=False)
    said = capsys.readouterr().out
    assert str(tmp_path) in said
    assert "resume" in said
    assert {n: signal.getsignal(n) for n in usual} == usual
    assert state_of(tmp_path)["rest"]["progress"]["batch"] == 3
    again = trainer(tmp_path, resume=True)
    again.run(bar=False)
    assert again.progress["step"] == 10


def test_a_signal_that_is_ignored_stays_so(usual):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with on_stop() as received:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_an_interrupt_between_collecting_and_comparing_is_not_lost(tmp_path, usual, monkeypatch):
    run, share, calls = trainer(tmp_path), training.reduce, itertools.count(1)

    def interrupted(tensor, how):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return share(tensor, how)

    monkeypatch.setattr(training, "reduce", interrupted)
    run.run(bar=False)
    assert run.progress["step"] == 4


def test_training_outside_the_main_thread(tmp_path):
    run, errors = trainer(tmp_path), []

    def work():
        try:
            run.run(bar=False)
        except BaseException as error:
            errors.append(error)
            raise

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
    assert run.progress["step"] == 10


def test_data_workers_are_out_of_reach_of_a_signal_to_the_group():
    child = os.fork()
    if child == 0:
        own_group(0)
        os._exit(0 if os.getpgrp() == os.getpid() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_ctrl_c_from_the_callback_stops_the_next_epoch(tmp_path, capsys, usual):
    run = trainer(tmp_path, on_epoch=lambda history: os.kill(os.getpid(), signal.SIGINT))
    run.run(bar=False)
    assert run.progress["epoch"] == 1
    assert len(run.history) == 1
    assert "resume" in capsys.readouterr().out


def test_a_second_ctrl_c_interrupts_as_usual(tmp_path, usual):
    run = trainer(tmp_path)
    after(run, 1, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        run.run(bar=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_time_budget_ends_the_run_with_a_validation(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 6))  # each look at the clock is 6 seconds later
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    run = trainer(tmp_path, dataclasses.replace(FEW, epochs=1000, minutes=0.5, warmup=1))
    rates = rates_of(run)
    run.run(bar=False)
    assert 3 <= len(rates) <= 6
    assert len(pd.read_csv(tmp_path / "history.csv")) >= 1
    assert run.progress["seconds"] >= 30
    assert rates[-1] < 0.9 * rates[0]  # it falls with the minutes, not with the thousand epochs


def test_a_state_is_saved_within_a_long_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 0)
    run = trainer(tmp_path)
    after(run, 3, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.run(bar=False)
    assert state_of(tmp_path)["rest"]["progress"]["step"] == 2


def test_early_stopping(tmp_path, monkeypatch):
    run = trainer(tmp_path, dataclasses.replace(FEW, epochs=50, patience=2))
    errors = iter([0.9, 0.5, 0.6, 0.5, 0.1])
    monkeypatch.setattr(run, "validate", lambda: (next(errors), 1.0))
    run.run(bar=False)
    assert [row["cer"] for row in run.history] == [0.9, 0.5, 0.6, 0.5]


def test_with_patience_the_start_counts_and_stays_where_nothing_beats_it(tmp_path, monkeypatch):
    settings = dataclasses.replace(FEW, epochs=3, patience=3)
    run = trainer(tmp_path, settings)
    start = {name: value.clone() for name, value in run.model.state_dict().items()}
    errors = iter([0.3, 0.5, 0.3, 0.4])
    monkeypatch.setattr(run, "validate", lambda: (next(errors), 1.0))
    after(run, 2, lambda: stop(run))
    run.run(bar=False)
    again = trainer(tmp_path, settings, resume=True)
    monkeypatch.setattr(again, "validate", lambda: (next(errors), 1.0))
    again.run(bar=False)
    history = pd.read_csv(tmp_path / "history.csv")
    assert history.epoch.tolist() == [0, 1, 2, 3]
    assert history.steps.tolist() == [0, 5, 10, 15]
    assert history.cer.tolist() == [0.3, 0.5, 0.3, 0.4]
    assert history.loss.isna().tolist() == [True, False, False, False]
    assert same(loaded(tmp_path / "best").state_dict(), start)


def test_a_state_from_before_a_setting_existed_goes_on(tmp_path):
    trainer(tmp_path, dataclasses.replace(FEW, epochs=1)).run(bar=False)
    state = state_of(tmp_path)
    del state["settings"]["frozen"]
    torch.save(state, tmp_path / "state.pt")
    assert trainer(tmp_path, resume=True).progress["step"] == 5


def test_the_best_weights_stay_when_validation_gets_worse(tmp_path, monkeypatch):
    run = trainer(tmp_path, dataclasses.replace(FEW, epochs=3))
    errors, kept = iter([0.5, 0.2, 0.3]), []

    def validate():
        kept.append({name: value.clone() for name, value in run.averaged.state_dict().items()})
        return next(errors), 1.0

    monkeypatch.setattr(run, "validate", validate)
    run.run(bar=False)
    assert same(loaded(tmp_path / "best").state_dict(), kept[1])


# What goes wrong


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"state\.pt.*nothing to resume"):
        trainer(tmp_path / "none", resume=True)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    trainer(tmp_path, dataclasses.replace(FEW, epochs=1)).run(bar=False)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(FileExistsError, match="resume"):
        trainer(tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_best_weights_without_a_state_are_not_overwritten_either(tmp_path):
    trainer(tmp_path, dataclasses.replace(FEW, epochs=1)).run(bar=False)
    (tmp_path / "state.pt").unlink()
    with pytest.raises(FileExistsError, match="another folder"):
        trainer(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder, dataclasses.replace(FEW, epochs=1)).run(bar=False)
    return folder


def changed(lines):
    pixels = lines[7].pixels.copy()
    pixels[0, 0] ^= 1
    return [*lines[:7], dataclasses.replace(lines[7], pixels=pixels), *lines[8:]]


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("alphabet.*'ab'", {"lines": drawn(18, Alphabet("abc")), "model": small(Alphabet("abc"))}),
        ("width divisor .1.0.", {"model": Small(AB, 2.0)}),
        ("set of lines", {"lines": LINES[:-1]}),
        ("set of lines", {"lines": LINES[::-1]}),
        ("set of lines", {"lines": changed(LINES)}),
        ("set of lines", {"lines": [dataclasses.replace(line, text=line.text + "a") for line in LINES]}),
        ("set of validation lines", {"validation": VALIDATION[:-1]}),
        ("batch_size .4.", {"settings": dataclasses.replace(FEW, batch_size=5)}),
        ("seed .0.", {"settings": dataclasses.replace(FEW, seed=1)}),
    ],
    ids=["alphabet", "width", "fewer", "order", "pixel", "text", "validation", "batch size", "seed"],
)
def test_a_state_of_other_lines_or_another_network_is_refused(finished, what, options):
    arguments = {"model": small(), "lines": LINES, "validation": VALIDATION, "settings": FEW} | options
    with pytest.raises(TrainingError, match=f"another {what}.*resume it with the same"):
        Trainer(**arguments, folder=finished, resume=True)


def test_the_fingerprint_tells_where_a_line_ends():
    ink = np.zeros((4, 4), np.uint8)
    lines = [PreparedLine(ink, "a", []), PreparedLine(ink.reshape(2, 8), "a", []), PreparedLine(ink, "1", [])]
    assert len({fingerprint([line]) for line in lines} | {fingerprint(lines), fingerprint(lines[:2])}) == 5
    wide = np.zeros((4, 8), np.uint8)
    assert fingerprint([PreparedLine(wide[:, ::2], "a", [])]) == fingerprint(lines[:1])


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["EVIL"])),)


def compressed(source, target):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(len(old.read(name))))


def without(key):
    def damage(path):
        state = torch.load(path, weights_only=True)
        del state[key]
        torch.save(state, path)

    return damage


def with_rest(**rest):
    def damage(path):
        state = torch.load(path, weights_only=True)
        torch.save(state | {"rest": state["rest"] | rest}, path)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: torch.save([1, 2, 3], path),
        lambda path: torch.save(small().state_dict(), path),
        lambda path: torch.save({"settings": {"epochs": "many"}}, path),
        lambda path: torch.save(Evil(), path),
        lambda path: compressed(path, f"{path}.x") or os.replace(f"{path}.x", path),
        without("parts"),
        without("random"),
        with_rest(progress={"epoch": 1}),
        with_rest(progress=7),
        with_rest(history=[{"cer": "low"}]),
    ],
    ids=[
        *("empty", "pointer", "cut", "cut early", "list", "weights", "settings", "code", "bomb"),
        *("no parts", "no random numbers", "half progress", "no progress", "no history"),
    ],
)
def test_a_damaged_or_foreign_state_says_what_to_do(tmp_path, finished, monkeypatch, damage):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    (tmp_path / "state.pt").write_bytes((finished / "state.pt").read_bytes())
    damage(tmp_path / "state.pt")
    best = tmp_path / "best"
    with pytest.raises(TrainingError, match=f"state.pt is damaged; start again with --init {best}"):
        trainer(tmp_path, resume=True)
    assert not (tmp_path / "evil").exists()


def test_a_run_may_go_to_another_device_and_so_to_another_precision(tmp_path):
    scaler, part = torch.amp.GradScaler("cpu", init_scale=8.0), nn.Linear(1, 1)
    for first, second in (({}, {"scaler": scaler}), ({"scaler": scaler}, {})):
        checkpoints.write_state(tmp_path / "state.pt", {"part": part} | first, {}, FEW, number=3)
        other = nn.Linear(1, 1)
        assert checkpoints.read_state(tmp_path / "state.pt", {"part": other} | second, {}, FEW) == {"number": 3}
        assert same(other.state_dict(), part.state_dict())


def test_one_run_a_folder(tmp_path):
    run = trainer(tmp_path)
    with one_run(tmp_path), pytest.raises(TrainingError, match="another run is using this folder"):
        run.run(bar=False)
    run.run(bar=False)  # the lock went with the other
    second = """
        import pathlib, sys, time
        from hwrlib.checkpoints import one_run
        with one_run(pathlib.Path(sys.argv[1])):
            print("held", flush=True)
            time.sleep(60)
    """
    root = str(Path(training.__file__).resolve().parent.parent)
    command = [sys.executable, "-c", textwrap.dedent(second), str(tmp_path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": root})
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(TrainingError, match="another run"):
            trainer(tmp_path, resume=True).run(bar=False)
    finally:
        other.kill()
        other.communicate()
    trainer(tmp_path, resume=True).run(bar=False)  # and a kill leaves no lock


class Killed(BaseException):
    """Stands for SIGKILL: no handler runs."""


@pytest.mark.parametrize("point", range(6))  # two writes, three replacements, one removal
def test_best_survives_a_kill_at_any_point(tmp_path, monkeypatch, point):
    old, new = small(), Small(AB)
    write_whole(tmp_path / "best", old.save_pretrained)
    left = itertools.count(point, -1)

    def killed_at(act):
        def acting(*arguments, **options):
            if next(left) == 0:
                raise Killed
            return act(*arguments, **options)

        return acting

    with monkeypatch.context() as context:
        context.setattr(checkpoints.os, "replace", killed_at(os.replace))
        for name in ("rmdir", "write_text", "unlink"):
            context.setattr(Path, name, killed_at(getattr(Path, name)))
        with pytest.raises(Killed):
            write_whole(tmp_path / "best", new.save_pretrained)
    kept = loaded(tmp_path / "best").state_dict()
    assert same(kept, old.state_dict()) or same(kept, new.state_dict())
    write_whole(tmp_path / "best", new.save_pretrained)
    assert same(loaded(tmp_path / "best").state_dict(), new.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_no_lines_to_train_or_to_validate_on(tmp_path):
    for lines, validation in ((LINES, []), ([], VALIDATION)):
        with pytest.raises(TrainingError, match="validate"):
            Trainer(small(), lines, validation, tmp_path, FEW)


def resumable(folder, step):
    """The last good state is whole and goes on."""
    assert not list(folder.glob("*.new"))
    state = state_of(folder)
    assert state["rest"]["progress"]["step"] == step
    assert all(value.isfinite().all() for value in state["parts"]["trainee"].values())
    again = trainer(folder, resume=True)
    again.run(bar=False)
    return again.progress["step"] == 10


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path, bad):
    run = trainer(tmp_path)
    after(run, 7, lambda: setattr(run, "ctc", lambda *_: torch.tensor(bad, requires_grad=True)))
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) in epoch 2, step 7.*learning rate") as error:
        run.run(bar=False)
    assert str(tmp_path) in str(error.value)
    assert all(value.isfinite().all() for value in run.model.state_dict().values())
    assert resumable(tmp_path, 5)


def test_on_a_gpu_losses_are_fetched_now_and_then(tmp_path):
    usual = trainer(tmp_path / "usual")
    first = usual.run(bar=False)
    rarely = trainer(tmp_path / "rarely")
    rarely.fetch_every, fetch, fetched = 3, rarely._fetch, []
    rarely._fetch = lambda pending, began: fetched.append(len(pending)) or fetch(pending, began)
    second = rarely.run(bar=False)
    assert fetched == [3, 2, 1, 3, 1]  # every third step, and at the end of an epoch
    assert same(first.state_dict(), second.state_dict())
    without_time = [{k: v for k, v in row.items() if k != "minutes"} for row in usual.history]
    assert [{k: v for k, v in row.items() if k != "minutes"} for row in rarely.history] == without_time
    run = trainer(tmp_path / "bad")
    run.fetch_every = 3
    after(run, 6, lambda: setattr(run, "ctc", lambda *_: torch.tensor(float("nan"), requires_grad=True)))
    with pytest.raises(TrainingError, match="loss is nan in epoch 2"):
        run.run(bar=False)
    assert resumable(tmp_path / "bad", 5)


def in_float16(trainer):
    """As on a GPU without bfloat16: with a scaler, which skips the steps that overflow."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=trainer.accelerator.scaler)
    return trainer


def spoil(trainer, steps):
    """Not finite in these steps, from the first convolution on."""
    seen = itertools.count()

    def overflow(module, inputs, output):
        return output * (float("nan") if next(seen) in steps else 1)

    trainer.model.cnn[0].register_forward_hook(overflow)


def test_under_float16_a_step_that_is_not_finite_is_skipped(tmp_path, monkeypatch):
    run = in_float16(trainer(tmp_path, dataclasses.replace(FEW, epochs=1, average=0)))
    monkeypatch.setattr(run, "validate", lambda: (0.5, 0.5))
    spoil(run, {2})
    losses, before = steps_of(run), {}
    after(run, 2, lambda: before.update(copy.deepcopy(run.model.state_dict())))
    after(run, 3, lambda: before.update(skipped=same(before, run.model.state_dict())))
    run.run(bar=False)
    assert before["skipped"]
    assert np.isfinite(losses).tolist() == [True, True, False, True, True]
    assert run.accelerator.scaler.get_scale() == 512
    assert np.isfinite(run.history[0]["loss"])
    assert all(value.isfinite().all() for value in run.model.state_dict().values())


def test_under_float16_the_run_ends_when_it_repeats(tmp_path, monkeypatch):
    run = in_float16(trainer(tmp_path, dataclasses.replace(FEW, epochs=9)))
    monkeypatch.setattr(run, "validate", lambda: (0.5, 0.5))
    spoil(run, {*range(3, 8), *range(9, 99)})
    with pytest.raises(TrainingError, match="loss is nan in epoch 6, step 28"):
        run.run(bar=False)
    assert all(value.isfinite().all() for value in run.model.parameters())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to ..."
        ),
    ],
    ids=["GPU", "CPU"],
)
def test_a_batch_that_does_not_fit_in_memory(tmp_path, error):
    run = trainer(tmp_path)

    def fail(*_):
        raise error

    after(run, 6, lambda: setattr(run, "ctc", fail))
    with pytest.raises(TrainingError, match=r"no memory for a batch of \d lines of \d+ px.*smaller batch"):
        run.run(bar=False)
    assert resumable(tmp_path, 5)


def test_other_errors_of_torch_stay_what_they_are(tmp_path):
    run = trainer(tmp_path)

    def fail(*_):
        raise RuntimeError("shapes do not match")

    run.ctc = fail
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run.run(bar=False)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_full_disk_keeps_the_last_good_state(tmp_path, monkeypatch, error):
    run = trainer(tmp_path)

    def full(state, path):
        Path(path).write_bytes(b"half a st")
        raise error

    after(run, 6, lambda: monkeypatch.setattr(torch, "save", full))
    with pytest.raises(OSError, match=r"state\.pt could not be written.*disk full"):
        run.run(bar=False)
    monkeypatch.undo()
    assert resumable(tmp_path, 5)


def test_a_disk_that_fills_while_the_best_weights_are_written(tmp_path):
    """A limit on the size of files fails as a full disk does, inside safetensors."""
    run = trainer(tmp_path)
    limits, usual = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    after(run, 5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1])))
    try:
        with pytest.raises(OSError, match="best could not be written"):
            run.run(bar=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, usual)
    assert not list(tmp_path.glob("*.new"))


# Several processes

SCRIPT = """
    import importlib.util, json, pathlib, sys
    import torch
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("tests", {tests!r})
    tests = importlib.util.module_from_spec(spec)
    sys.modules["tests"] = tests
    spec.loader.exec_module(tests)
    folder = pathlib.Path({folder!r})
    run = tests.trainer(folder / "run", tests.dataclasses.replace(tests.FEW, batch_size=2))
    texts, losses, step = [], tests.steps_of(run), run._step
    run._step = lambda batch: (texts.extend(batch.texts), step(batch))[1]
    read = []
    class Recognizer(tests.training.Recognizer):
        def read_prepared(self, pixels):
            read.extend(p.shape[1] for p in pixels)
            return super().read_prepared(pixels)
    tests.training.Recognizer = Recognizer
    run.run(bar=False)
    rank = run.accelerator.process_index
    weights = {{name: value.double().sum().item() for name, value in run.model.named_parameters()}}
    averaged = {{name: value.double().sum().item() for name, value in run.averaged.state_dict().items()}}
    result = {{"texts": texts, "losses": losses, "read": read, "weights": weights, "averaged": averaged,
              "processes": run.accelerator.num_processes, "history": run.history}}
    (folder / f"{{rank}}.json").write_text(json.dumps(result))
    run.accelerator.end_training()  # as the command does: without it, a process sometimes aborts as it ends
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(tests=__file__, folder=str(folder))))
    # --multi_gpu means several processes: with --cpu, accelerate starts only one unless mpirun is there.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", str(script)]
    root = str(Path(training.__file__).resolve().parent.parent)
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_train_and_validate_each_line_once(two_processes):
    first, second = two_processes
    assert first["processes"] == 2
    assert sorted(first["texts"] + second["texts"]) == sorted([line.text for line in LINES] * 2)
    assert sorted(first["read"] + second["read"]) == sorted([line.pixels.shape[1] for line in VALIDATION] * 2)
    assert len(first["losses"]) == len(second["losses"]) == 10
    assert np.isfinite(first["losses"] + second["losses"]).all()
    assert first["losses"] != second["losses"]


def test_two_processes_end_with_the_same_weights_and_history(two_processes):
    first, second = two_processes
    assert first["weights"] == second["weights"]
    assert first["averaged"] == second["averaged"]
    assert first["history"] == second["history"]
    assert first["history"][-1]["lines"] == 36
