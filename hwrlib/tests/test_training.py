"""Training: it resumes to the same curve, ends with a reason, and never loses the last good state."""

import copy
import dataclasses
import functools
import itertools
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import filelock
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from hwrlib import training
from hwrlib.alphabet import IAM, Alphabet
from hwrlib.batches import collate, prepare_lines
from hwrlib.cpu import WinogradConv2d
from hwrlib.files import BadRows
from hwrlib.model import CRNN
from hwrlib.settings import PRESETS, Settings
from hwrlib.tests.conftest import Malicious, strokes
from hwrlib.training import Trainer, make_trainer

AB = Alphabet("ab")
pytestmark = pytest.mark.usefixtures("one_thread")


class Small(CRNN):
    """The network with a hundredth of its weights: what is tested here is not what it learns."""

    def __init__(self, alphabet: Alphabet = AB, width_divisor: float = 1.0, calibration: dict | None = None):
        nn.Module.__init__(self)
        self.alphabet, self.width_divisor, self.calibration = alphabet, width_divisor, calibration or {}
        first = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
        self.cnn = nn.Sequential(*first, nn.MaxPool2d((4, 4)), nn.MaxPool2d((4, 1)), nn.Conv2d(4, 8, 2))
        self.map2seq = nn.Linear(8 * 7, 256)
        self.rnn = nn.LSTM(256, 8, num_layers=2, dropout=0.3, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(16, alphabet.classes)


def small(alphabet=AB):
    torch.manual_seed(5)
    return Small(alphabet)


def rows(count, first=0):
    """Lines of many widths."""
    texts = {k: "".join(np.random.default_rng(k).choice(["a", "b"], 2 + k % 3)) for k in range(first, first + count)}
    pixels = (strokes(14 + 14 * len(text) + k % 5, seed=k) for k, text in texts.items())
    return [{"image": Image.fromarray(line), "text": text} for line, text in zip(pixels, texts.values(), strict=True)]


LINES, VALIDATION = prepare_lines(rows(18), AB), prepare_lines(rows(6, first=100), AB)
FEW = Settings(epochs=2, batch_size=4, warmup=2, ema_decay=0.9, augmentation=0, precision="fp32")


def changed(**values):
    return dataclasses.replace(FEW, **values)


def trainer(folder, settings=FEW, lines=LINES, model=None, **options):
    return Trainer(model or small(), lines, VALIDATION, folder, settings, **options)


def at(step, act=lambda: True):
    """For ``on_step``: do something after that step; stop, if told nothing."""
    return lambda done, most: act() if done == step else None


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def copied(model):
    return copy.deepcopy(model.state_dict())


def moved(model, before):
    """The parts of a network that differ from what they were."""
    return {name.split(".")[0] for name, value in model.state_dict().items() if (value != before[name]).any()}


def best(folder):
    return load_file(folder / "best" / "model.safetensors")


def resumed(folder, step, settings=FEW):
    """The last good state is whole, of this step, and goes on to the end."""
    assert not list(folder.glob("*.new"))
    again = trainer(folder, settings, model=Small(), resume=True)
    assert again.progress["step"] == step
    assert all(value.isfinite().all() for value in again.model.state_dict().values())
    again.run(bar=False)
    assert again.progress["step"] == 10
    return again


def errors_are(monkeypatch, *errors):
    """Let each validation find the next of these CERs."""
    following = iter(errors)
    monkeypatch.setattr(training, "cer", lambda *_: next(following))


def test_a_run_keeps_the_best_the_last_its_history_and_its_settings(tmp_path):
    seen, steps = [], []
    run = trainer(tmp_path, on_epoch=lambda table: seen.append(len(table)), on_step=lambda *at: steps.append(at))
    model = run.run(bar=False)
    assert (seen, steps) == ([1, 2], [(k, 10) for k in range(1, 11)])
    history = pd.read_csv(tmp_path / "history.csv")
    assert list(history) == ["epoch", "steps", "lines", "minutes", "learning_rate", "loss", "cer", "wer"]
    assert history[["epoch", "steps", "lines"]].to_numpy().tolist() == [[1, 5, 18], [2, 10, 36]]
    assert json.loads((tmp_path / "settings.json").read_text()) == dataclasses.asdict(FEW)
    left = {".lock", "best", "state-000000010", "history.csv", "settings.json"}
    assert {path.name for path in tmp_path.iterdir()} == left
    assert json.loads((tmp_path / "best" / "config.json").read_text())["alphabet"] == "ab"
    assert same(best(tmp_path), model.state_dict()) == (history.cer.idxmin() == 1)


def test_both_presets_train_the_real_network_and_frozen_convolutions_stay_as_they_are(tmp_path):
    for preset in ("reference", "recipe"):
        settings = dataclasses.replace(PRESETS[preset], epochs=1, batch_size=4, precision="fp32")
        lines = prepare_lines(rows(5), IAM)
        run = Trainer(CRNN(), lines[:4], lines[4:], tmp_path / preset, settings)
        before = copied(run.model)
        assert sum(isinstance(layer, WinogradConv2d) for layer in run.model.cnn) == 4  # learns in tiles
        run.run(bar=False)
        assert moved(run.model, before) == {"cnn", "map2seq", "rnn", "fc"}
        assert same(run.model.state_dict(), run.averaged.state_dict())  # after one step
        assert same(CRNN.from_pretrained(tmp_path / preset / "best").state_dict(), run.averaged.state_dict())
    exact = trainer(tmp_path, changed(precision="bf16")).model.cnn
    assert not any(isinstance(layer, WinogradConv2d) for layer in exact)
    run = trainer(tmp_path / "frozen", changed(frozen=True))
    before = copied(run.model)
    assert moved(run.run(bar=False), before) == {"map2seq", "rnn", "fc"}


def test_the_average_is_the_exponential_moving_average_faster_at_first(tmp_path):
    def follow(done, _):
        now = run.model.fc.weight.detach().clone()
        means.append(now if done == 1 else means[-1].lerp(now, 1 - min(0.5, done / (9 + done))))

    means, run = [], trainer(tmp_path, changed(ema_decay=0.5), on_step=follow)
    run.run(bar=False)
    assert torch.allclose(run.averaged.fc.weight, means[-1])
    assert not torch.equal(run.averaged.cnn[1].running_mean, run.model.cnn[1].running_mean)


def rates_of(folder, settings, **options):
    """The learning rate of every step."""
    rates = []
    run = trainer(folder, settings, on_step=lambda *_: rates.append(run.optimizer.param_groups[0]["lr"]), **options)
    run.run(bar=False)
    return rates


def test_the_learning_rate_warms_up_holds_and_falls_with_steps_or_time_or_halves_on_a_plateau(tmp_path, monkeypatch):
    for schedule, end in (("fall", [0.8e-3, 0.6e-3, 0.4e-3, 0.2e-3]), ("hold", [1e-3] * 4)):
        rates = rates_of(tmp_path / schedule, changed(epochs=4, schedule=schedule))
        assert rates == pytest.approx([0.5e-3] + [1e-3] * 15 + end)
    errors_are(monkeypatch, *[0.5] * 6)
    settings = dataclasses.replace(PRESETS["reference"], epochs=5, precision="fp32")
    rates = rates_of(tmp_path, settings) + rates_of(tmp_path, dataclasses.replace(settings, epochs=6), resume=True)
    assert rates == [1e-3] * 15 + [0.5e-3] * 3
    monkeypatch.undo()
    clock = itertools.count(0, 6)  # each look at the clock is 6 seconds later
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    rates = rates_of(tmp_path / "budget", changed(epochs=1000, minutes=0.5, warmup=1))
    assert 3 <= len(rates) <= 6 and len(pd.read_csv(tmp_path / "budget" / "history.csv")) >= 1
    assert rates[-1] < 0.9 * rates[0]  # it falls with the minutes, not with the thousand epochs


def test_the_loss_is_that_of_ctc_and_of_the_auxiliary_head_also_where_the_device_has_no_ctc(tmp_path, monkeypatch):
    ctc, calls, total = nn.functional.ctc_loss, itertools.count(), []

    def refusing(*arguments, **options):  # as a Mac's GPU does; on the CPU it is computed
        if next(calls) % 2 == 0:
            raise NotImplementedError
        return ctc(*arguments, **options)

    run = trainer(tmp_path, changed(epochs=1, batch_size=18, learning_rate=0))
    run.model.rnn.dropout, backward = 0, run.accelerator.backward
    with monkeypatch.context() as context:
        context.setattr(nn.functional, "ctc_loss", refusing)
        context.setattr(run.accelerator, "backward", lambda loss: total.append(loss.item()) or backward(loss))
        run.run(bar=False)
    batch = collate(LINES, multiple=64).to("cpu")
    widths = torch.full_like(batch.widths, batch.images.shape[-1])  # the paper that pads a line is its margin
    outputs = run.model.train()(batch.images, widths), run.trainee(batch.images, widths)[1]
    main, auxiliary = (
        ctc(x.transpose(0, 1), batch.labels, widths // 4 - 1, batch.label_lengths, zero_infinity=True).item()
        for x in outputs
    )
    found = [run.history[0]["loss"], *total]
    assert found == pytest.approx([main, main + 0.1 * auxiliary], rel=1e-5)


def test_a_trainer_is_made_from_rows_with_others_mixed_in(tmp_path, capsys):
    own, start = rows(4), small()
    own[1]["text"] = "c"
    dataset, before = datasets.Dataset.from_list, copied(start)
    held_out, extra = dataset(rows(2, first=50)), dataset(rows(2, first=70))
    with pytest.raises(BadRows, match=r"(?s)row 1: 'c' in 'c'.*mend such rows"):
        make_trainer(start, dataset(own), held_out, tmp_path, FEW)
    options = {"extra": [extra], "replay_rows": dataset(rows(60, first=200)), "repeat": 2, "skip_bad": True}
    run = make_trainer(start, dataset(own), held_out, tmp_path, FEW, **options, on_step=at(1))
    assert "row 1: 'c'" in capsys.readouterr().err
    texts = [line.text for line in run.lines]
    assert texts[:8] == [own[k]["text"] for k in (0, 2, 3)] * 2 + extra["text"][:] == texts[8:16]  # to at least 32
    assert len(texts) == 64
    run.run(bar=False)
    assert run.progress["step"] == 1 and same(start.state_dict(), before)


def put_in_one_piece(lstm):
    """So cuDNN puts the weights of an LSTM in memory; safetensors of Accelerate would keep one of them."""
    weights = list(lstm.parameters())
    pieces = torch.cat([weight.detach().flatten() for weight in weights]).split([w.numel() for w in weights])
    for weight, piece in zip(weights, pieces, strict=True):
        weight.data = piece.view_as(weight)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    for preset, counts in (("reference", [2, 5]), ("recipe", [2, 5, 7])):
        settings = dataclasses.replace(PRESETS[preset], epochs=2, batch_size=4, warmup=3, precision="fp32")
        whole = trainer(tmp_path / preset, settings)
        model = whole.run(bar=False)
        for count in counts:
            folder = tmp_path / f"{preset} {count}"
            run = trainer(folder, settings, on_step=at(count))
            put_in_one_piece(run.model.rnn)
            put_in_one_piece(run.averaged.rnn)
            run.run(bar=False)
            torch.manual_seed(99)  # another process would have drawn other numbers
            run = resumed(folder, count, settings)
            assert same(run.averaged.state_dict(), model.state_dict())
            assert same(run.model.state_dict(), whole.model.state_dict())
            histories = [pd.read_csv(path / "history.csv").drop(columns="minutes") for path in (whole.folder, folder)]
            pd.testing.assert_frame_equal(*histories)


@pytest.fixture
def usual():
    """Signals as in a terminal: a shell's background job starts with some ignored."""
    wanted = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    yield wanted
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_saves_unless_it_is_ignored_and_a_second_ctrl_c_interrupts_as_usual(tmp_path, capsys, usual):
    for number in usual:
        folder = tmp_path / number.name
        trainer(folder, on_step=at(3, functools.partial(os.kill, os.getpid(), number))).run(bar=False)
        assert f"The run is kept in {folder}; resume it" in capsys.readouterr().out
        assert {n: signal.getsignal(n) for n in usual} == usual
        resumed(folder, 3)
    trainer(tmp_path / "epoch", on_epoch=lambda history: signal.raise_signal(signal.SIGINT)).run(bar=False)
    assert pd.read_csv(tmp_path / "epoch" / "history.csv").epoch.tolist() == [1]
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "2", on_step=lambda *_: [signal.raise_signal(signal.SIGINT) for _ in "12"]).run(bar=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    run = trainer(tmp_path / "1", on_step=lambda *_: signal.raise_signal(signal.SIGHUP))
    run.run(bar=False)
    assert run.progress["step"] == 10 and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_the_best_weights_stay_and_with_patience_the_start_counts_too(tmp_path, monkeypatch):
    errors_are(monkeypatch, 0.5, 0.2, 0.3)
    kept = []
    run = trainer(tmp_path / "best", changed(epochs=3), on_epoch=lambda _: kept.append(copied(run.averaged)))
    run.run(bar=False)
    assert same(best(tmp_path / "best"), kept[1])
    settings = changed(epochs=50, patience=3)
    errors_are(monkeypatch, 0.3, 0.5, 0.3, 0.4)
    folder = tmp_path / "start"
    run = trainer(folder, settings, on_step=at(2))
    start = copied(run.model)
    run.run(bar=False)
    trainer(folder, settings, resume=True).run(bar=False)
    history = pd.read_csv(folder / "history.csv")
    assert (history.epoch.tolist(), history.cer.tolist()) == ([0, 1, 2, 3], [0.3, 0.5, 0.3, 0.4])
    assert history.loss.isna().tolist() == [True, False, False, False] and same(best(folder), start)


class Killed(BaseException):
    """Stands for SIGKILL: no handler runs."""


def test_a_kill_at_any_point_leaves_a_state_to_go_on_from(tmp_path, monkeypatch):
    for point in (*range(8), *range(8, 24, 3)):
        folder, left = tmp_path / str(point), itertools.count(point, -1)

        def killed_at(act, left=left):
            def acting(*arguments, **options):
                if next(left) == 0:
                    raise Killed
                return act(*arguments, **options)

            return acting

        trainer(folder, on_step=at(4)).run(bar=False)
        run = trainer(folder, resume=True)
        monkeypatch.setattr(training, "SAVE_EVERY", 0)
        with monkeypatch.context() as context, pytest.raises(Killed):
            for module, name in ((os, "replace"), (os, "unlink"), (shutil, "rmtree"), (torch, "save")):
                context.setattr(module, name, killed_at(getattr(module, name)))
            run.run(bar=False)
        again = trainer(folder, model=Small(), resume=True)
        assert again.progress["step"] >= 4 and (not (folder / "best").exists() or best(folder))
        again.run(bar=False)
        assert [path.name for path in folder.glob("state-*")] == ["state-000000010"]
        assert pd.read_csv(folder / "history.csv").epoch.tolist() == [1, 2]  # also where the last step was saved
        monkeypatch.undo()


def test_nothing_to_resume_one_run_a_folder_and_nothing_is_overwritten(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        trainer(tmp_path, resume=True)
    run = trainer(tmp_path, changed(epochs=1))
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(RuntimeError, match="another run is using it"):
        run.run(bar=False)
    run.run(bar=False)
    with pytest.raises(FileExistsError, match="resume it, or give another folder"):
        trainer(tmp_path)
    shutil.rmtree(next(tmp_path.glob("state-*")))
    with pytest.raises(FileExistsError, match="another folder"):
        trainer(tmp_path)  # nor are the best weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder, changed(epochs=1)).run(bar=False)
    return folder


def test_a_state_of_other_lines_or_another_network_is_refused(finished):
    pixels, abc = LINES[7].pixels.copy(), Alphabet("abc")
    pixels[0, 0] ^= 1
    for what, options in (
        ("alphabet.*'ab'", {"lines": prepare_lines(rows(18), abc), "model": small(abc)}),
        ("width divisor .1.0.", {"model": Small(AB, 2.0)}),
        ("set of lines", {"lines": LINES[::-1]}),
        ("set of lines", {"lines": [*LINES[:7], dataclasses.replace(LINES[7], pixels=pixels), *LINES[8:]]}),
        ("set of lines", {"lines": [dataclasses.replace(line, text=line.text + "a") for line in LINES]}),
        ("set of validation lines", {"validation": VALIDATION[:-1]}),
        ("seed .0.", {"settings": changed(seed=1)}),
        ("frozen .False.", {"settings": changed(frozen=True)}),
    ):
        arguments = {"model": small(), "lines": LINES, "validation": VALIDATION, "settings": FEW} | options
        with pytest.raises(RuntimeError, match=f"another {what}.*resume it with the same"):
            Trainer(**arguments, folder=finished, resume=True)


def swell(file):
    """Add a record that unpacks to more than the whole file."""
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as records:
        records.writestr("archive/zeros", bytes(10_000_000))


def test_a_damaged_or_hostile_state_runs_no_code_and_says_what_to_do(tmp_path, finished):
    state, evil = next(finished.glob("state-*")), Malicious(f"touch {tmp_path / 'trace'}")
    spoilt = [lambda file: file.write_bytes(pickle.dumps(evil)), functools.partial(torch.save, evil), Path.unlink]
    spoilt += [lambda file: file.write_bytes(file.read_bytes()[:-100]), swell]
    files = [path.name for path in state.iterdir()]
    cases = [*itertools.product(files, spoilt), ("custom_checkpoint_0.pkl", spoilt[0])]
    for k, (name, spoil) in enumerate(cases):
        shutil.copytree(finished, folder := tmp_path / str(k))
        spoil(folder / state.name / name)
        if name.startswith("random_states") and spoil is not swell:
            trainer(folder, resume=True)  # which goes on, with other random numbers
        else:
            with pytest.raises(RuntimeError, match=f"{state.name} is damaged; start again with --init {folder}/best"):
                trainer(folder, resume=True)
    assert not (tmp_path / "trace").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_last_good_state(tmp_path, monkeypatch):
    usual = trainer(tmp_path / "usual").run(bar=False)
    for bad, fetch_every in ((float("nan"), 1), (float("inf"), 3)):  # 3: as on a GPU
        loss = functools.partial(torch.full, (), bad, requires_grad=True)
        with monkeypatch.context() as context:
            spoil = functools.partial(context.setattr, nn.functional, "ctc_loss", lambda *_, loss=loss, **__: loss())
            run = trainer(tmp_path / str(bad), on_step=at(7, spoil))
            run.fetch_every = fetch_every
            with pytest.raises(RuntimeError, match=rf"loss is {bad} in epoch 2, step \d.*{bad}; try a lower learning"):
                run.run(bar=False)
        assert same(resumed(run.folder, 5).averaged.state_dict(), usual.state_dict())


def with_scaler(**options):
    """As on a GPU with float16: a scaler, which skips the steps whose gradient overflows."""
    accelerator = Accelerator(**options)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return accelerator


def test_under_float16_a_step_that_overflows_is_skipped(tmp_path, monkeypatch):
    trainer(tmp_path, on_step=at(1)).run(bar=False)  # begun without a scaler, on another device
    monkeypatch.setattr(training, "Accelerator", with_scaler)
    seen, note = {}, lambda done, _: seen.update({done: (copied(run.model), copied(run.averaged))})
    run = trainer(tmp_path, on_step=note, resume=True)
    run.model.fc.weight.register_hook(lambda gradient: gradient * (float("inf") if run.progress["step"] == 2 else 1))
    run.run(bar=False)
    assert all(torch.equal(seen[2][k]["fc.weight"], seen[3][k]["fc.weight"]) for k in (0, 1))
    assert not torch.equal(seen[3][0]["fc.weight"], seen[4][0]["fc.weight"])
    assert trainer(tmp_path, resume=True).accelerator.scaler.get_scale() == 512


def test_a_full_disk_keeps_the_last_good_state(tmp_path):
    """A limit on the size of files fails as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = trainer(tmp_path, on_step=at(7, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))))
    try:
        with pytest.raises(OSError, match=r"(best|state-000000010) could not be written.*disk full"):
            run.run(bar=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resumed(tmp_path, 5)


SCRIPT = """
import json, pathlib, sys
import torch
from hwrlib.tests import test_training as tests
torch.set_num_threads(1)
folder = pathlib.Path(sys.argv[1])
run = tests.trainer(folder / "run", tests.changed(batch_size=2))
texts = [text for batch in run.loader for text in batch.texts]
run.run(bar=False)
sums = {name: value.double().sum().item() for name, value in run.ema.state_dict().items()}
result = {"texts": texts, "sums": sums, "processes": run.accelerator.num_processes, "history": run.history}
(folder / f"{run.accelerator.process_index}.json").write_text(json.dumps(result))
run.accelerator.end_training()  # as the command does: without it, a process sometimes aborts as it ends
"""


def test_two_processes_train_on_each_line_once_and_end_alike(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # --multi_gpu means several processes: with --cpu, accelerate starts only one unless mpirun is there.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", str(script), str(tmp_path)]
    root = str(Path(training.__file__).resolve().parent.parent)
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["processes"] == 2 and len(first["texts"]) in (8, 9, 10)
    assert sorted(first["texts"] + second["texts"]) == sorted(line.text for line in LINES)
    assert (first["sums"], first["history"]) == (second["sums"], second["history"])
    assert [row["steps"] for row in first["history"]] == [5, 10]
    with pytest.raises(RuntimeError, match="another number of processes"):
        trainer(tmp_path / "run", changed(batch_size=2), resume=True)
