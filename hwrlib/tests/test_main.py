"""The command line: what it prints, what it writes, and how it fails."""

import datetime
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import hwrlib.__main__
import hwrlib.app.server
import hwrlib.archive.formats
import hwrlib.commands
from hwrlib.__main__ import main
from hwrlib.alphabet import Alphabet
from hwrlib.archive.sources import ENDINGS
from hwrlib.data import EXAMPLE, load_lines
from hwrlib.model import CRNN
from hwrlib.recognizer import Recognizer


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights, narrow lines: what is tested here is not what they read."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    CRNN(width_divisor=8.0).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for k, line in enumerate(load_lines("validation", "sample").select(range(2))):
        line["image"].save(folder / f"{k}.png")
    return folder


def test_read_without_an_argument_reads_the_embedded_sample_with_the_embedded_weights(capsys):
    assert main(["read", "--precision", "no", "--decoder", "greedy"]) == 0
    out, err = capsys.readouterr()
    assert out == load_lines("validation", "sample")[EXAMPLE - 1]["text"] + "\n"  # a first reading that is right
    assert "sample" in err


def test_read_prints_one_text_a_line_with_its_name(weights, images, capsys):
    assert main(["read", str(images), str(images / "0.png"), "--weights", weights]) == 0
    rows = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == [str(images / name) for name in ("0.png", "1.png", "0.png")]
    assert rows[0][1:] == rows[2][1:]
    assert main(["read", str(images), "--weights", weights]) == 0
    assert [row.split("\t")[0] for row in capsys.readouterr().out.splitlines()] == [row[0] for row in rows[:2]]
    assert main(["read", str(images / "0.png"), "--weights", weights]) == 0
    assert "\t" not in capsys.readouterr().out


def test_a_folder_is_looked_through_for_what_can_be_read():
    assert {".png", ".tiff", ".webp"} <= ENDINGS
    assert (".heic" in ENDINGS) == (importlib.util.find_spec("pillow_heif") is not None)


def test_as_decides_what_an_image_is(weights, images, capsys, monkeypatch):
    kinds = []
    monkeypatch.setattr(Recognizer, "read_page", lambda self, image, kind=None: kinds.append(kind) or [])
    for options in ([], ["--as", "line"], ["--as", "page"]):
        main(["read", str(images / "0.png"), "--weights", weights, *options])
    assert kinds == [None, "line", "page"]
    with pytest.raises(SystemExit, match="2"):
        main(["read", "--as", "word"])


def test_every_page_of_a_tiff_is_read_and_a_blank_one_stops_no_other(weights, tmp_path, capsys):
    line = load_lines("validation", "sample")[0]["image"].convert("L")
    path = tmp_path / "scan.tif"
    line.save(path, save_all=True, append_images=[Image.new("L", (300, 300), 255), line])
    assert main(["read", str(path), "--weights", weights, "--format", "json"]) == 1
    out, err = capsys.readouterr()
    assert [json.loads(row)["image"] for row in out.splitlines()] == [str(path), f"{path}#3"]
    assert err == f"hwrlib: {path}#2: no writing was found\n"


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_never_ends_is_refused(weights, images, tmp_path, capsys, kind):
    path = "/dev/zero"
    if kind == "pipe":
        path = str(tmp_path / "pipe.png")
        os.mkfifo(path)
    assert main(["read", path, str(images / "0.png"), "--weights", weights]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"hwrlib: {path}") and len(err.splitlines()) == 1
    assert out.startswith(str(images / "0.png"))


def test_results_come_one_file_at_a_time(weights, images, tmp_path, monkeypatch):
    seen, reading = [], Recognizer.read_page

    def read_page(self, *arguments):
        seen.append(len((tmp_path / "out").read_text().splitlines()))
        return reading(self, *arguments)

    monkeypatch.setattr(Recognizer, "read_page", read_page)
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["read", str(images), "--weights", weights]) == 0
    assert seen == [0, 1]


def test_when_nobody_reads_the_output_any_more_it_ends_quietly(weights, images, monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["read", str(images), "--weights", weights]) == 141
        monkeypatch.undo()
    assert capfd.readouterr().err == ""


def test_ctrl_c_ends_it_quietly(weights, images, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Recognizer, "read_page", interrupt)
    assert main(["read", str(images), "--weights", weights]) == 130
    assert capsys.readouterr() == ("", "")


def test_read_takes_standard_input(weights, images, capsys, monkeypatch):
    data = io.BytesIO((images / "1.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data))
    assert main(["read", "-", "--weights", weights, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == "-"


@pytest.mark.parametrize("decoder", ["greedy", "beam", "language"])
def test_json_has_confidence_and_the_frames_of_each_character(weights, images, capsys, decoder):
    assert main(["read", str(images / "0.png"), "--weights", weights, "--format", "json", "--decoder", decoder]) == 0
    (reading,) = json.loads(capsys.readouterr().out)["lines"]
    assert "".join(c["text"] for c in reading["characters"]) == reading["text"]
    assert 0 <= reading["confidence"] <= 1
    assert all(c["begin"] < c["end"] for c in reading["characters"])


def test_read_prints_the_lines_of_a_page(weights, tmp_path, capsys):
    path, blank = tmp_path / "page.png", tmp_path / "blank.png"
    page = np.full((300, 500), 230, np.uint8)
    Image.fromarray(page).save(blank)
    for y in (80, 200):
        cv2.putText(page, "two lines", (60, y), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 40, 3)
    Image.fromarray(page).save(path)
    assert main(["read", str(path), "--weights", weights, "--format", "json"]) == 0
    boxes = [line["box"] for line in json.loads(capsys.readouterr().out)["lines"]]
    assert len(boxes) == 2
    assert boxes[0][1] < boxes[1][1]
    assert main(["read", str(blank), "--weights", weights]) == 1
    assert f"{blank}: no writing" in capsys.readouterr().err


def test_read_goes_on_after_an_image_that_cannot_be_read(weights, images, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert main(["read", str(broken), str(tmp_path / "none.png"), str(images / "0.png"), "--weights", weights]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert ["broken.png" in err.splitlines()[0], "none.png" in err.splitlines()[1]] == [True, True]
    assert all(row.startswith("hwrlib: ") for row in err.splitlines()) and len(err.splitlines()) == 2


def test_an_empty_folder_and_missing_weights_are_said(tmp_path, images, weights, capsys):
    assert main(["read", str(tmp_path), "--weights", weights]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert main(["read", str(images), "--weights", str(tmp_path / "no" / "weights")]) == 1
    err = capsys.readouterr().err
    assert str(tmp_path / "no" / "weights") in err and len(err.splitlines()) == 1


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(command in out for command in ("read", "train", "evaluate"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four lines in the Hub's layout."""
    folder = tmp_path_factory.mktemp("lines")
    rows = load_lines("validation", "sample").select(range(4))
    rows = rows.add_column("scan", ["grey", "bin", "grey", "bin"])
    for split in ("train", "validation"):
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_evaluate_writes_a_report_and_the_predictions(weights, folder, tmp_path, capsys):
    report, table = tmp_path / "report.json", tmp_path / "readings.csv"
    arguments = ["evaluate", "--data", str(folder), "--weights", weights]
    assert main([*arguments, "--report", str(report), "--predictions", str(table)]) == 0
    out = capsys.readouterr().out
    assert "all: 4 lines: CER" in out
    assert "grey: 2 lines" in out
    scores = json.loads(report.read_text())
    assert scores["data"] == str(folder) and scores["split"] == "validation" and scores["decoder"] == "greedy"
    assert scores["date"] == datetime.date.today().isoformat()
    version = hashlib.sha256((Path(weights) / "model.safetensors").read_bytes()).hexdigest()[:8]
    assert scores["weights"] == version
    readings = pd.read_csv(table, keep_default_na=False)
    assert scores["all"]["cer"]["rate"] == readings.errors.sum() / readings.characters.sum()
    assert list(readings.reference) == load_lines("validation", str(folder))["text"][:]
    assert main([*arguments, "--predictions", str(tmp_path / "readings.parquet")]) == 0
    assert len(pd.read_parquet(tmp_path / "readings.parquet")) == 4


def test_evaluate_names_an_image_that_cannot_be_read_and_reads_the_others(weights, tmp_path, capsys):
    lines = load_lines("validation", "sample").select(range(4))
    (tmp_path / "validation").mkdir()
    for k, line in enumerate(lines):
        line["image"].save(tmp_path / "validation" / f"{k}.png")
    names = [f"{k}.png" for k in range(4)]
    table = pd.DataFrame({"file_name": names, "text": lines["text"][:]})
    table.to_csv(tmp_path / "validation" / "metadata.csv", index=False)
    broken = tmp_path / "validation" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-2000])  # its header is whole
    Image.new("L", (50, 400), 255).save(tmp_path / "validation" / "2.png")  # decoded, but no line
    assert main(["evaluate", "--data", str(tmp_path), "--weights", weights]) == 1
    out, err = capsys.readouterr()
    assert "all: 2 lines: CER" in out
    assert ["row 1" in err, "row 2" in err, len(err.splitlines())] == [True, True, 2]


@pytest.fixture
def trained(monkeypatch):
    """What the command line would train: the arguments of each Trainer."""
    given = []

    class Noting:
        calls: ClassVar = []

        def __init__(self, *arguments):
            given.append(arguments)
            self.accelerator = SimpleNamespace(end_training=lambda: self.calls.append("end_training"))

        def run(self):
            self.calls.append("run")

    monkeypatch.setattr(hwrlib.commands, "Trainer", Noting)
    return given


def test_training_ends_its_process_group_after_the_run(folder, tmp_path, trained):
    assert main(["train", "--data", str(folder), "--output", str(tmp_path / "run")]) == 0
    assert len(trained) == 1
    assert hwrlib.commands.Trainer.calls == ["run", "end_training"]


def test_the_seed_decides_the_first_weights(folder, tmp_path, trained):
    arguments = ["train", "--data", str(folder), "--output", str(tmp_path / "run"), "--set"]
    for seed in (1, 1, 2):
        assert main([*arguments, f"seed={seed}", "--width-divisor", "2"]) == 0
    first, again, other = (model.state_dict()["fc.weight"] for model, *_ in trained)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert trained[0][0].width_divisor == 2.0


def test_init_brings_alphabet_width_divisor_and_calibration(folder, tmp_path, trained):
    texts = "".join(load_lines("train", str(folder))["text"])
    start = CRNN(Alphabet("".join(sorted(set(texts)))), 3.0, {"greedy": [0.5, 1.5]})
    start.save_pretrained(tmp_path / "start")
    arguments = ["train", "--data", str(folder), "--init", str(tmp_path / "start"), "--output", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert main([*arguments, "--width-divisor", "2"]) == 0
    for (model, *_), width_divisor in zip(trained, (3.0, 2.0), strict=True):
        assert model.alphabet.characters == start.alphabet.characters
        assert model.width_divisor == width_divisor
        assert model.calibration == {"greedy": [0.5, 1.5]}
        assert torch.equal(model.fc.weight, start.fc.weight)


def test_extra_lines_and_repeated_ones(folder, tmp_path, trained):
    more = load_lines("validation", "sample").select(range(4, 7))
    more.to_parquet(tmp_path / "more.parquet")
    folder_lines, extra_lines = load_lines("train", str(folder))["text"][:], more["text"][:]
    arguments = ["train", "--data", str(folder), "--output", str(tmp_path / "run"), "--width-divisor", "2"]
    extra = ["--extra", str(tmp_path / "more.parquet")]
    assert main([*arguments, "--repeat", "2", *extra, *extra]) == 0
    _, lines, validation, *_ = trained[0]
    assert [line.text for line in lines] == folder_lines * 2 + extra_lines * 2
    assert [line.text for line in validation] == folder_lines


@pytest.mark.parametrize("divisor", ["0", "9", "nan"])
def test_a_width_divisor_out_of_range_is_an_error_of_one_line(folder, tmp_path, capsys, divisor):
    assert main(["train", "--data", str(folder), "--output", str(tmp_path), "--width-divisor", divisor]) == 1
    err = capsys.readouterr().err
    assert "1 to 8" in err and len(err.splitlines()) == 1


def test_train_starts_from_weights_and_resumes(weights, folder, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["train", "--data", str(folder), "--init", weights, "--output", str(run)]
    arguments += ["--set", "batch_size=2", "--set", "precision=no", "--set", "strength=0"]
    assert main([*arguments, "--set", "epochs=1"]) == 0
    assert CRNN.from_pretrained(run / "best").width_divisor == 8.0
    assert main([*arguments, "--set", "epochs=1"]) == 1
    assert "resume it" in capsys.readouterr().err
    assert main([*arguments, "--set", "epochs=2", "--resume"]) == 0
    assert list(pd.read_csv(run / "history.csv").epoch) == [1, 2]


def test_train_refuses_a_single_file(folder, tmp_path, capsys):
    file = next(folder.glob("train*.parquet"))
    assert main(["train", "--data", str(file), "--output", str(tmp_path / "run")]) == 1
    assert "one file" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["speed=9", "epochs=abc", "batch_size=0", "average=2", "frozen=yes"])
def test_a_wrong_setting_is_a_usage_error_that_names_it(tmp_path, capsys, setting):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--output", str(tmp_path / "run"), "--set", setting])
    assert setting.partition("=")[0] in capsys.readouterr().err.splitlines()[-1]


# The app


@pytest.fixture
def served(monkeypatch, tmp_path):
    """What Voila was started with; nothing is served."""
    voila = pytest.importorskip("voila.app")
    started = []
    monkeypatch.setattr(voila.Voila, "launch_instance", lambda argv: started.append(argv))
    for name in ("PYTHONPATH", "HWR_LINES", "HWR_WEIGHTS"):
        monkeypatch.setenv(name, "")  # so that what the command sets is undone
    monkeypatch.chdir(tmp_path)
    return started


def test_the_app_is_served_to_this_machine_alone(served, weights, capsys):
    assert main(["app", "--port", "9000", "--weights", weights, "--no-browser"]) == 0
    ((notebook, *options),) = served
    assert [cell["cell_type"] for cell in json.loads(Path(notebook).read_text())["cells"]] == ["markdown", "code"]
    assert {"--port=9000", "--Voila.ip=127.0.0.1", "--no-browser"} <= set(options)
    assert "token" not in " ".join(options) + capsys.readouterr().out
    assert os.environ["HWR_LINES"] == str(Path("my_lines").resolve())
    assert os.environ["HWR_WEIGHTS"] == weights
    assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == str(Path(hwrlib.__file__).parent.parent)


def test_help_and_the_server_of_the_app_start_without_what_they_do_not_need():
    code = "import sys, hwrlib.__main__, hwrlib.app.server; print('torch' in sys.modules, 'datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    code = "import sys, hwrlib.app.app; print('datasets' in sys.modules, 'accelerate' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert list(hwrlib.archive.formats.FORMATS) == hwrlib.__main__.FORMATS
    assert all(hasattr(hwrlib, name) for name in hwrlib.__all__)


def test_beyond_this_machine_the_app_asks_for_a_token(served, capsys):
    assert main(["app", "--host", "0.0.0.0"]) == main(["app", "--host", "0.0.0.0"]) == 0
    tokens = {option for argv in served for option in argv if option.startswith("--token=")}
    assert len(tokens) == 2
    printed = capsys.readouterr().out
    assert all(f"/?{token.removeprefix('--')}" in printed for token in tokens)
    assert all(len(token) > 40 for token in tokens)


def test_who_comes_when_all_places_are_taken_is_asked_to_come_back(served, monkeypatch):
    voila, web = pytest.importorskip("voila.app"), pytest.importorskip("tornado.web")
    monkeypatch.setattr(voila.Voila, "launch_instance", classmethod(lambda cls, argv: served.append(cls())))
    assert main(["app", "--visitors", "2"]) == 0
    kernels = ["one"]
    handler = types.SimpleNamespace(
        kernel_manager=types.SimpleNamespace(list_kernel_ids=lambda: kernels), xsrf_token=""
    )
    served[0].let_in(handler, notebook=None, cwd="")
    kernels.append("two")
    with pytest.raises(web.HTTPError, match="All 2 places are taken"):
        served[0].let_in(handler, notebook=None, cwd="")


def test_without_voila_the_app_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(hwrlib.app.server.importlib.util, "find_spec", lambda _: None)
    assert main(["app"]) == 1
    assert "the app needs Voila: pip install" in capsys.readouterr().err
