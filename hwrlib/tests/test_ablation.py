"""The table of what each change brings: every run starts alike, sees as many lines, and differs in one thing."""

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hwrlib import augment
from hwrlib.alphabet import Alphabet
from hwrlib.data import DataError
from hwrlib.model import CRNN
from hwrlib.scripts import ablation
from hwrlib.scripts.ablation import CHANGES, Change, main

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(count, text):
    """Lines of one text, each with a stroke more than the one before."""
    lines = []
    for k in range(count):
        pixels = np.full((32, 90), 255, np.uint8)
        pixels[6:26, 4 : 4 + 3 * (k + 1) : 3] = 0
        lines.append({"image": Image.fromarray(pixels), "text": text})
    return datasets.Dataset.from_list(lines).cast_column("image", datasets.Image())


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """The command line over a few lines and random weights: what is tested here is not what they read."""
    monkeypatch.chdir(tmp_path)
    rows(9, "a b").to_parquet("data/train.parquet")
    rows(3, "a b").to_parquet("data/validation.parquet")
    rows(4, "1").to_parquet("numbers.parquet")
    pens = [{"strokes": [[0, 0, 10 + k, 100], [50, 50, 320, 50]], "text": "a, b"} for k in range(5)]
    pd.DataFrame(pens).to_parquet("strokes.parquet")
    torch.manual_seed(0)
    CRNN(Alphabet(" ,ab1"), 4.0).save_pretrained("weights")
    # Digits alone, as a hash may be: a table of them is read back as text, not as a number.
    monkeypatch.setattr(ablation, "version", lambda source: "01234567")
    options = {"runs": "runs", "weights": "weights", "precision": "no", "lines": "8"}
    options = [part for name, value in options.items() for part in (f"--{name}", value)]
    return ["data", "strokes.parquet", "numbers.parquet", ".", *options]


@pytest.fixture
def trained(monkeypatch):
    """What each run is given, and how it hides parts of a line."""
    runs = []

    class Noting(ablation.Trainer):
        def __init__(self, model, lines, validation, folder, settings, resume):
            runs.append({"folder": folder.name, "texts": [line.text for line in lines], "settings": settings})
            runs[-1]["start"] = model.rnn.weight_hh_l0.detach().clone()
            super().__init__(model, lines, validation, folder, settings, resume)

        def run(self, bar):
            runs[-1]["occlude"] = augment._occlude
            return super().run(bar)

    monkeypatch.setattr(ablation, "Trainer", Noting)
    return runs


def test_each_run_differs_in_one_thing_and_sees_as_many_lines(arguments, trained, monkeypatch, capsys):
    names = [
        "the recipe",
        "no pen strokes",
        "pen strokes not spaced as IAM's",
        "no blots, no masked spans",
        "batches of 8",
    ]
    monkeypatch.setattr(ablation, "CHANGES", {name: CHANGES[name] for name in names})
    occlude = augment._occlude
    main(arguments)
    table, errors = pd.read_csv("ablation.csv"), pd.read_csv("ablation_errors.csv")
    assert list(table) == ablation.COLUMNS
    assert table.change.tolist() == ["start", *names]
    assert table.lines.tolist() == [0, 8, 8, 8, 8, 8]
    assert table.steps.tolist() == [0, 2, 2, 2, 2, 1]
    assert list(errors) == ["characters", "start", *names]
    assert errors.characters.tolist() == [3, 3, 3]
    rates = errors[["start", *names]].sum() / 9
    assert rates.tolist() == pytest.approx(table.cer.tolist(), abs=1e-5)
    assert len(capsys.readouterr().out.splitlines()) == 6

    assert all(torch.equal(run["start"], trained[0]["start"]) for run in trained)
    texts = [sorted(run["texts"]) for run in trained]
    assert texts[0] == ["1", *["a , b"] * 3, *["a b"] * 4]
    assert texts[1] == ["1", *["a b"] * 7]
    assert texts[2] == ["1", *["a b"] * 4, *["a, b"] * 3]
    assert texts[3] == texts[4] == texts[0]
    assert [run["occlude"] is occlude for run in trained] == [True, True, True, False, True]
    assert augment._occlude is occlude
    assert [run["settings"].batch_size for run in trained] == [4, 4, 4, 4, 8]
    assert trained[2]["folder"] == "pen_strokes_not_spaced_as_IAM_s"


def test_a_stopped_run_is_taken_up_where_it_was_and_a_done_one_is_left(arguments, trained, monkeypatch):
    monkeypatch.setattr(ablation, "CHANGES", {"the recipe": Change()})
    step = ablation.Trainer._step

    def stop(self, batch):
        self.signals.append(15)
        return step(self, batch)

    with monkeypatch.context() as stopping:
        stopping.setattr(ablation.Trainer, "_step", stop)
        main(arguments)
    assert pd.read_csv("ablation.csv").change.tolist() == ["start"]
    main(arguments)
    table = pd.read_csv("ablation.csv")
    assert (table.change.tolist(), table.lines.tolist()) == (["start", "the recipe"], [0, 8])
    main(arguments)
    assert len(trained) == 2
    pd.testing.assert_frame_equal(pd.read_csv("ablation.csv"), table)


def test_it_refuses_what_it_cannot_compare(arguments, trained, monkeypatch):
    with pytest.raises(DataError, match="400 lines of one source are needed, 5 are given"):
        main([*arguments, "--lines", "1000"])
    monkeypatch.setattr(ablation, "CHANGES", {})
    main(arguments)
    table = pd.read_csv("ablation.csv", dtype={"weights": str})
    for name, value in {"weights": "others", "precision": "bf16", "lines": 7}.items():
        table.assign(**{name: value}).to_csv("ablation.csv", index=False)
        with pytest.raises(DataError, match=f"its column {name} holds {value}, here it is "):
            main(arguments)
