"""One hand: lines held out, general lines mixed in, and the table of what own lines bring."""

import dataclasses
import functools
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hwrlib.__main__ import main
from hwrlib.alphabet import Alphabet
from hwrlib.batches import prepare_lines
from hwrlib.data import DataError, hold_out, load_lines, training_lines
from hwrlib.model import CRNN
from hwrlib.scripts import personal
from hwrlib.scripts.personal import learning_curve

AB = Alphabet("ab")
pytestmark = pytest.mark.usefixtures("one_thread")


def rows(count, text="ab", writer=None):
    """Lines of one text, each with a stroke more than the one before, and a rule that tells the writer."""
    lines = []
    for k in range(count):
        pixels = np.full((32, 60), 255, np.uint8)
        pixels[6:26, 4 : 4 + 3 * (k % 10 + 1) : 3] = 0
        pixels[29, : int(writer or 0) % 50] = 0
        lines.append({"image": Image.fromarray(pixels), "text": text} | ({"writer": writer} if writer else {}))
    return datasets.Dataset.from_list(lines).cast_column("image", datasets.Image())


def folder_of(path, lines):
    """A folder as chapter 7 keeps it: images, and one metadata.csv."""
    path.mkdir(parents=True)
    for k, line in enumerate(lines):
        line["image"].save(path / f"{k}.png")
    names = [f"{k}.png" for k in range(len(lines))]
    pd.DataFrame({"file_name": names, "text": lines["text"][:]}).to_csv(path / "metadata.csv", index=False)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights, narrow lines: what is tested here is not what they read."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    CRNN(AB, 4.0).save_pretrained(folder)
    return folder


# Held out


@pytest.mark.parametrize(
    ("count", "held"), [(2, [1]), (4, [3]), (5, [4]), (9, [4]), (10, [4, 9]), (40, range(4, 40, 5))]
)
def test_every_fifth_line_is_held_out_and_at_least_one(count, held):
    kept, held_out = hold_out(datasets.Dataset.from_dict({"text": [str(k) for k in range(count)]}))
    assert held_out["text"][:] == [str(k) for k in held]
    assert sorted(kept["text"][:] + held_out["text"][:], key=int) == [str(k) for k in range(count)]


def test_one_line_is_too_few():
    with pytest.raises(DataError, match=r"1 line.*correct some more"):
        hold_out(rows(1))


def test_a_folder_with_a_validation_split_keeps_it(tmp_path):
    one = folder_of(tmp_path / "one", rows(10))
    assert [len(part) for part in training_lines(one)] == [8, 2]
    both = tmp_path / "both"
    folder_of(both / "train", rows(6, "a"))
    folder_of(both / "validation", rows(3, "b"))
    learnt, held_out = training_lines(both)
    assert set(learnt["text"]) == {"a"}
    assert held_out["text"][:] == ["b"] * 3
    with pytest.raises(FileNotFoundError, match="none"):
        training_lines(tmp_path / "none")


# The command line


def test_train_takes_a_folder_with_one_metadata_csv(weights, tmp_path, capsys):
    lines, general, run = (
        folder_of(tmp_path / "mine", rows(4)),
        folder_of(tmp_path / "more", rows(5, "b")),
        tmp_path / "run",
    )
    arguments = ["train", "--data", str(lines), "--init", str(weights), "--output", str(run), "--replay", str(general)]
    arguments += ["--preset", "personal", "--set", "epochs=1", "--set", "precision=no", "--set", "frozen=true"]
    arguments += ["--set", "batch_size=16"]
    assert main(arguments) == 0
    assert "3 lines to train on, 1 held out" in capsys.readouterr().err
    history = pd.read_csv(run / "history.csv")
    assert history.epoch.tolist() == [0, 1]
    assert history.lines.tolist() == [0, 66]  # 3 lines eleven times, and as many others
    before, after = (CRNN.from_pretrained(path).state_dict() for path in (weights, run / "best"))
    assert torch.equal(before["cnn.0.weight"], after["cnn.0.weight"])


def test_train_says_what_is_missing_where_there_is_one_line(weights, tmp_path, capsys):
    lines = folder_of(tmp_path / "mine", rows(1))
    assert main(["train", "--data", str(lines), "--preset", "personal", "--output", str(tmp_path / "run")]) == 1
    assert "correct some more" in capsys.readouterr().err


# The table


@pytest.fixture
def data(tmp_path):
    parts = [rows(n, "ab", w) for w, n in (("202", 5), ("289", 6), ("1", 4), ("2", 4))]
    datasets.concatenate_datasets(parts).to_parquet(tmp_path / "data" / "validation.parquet")
    rows(8, "b", "3").to_parquet(tmp_path / "data" / "train.parquet")
    return tmp_path / "data"


@pytest.fixture
def taught(monkeypatch):
    """What each run is given, without the training."""
    given = []

    def note(weights, own, general, folder, frozen, precision):
        given.append((own, len(general), frozen))
        CRNN.from_pretrained(weights).save_pretrained(Path(folder) / "best")
        return {"best_epoch": 1, "minutes": 0.5}

    monkeypatch.setattr(personal, "_teach", note)
    monkeypatch.setattr(personal, "GIVEN", (2, 4))
    return given


def pictures(lines):
    return {np.asarray(image).tobytes() for image in lines["image"]}


def test_the_learning_curve_writes_a_row_for_each_run_and_goes_on(data, taught, weights, tmp_path, capsys):
    out = tmp_path / "curve.csv"
    learning_curve(data, out, weights, "no")
    table = pd.read_csv(out, dtype={"writer": str})
    assert list(table) == personal.COLUMNS
    runs = [(0, False, False), (2, False, True), (2, True, True), (4, False, True), (4, True, True), (4, False, False)]
    assert list(table[personal.RUN].itertuples(index=False, name=None)) == [
        (writer, *run) for writer in ("202", "289") for run in runs
    ]
    assert [(len(own), general, frozen) for own, general, frozen in taught[:5]] == [
        (given, 8 if replay else 0, frozen) for given, frozen, replay in runs[1:]
    ]
    assert pictures(taught[0][0]) < pictures(taught[2][0])  # more lines are the same ones and others
    assert table.cer_own.between(0, 3).all()
    assert table.cer_others.nunique() == 1  # the same others for each writer, and here the same weights
    assert table.best_epoch.tolist() == [0, 1, 1, 1, 1, 1] * 2
    assert len(capsys.readouterr().out.splitlines()) == 12

    table.drop(index=7).to_csv(out, index=False)
    taught.clear()
    learning_curve(data, out, weights, "no")
    assert len(taught) == 1
    assert len(pd.read_csv(out)) == 12


def test_measured_lines_are_never_given_and_others_are_of_nobody_measured(data, taught, weights, tmp_path, monkeypatch):
    read = []

    class Reader(personal.Recognizer):
        def read_lines(self, images):
            read.append(pictures({"image": images}))
            return super().read_lines(images)

    monkeypatch.setattr(personal, "Recognizer", Reader)
    learning_curve(data, tmp_path / "curve.csv", weights, "no")
    own = pictures(taught[2][0])
    assert len(own) == 4
    assert not own & read[0]
    lines = load_lines("validation", data)
    assert read[1] == {p for k, p in enumerate(map(np.ndarray.tobytes, map(np.asarray, lines["image"]))) if k >= 11}


def test_a_recorded_run_holds_out_mixes_and_keeps_the_best(weights, tmp_path, monkeypatch):
    seen = []

    class Noting(personal.Trainer):
        def __init__(self, model, lines, validation, folder, settings):
            seen.append(([line.text for line in lines], [line.text for line in validation], settings))
            super().__init__(model, lines, validation, folder, settings)

    monkeypatch.setattr(personal, "Trainer", Noting)
    monkeypatch.setattr(personal, "EPOCHS", 1)
    monkeypatch.setattr(personal, "rehearse", functools.partial(personal.rehearse, least=4))
    found = personal._teach(weights, rows(5), prepare_lines(rows(8, "b"), AB, 4.0), tmp_path, True, "no")
    lines, held_out, settings = seen[0]
    assert (lines, held_out) == (["ab"] * 4 + ["b"] * 4, ["ab"])
    assert settings == dataclasses.replace(personal.PRESETS["personal"], epochs=1, precision="no", frozen=True)
    assert found["best_epoch"] in (0, 1)
    assert found["minutes"] >= 0
    before, best = (CRNN.from_pretrained(path).state_dict() for path in (weights, tmp_path / "best"))
    assert torch.equal(before["cnn.0.weight"], best["cnn.0.weight"])


def test_the_learning_curve_refuses_what_it_cannot_use(data, taught, weights, tmp_path, monkeypatch):
    out = tmp_path / "curve.csv"
    pd.DataFrame([dict.fromkeys(personal.COLUMNS, 0) | {"weights": "others"}]).to_csv(out, index=False)
    with pytest.raises(DataError, match="other weights"):
        learning_curve(data, out, weights)
    monkeypatch.setattr(personal, "GIVEN", (2, 5))
    with pytest.raises(DataError, match=r"5 lines of writer 202.*more than 5"):
        learning_curve(data, tmp_path / "new.csv", weights)
    rows(4).to_parquet(data / "validation.parquet")
    with pytest.raises(DataError, match="no column writer"):
        learning_curve(data, tmp_path / "new.csv", weights)
