"""The tables of what each change of the recipe and what own lines bring: every run starts alike."""

import dataclasses
import functools

import datasets
import pandas as pd
import pytest
from PIL import Image

from hwrlib import batches
from hwrlib.alphabet import Alphabet
from hwrlib.files import DataError
from hwrlib.scripts import experiments
from hwrlib.tests.conftest import strokes, untrained

pytestmark = pytest.mark.usefixtures("one_thread")


def lines(count, text, **more):
    """Different lines of one text."""
    images = [Image.fromarray(strokes(90, seed=k)) for k in range(count)]
    return datasets.Dataset.from_list([{"image": image, "text": text, **more} for image in images])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command over a few lines, whose texts tell their source, and random weights; and what was trained."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"data/train": "iam", "strokes": "s , t", "written": "s, t", "numbers": "1"}.items():
        lines(9, text).to_parquet(f"{name}.parquet")
    of_writers = [lines(count, "ab", writer=w) for w, count in (("202", 5), ("1", 4))]
    datasets.concatenate_datasets(of_writers).to_parquet("data/validation.parquet")
    untrained(Alphabet(" ,1abimst"), 4.0).save_pretrained("weights")
    monkeypatch.setattr(experiments, "weights_version", lambda source: "01234567")  # as a hash of digits alone may be
    trained = []

    def note(make, lines_of):
        def trainer(*arguments, **options):
            trained.append((lines_of(*arguments, **options), arguments[4]))
            return make(*arguments, **options)

        return trainer

    texts = note(experiments.Trainer, lambda model, lines, *_: sorted(line.text for line in lines))
    monkeypatch.setattr(experiments, "Trainer", texts)
    counts = note(experiments.make_trainer, lambda *rows, replay_rows: (len(rows[1]), len(rows[2]), bool(replay_rows)))
    monkeypatch.setattr(experiments, "make_trainer", counts)
    monkeypatch.setattr(batches, "replay", functools.partial(batches.replay, least=2))
    for name, value in {
        "WRITERS": ("202",),
        "GIVEN": (2, 4),
        "EPOCHS": 1,
        "LINES": 8,
        "LEARNT": (2,),
        "VISITS": 9,
    }.items():
        monkeypatch.setattr(experiments, name, value)

    def call(kind, *more):
        extra = {"ablation": ["strokes.parquet", "written.parquet", "numbers.parquet"], "hand": ["data"]}.get(kind, [])
        options = ["--weights", "weights", "--precision", "fp32", *more]
        experiments.main([kind, ".", "data", *extra, *options])
        table = pd.read_csv(f"{kind}.csv", dtype={"writer": str, "weights": str})
        return table, [trained.pop(0) for _ in list(trained)]

    return call


def test_each_run_of_the_ablation_differs_in_one_thing_and_sees_as_many_lines(run, monkeypatch):
    names = ["start", "the recipe", "no pen strokes", "pen strokes not spaced as IAM's", "no blots, no masked spans"]
    monkeypatch.setattr(experiments, "CHANGES", {name: experiments.CHANGES[name] for name in names})
    table, trained = run("ablation")
    errors = pd.read_csv("ablation_errors.csv")
    assert set(table) == {"change", "lines", "steps", "minutes", "precision", "cer", "wer", "weights"}
    assert (table.change.tolist(), table.lines.tolist(), table.steps.tolist()) == (names, [0, *[8] * 4], [0, *[2] * 4])
    assert list(errors) == ["characters", *names] and errors.characters.tolist() == [2] * 9
    assert (errors[names].sum() / 18).tolist() == pytest.approx(table.cer.tolist(), abs=1e-5)
    texts = [texts for texts, _ in trained]
    assert texts[0] == texts[3] == ["1", *["iam"] * 4, *["s , t"] * 3]
    assert texts[1:3] == [["1", *["iam"] * 7], ["1", *["iam"] * 4, *["s, t"] * 3]]
    recipe, *_, varied = [settings for _, settings in trained]
    assert dataclasses.replace(varied, augmentation=0.6) == recipe and varied.augmentation == 0

    monkeypatch.setattr(experiments, "CHANGES", experiments.CHANGES | {"batches of 8": {"batch_size": 8}})
    again, trained = run("ablation")
    pd.testing.assert_frame_equal(again[:5], table)
    assert len(again) == 6 and len(trained) == 1 and trained[0][1] == dataclasses.replace(recipe, batch_size=8)
    again.assign(weights="others").to_csv("ablation.csv", index=False)
    with pytest.raises(DataError, match="rows of other weights"):
        run("ablation")


def test_own_lines_are_given_and_measured_apart(run):
    table, trained = run("personal")
    names = ["writer", "own_lines", "frozen", "replay"]
    variants = [(0, False, False), (2, False, True), (2, True, True), (4, False, True), (4, True, True)]
    variants += [(4, False, False)]
    assert list(table[names].itertuples(index=False, name=None)) == [("202", *v) for v in variants]
    assert set(table) == {*names, "cer_own", "cer_others", "best_epoch", "minutes", "precision", "weights"}
    held = [(given - 1, 1, replay) for given, _, replay in variants[1:]]  # of the lines given, one of a few is held out
    assert [counts for counts, _ in trained] == held
    assert [settings.frozen for _, settings in trained] == [frozen for _, frozen, _ in variants[1:]]
    assert table.cer_own.between(0, 9).all() and (table.best_epoch <= 1).all()

    table.drop(index=4).to_csv("personal.csv", index=False)
    again, trained = run("personal")
    assert len(again) == 6 and len(trained) == 1


def test_a_hand_is_learnt_from_more_and_more_lines_and_another_is_read_beside_it(run):
    table, trained = run("hand")
    assert list(zip(table.lines, table.seed, strict=True)) == [(0, 0), (2, 0), (9, 0), (2, 1), (2, 2)]
    rates = [f"{name}_{part}" for name in ("own", "iam") for part in ("rate", "low", "high")]
    assert set(table) == {"lines", "seed", "minutes", "precision", "weights", *rates}
    assert [settings.epochs for _, settings in trained] == [4, 1, 4, 4]
    assert all(len(texts) == count for (texts, _), count in zip(trained, table.lines[1:], strict=True))
    assert (table.own_low <= table.own_rate).all() and (table.own_rate <= table.own_high).all()
