"""Training: it resumes to the same curve, ends with a reason, and never loses the last good state."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from hwrlib import training
from hwrlib.alphabet import IAM, Alphabet
from hwrlib.data import Lines
from hwrlib.model import CRNN
from hwrlib.training import PRESETS, Trainer, TrainingError

AB = Alphabet("ab")
pytestmark = pytest.mark.usefixtures("one_thread")
COLUMNS = ["epoch", "steps", "lines", "minutes", "learning_rate", "loss", "cer", "wer"]


class Small(CRNN, coders={Alphabet: (lambda alphabet: alphabet.characters, Alphabet)}, license="mit", tags=[]):
    """The network with a hundredth of its weights: what is tested here is not what it learns."""

    def __init__(self, alphabet: Alphabet = AB, squeeze: float = 1.0):
        nn.Module.__init__(self)
        self.alphabet, self.squeeze = alphabet, squeeze
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 8, 3, padding=1),
            nn.MaxPool2d(2),
            nn.MaxPool2d((4, 1)),
            nn.Conv2d(8, 8, 2),
        )
        self.map2seq = nn.Linear(8 * 7, 256)
        self.rnn = nn.LSTM(256, 8, num_layers=2, dropout=0.3, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(16, alphabet.classes)


def small(alphabet=AB):
    torch.manual_seed(5)
    return Small(alphabet)


def drawn(count, strength=0.0, alphabet=AB, first=0):
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
    return Lines(rows, alphabet, strength=strength)


LINES, VALIDATION = drawn(18), drawn(6, first=100)
FEW = dataclasses.replace(PRESETS["recipe"], epochs=2, batch_size=4, warmup=2, average=0.9, precision="no")


def trainer(folder, settings=FEW, lines=LINES, model=None, **options):
    return Trainer(model or small(), lines, VALIDATION, folder, settings, **options)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def steps_of(trainer):
    """Note the loss of every step."""
    losses, step = [], trainer._step
    trainer._step = lambda batch: losses.append(step(batch)) or losses[-1]
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
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"best", "state.pt", "history.csv", "settings.json"}
    best = Small.from_pretrained(str(tmp_path / "run" / "best"))
    assert best.alphabet == AB
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert same(state["averaged"], model.state_dict())
    if history.cer.idxmin() == 1:
        assert same(best.state_dict(), model.state_dict())


@pytest.mark.parametrize("preset", ["reference", "recipe"])
def test_both_presets_train_the_real_network(tmp_path, preset):
    torch.manual_seed(0)
    settings = dataclasses.replace(PRESETS[preset], epochs=1, batch_size=4, precision="no")
    lines = drawn(4, settings.strength, IAM)
    run = Trainer(CRNN(), lines, drawn(1, 0, IAM), tmp_path, settings)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    losses = steps_of(run)
    run.run(bar=False)
    assert len(losses) == 1
    assert np.isfinite(losses).all()
    changed = [name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])]
    assert {name.split(".")[0] for name in changed} == {"cnn", "map2seq", "rnn", "fc"}
    assert CRNN.from_pretrained(str(tmp_path / "best")).alphabet == IAM
    assert (run.averaged is run.model) == (preset == "reference")
    assert isinstance(run.optimizer.optimizer, torch.optim.AdamW if preset == "recipe" else torch.optim.Adam)


def test_the_presets_are_the_designed_ones():
    reference = PRESETS["reference"]
    assert (reference.epochs, reference.batch_size, reference.learning_rate, reference.clip) == (10, 8, 1e-3, 5)
    assert not reference.cosine
    assert reference.weight_decay == reference.average == reference.auxiliary == reference.strength == 0
    recipe = PRESETS["recipe"]
    assert recipe.cosine
    assert min(recipe.warmup, recipe.weight_decay, recipe.average, recipe.strength) > 0
    assert recipe.auxiliary == 0.1


def test_the_personal_preset_is_gentle_and_can_stop_early():
    personal, recipe = PRESETS["personal"], PRESETS["recipe"]
    assert personal.learning_rate < recipe.learning_rate
    assert personal.epochs < recipe.epochs
    assert personal.patience
    assert personal.auxiliary == 0
    assert not personal.frozen


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


def test_the_learning_rate_warms_up_and_falls_to_zero_or_halves_on_a_plateau(tmp_path, monkeypatch):
    run = trainer(tmp_path / "cosine", dataclasses.replace(FEW, epochs=4))
    rates, step = [], run._step
    run._step = lambda batch: (step(batch), rates.append(run.optimizer.param_groups[0]["lr"]))[0]
    run.run(bar=False)
    assert rates[0] == pytest.approx(0.5e-3)
    assert max(rates) == rates[1] <= 1e-3
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] < 2e-5
    settings = dataclasses.replace(PRESETS["reference"], epochs=6, precision="no")
    run = trainer(tmp_path / "plateau", settings)
    monkeypatch.setattr(run, "validate", lambda: (0.5, 0.5))
    run.run(bar=False)
    assert [row["learning_rate"] for row in run.history] == [1e-3] * 5 + [0.5e-3]


# Stopped and resumed


@pytest.mark.parametrize("preset", ["reference", "recipe"])
@pytest.mark.parametrize("stop", [2, 5, 7])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, preset, stop):
    settings = dataclasses.replace(PRESETS[preset], epochs=2, batch_size=4, warmup=3, precision="no")
    lines = drawn(18, settings.strength)
    whole = trainer(tmp_path / "whole", settings, lines)
    expected = steps_of(whole)
    model = whole.run(bar=False)

    first = trainer(tmp_path / "run", settings, lines)
    losses = steps_of(first)
    after(first, stop, first._stop)
    first.run(bar=False)
    assert len(losses) == stop
    torch.manual_seed(99)  # another process would have drawn other numbers
    second = trainer(tmp_path / "run", settings, lines, model=Small(AB), resume=True)
    losses_after = steps_of(second)
    resumed = second.run(bar=False)
    assert losses + losses_after == expected
    assert same(resumed.state_dict(), model.state_dict())
    assert same(second.model.state_dict(), whole.model.state_dict())
    columns = ["epoch", "steps", "lines", "loss", "cer", "wer", "learning_rate"]
    histories = [pd.read_csv(tmp_path / name / "history.csv")[columns] for name in ("whole", "run")]
    pd.testing.assert_frame_equal(*histories)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, capsys):
    run = trainer(tmp_path)
    usual = signal.getsignal(signal.SIGINT)
    after(run, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    run.run(bar=False)
    said = capsys.readouterr().out
    assert str(tmp_path) in said
    assert "resume" in said
    assert signal.getsignal(signal.SIGINT) is usual
    assert torch.load(tmp_path / "state.pt", weights_only=True)["progress"]["batch"] == 3
    again = trainer(tmp_path, resume=True)
    again.run(bar=False)
    assert again.progress["step"] == 10


def test_ctrl_c_from_the_callback_stops_the_next_epoch(tmp_path, capsys):
    run = trainer(tmp_path, on_epoch=lambda history: os.kill(os.getpid(), signal.SIGINT))
    run.run(bar=False)
    assert run.progress["epoch"] == 1
    assert len(run.history) == 1
    assert "resume" in capsys.readouterr().out


def test_a_second_ctrl_c_interrupts_as_usual(tmp_path):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    run = trainer(tmp_path)
    after(run, 1, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        run.run(bar=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_time_budget_ends_the_run_with_a_validation(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 6))  # each look at the clock is 6 seconds later
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    run = trainer(tmp_path, dataclasses.replace(FEW, epochs=1000, minutes=0.5, warmup=1))
    rates, step = [], run._step
    run._step = lambda batch: (step(batch), rates.append(run.optimizer.param_groups[0]["lr"]))[0]
    run.run(bar=False)
    assert 3 <= len(rates) <= 6
    assert len(pd.read_csv(tmp_path / "history.csv")) >= 1
    assert run.progress["seconds"] >= 30
    assert rates[-1] < 0.3 * rates[0]  # the cosine ends with the minutes, not with the thousand epochs


def test_a_state_is_saved_within_a_long_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 0)
    run = trainer(tmp_path)
    after(run, 3, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.run(bar=False)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["progress"]["step"] == 2


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
    after(run, 2, run._stop)
    run.run(bar=False)
    again = trainer(tmp_path, settings, resume=True)
    monkeypatch.setattr(again, "validate", lambda: (next(errors), 1.0))
    again.run(bar=False)
    history = pd.read_csv(tmp_path / "history.csv")
    assert history.epoch.tolist() == [0, 1, 2, 3]
    assert history.steps.tolist() == [0, 5, 10, 15]
    assert history.cer.tolist() == [0.3, 0.5, 0.3, 0.4]
    assert history.loss.isna().tolist() == [True, False, False, False]
    assert same(Small.from_pretrained(str(tmp_path / "best")).state_dict(), start)


def test_a_state_from_before_a_setting_existed_goes_on(tmp_path):
    trainer(tmp_path, dataclasses.replace(FEW, epochs=1)).run(bar=False)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
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
    assert same(Small.from_pretrained(str(tmp_path / "best")).state_dict(), kept[1])


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


def test_a_state_of_another_alphabet(tmp_path):
    trainer(tmp_path, dataclasses.replace(FEW, epochs=1)).run(bar=False)
    other = Alphabet("abc")
    with pytest.raises(TrainingError, match=r"alphabet.*'ab'"):
        trainer(tmp_path, lines=drawn(18, alphabet=other), model=small(other), resume=True)


def test_no_lines_to_train_or_to_validate_on(tmp_path):
    for lines, validation in ((LINES, Lines([], AB)), (Lines([], AB), VALIDATION)):
        with pytest.raises(TrainingError, match="validate"):
            Trainer(small(), lines, validation, tmp_path, FEW)


def resumable(folder, step):
    """The last good state is whole and goes on."""
    assert not list(folder.glob("*.new"))
    state = torch.load(folder / "state.pt", weights_only=True)
    assert state["progress"]["step"] == step
    assert all(value.isfinite().all() for value in state["trainee"].values())
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
    with pytest.raises(TrainingError, match=r"state\.pt could not be written.*disk full"):
        run.run(bar=False)
    monkeypatch.undo()
    assert resumable(tmp_path, 5)


def test_a_disk_that_fills_while_the_best_weights_are_written(tmp_path):
    """A limit on the size of files fails as a full disk does, inside safetensors."""
    run = trainer(tmp_path)
    limits, usual = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    after(run, 5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1])))
    try:
        with pytest.raises(TrainingError, match="best could not be written"):
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
    assert sorted(first["texts"] + second["texts"]) == sorted(LINES.texts * 2)
    assert sorted(first["read"] + second["read"]) == sorted(VALIDATION.widths.tolist() * 2)
    assert len(first["losses"]) == len(second["losses"]) == 10
    assert np.isfinite(first["losses"] + second["losses"]).all()
    assert first["losses"] != second["losses"]


def test_two_processes_end_with_the_same_weights_and_history(two_processes):
    first, second = two_processes
    assert first["weights"] == second["weights"]
    assert first["averaged"] == second["averaged"]
    assert first["history"] == second["history"]
    assert first["history"][-1]["lines"] == 36
