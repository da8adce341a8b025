"""The command line: what it prints, what it writes, and how it fails."""

import io
import json
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hwrlib.__main__ import main
from hwrlib.data import load_lines
from hwrlib.model import CRNN
from hwrlib.recognizer import Recognizer


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights, narrow lines: what is tested here is not what they read."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    CRNN(squeeze=8.0).save_pretrained(folder)
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
    expected = Recognizer.from_pretrained(precision="no").read(load_lines("validation", "sample")[0]["image"])
    assert out == expected.text + "\n"
    assert "sample" in err


def test_read_prints_one_text_a_line_with_its_name(weights, images, capsys):
    assert main(["read", str(images), str(images / "0.png"), "--weights", weights]) == 0
    rows = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == [str(images / name) for name in ("0.png", "1.png", "0.png")]
    assert rows[0][1:] == rows[2][1:]


def test_read_takes_standard_input(weights, images, capsys, monkeypatch):
    data = io.BytesIO((images / "1.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data))
    assert main(["read", "-", "--weights", weights, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == "-"


@pytest.mark.parametrize("decoder", ["greedy", "beam", "language"])
def test_json_has_confidence_and_the_frames_of_each_character(weights, images, capsys, decoder):
    assert main(["read", str(images / "0.png"), "--weights", weights, "--json", "--decoder", decoder]) == 0
    reading = json.loads(capsys.readouterr().out)
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
    assert main(["read", str(path), "--weights", weights, "--json"]) == 0
    boxes = [json.loads(row)["box"] for row in capsys.readouterr().out.splitlines()]
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
    assert "broken.png" in err
    assert "none.png" in err


def test_an_empty_folder_and_missing_weights_are_said(tmp_path, images, weights, capsys):
    assert main(["read", str(tmp_path), "--weights", weights]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert main(["read", str(images), "--weights", str(tmp_path / "no" / "weights")]) == 1
    assert "no such folder" in capsys.readouterr().err


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
    readings = pd.read_csv(table, keep_default_na=False)
    assert scores["all"]["cer"]["rate"] == readings.errors.sum() / readings.characters.sum()
    assert list(readings.reference) == load_lines("validation", str(folder))["text"][:]
    assert main([*arguments, "--predictions", str(tmp_path / "readings.parquet")]) == 0
    assert len(pd.read_parquet(tmp_path / "readings.parquet")) == 4


def test_train_starts_from_weights_and_resumes(weights, folder, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["train", "--data", str(folder), "--init", weights, "--output", str(run)]
    arguments += ["--set", "batch_size=2", "--set", "precision=no", "--set", "strength=0"]
    assert main([*arguments, "--set", "epochs=1"]) == 0
    assert CRNN.from_pretrained(run / "best").squeeze == 8.0
    assert main([*arguments, "--set", "epochs=1"]) == 1
    assert "resume it" in capsys.readouterr().err
    assert main([*arguments, "--set", "epochs=2", "--resume"]) == 0
    assert list(pd.read_csv(run / "history.csv").epoch) == [1, 2]


def test_train_refuses_a_single_file_and_an_unknown_setting(folder, tmp_path, capsys):
    file = next(folder.glob("train*.parquet"))
    assert main(["train", "--data", str(file), "--output", str(tmp_path / "run")]) == 1
    assert "one file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--output", str(tmp_path / "run"), "--set", "speed=9"])
    assert "no setting" in capsys.readouterr().err
