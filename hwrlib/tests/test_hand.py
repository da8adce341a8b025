"""The table of what an archive's lines bring: every run starts alike, and a second call goes on."""

import datasets
import pandas as pd
import pytest
from PIL import Image

from hwrlib.alphabet import Alphabet
from hwrlib.files import DataError
from hwrlib.scripts import hand
from hwrlib.tests.conftest import strokes, untrained

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_hand_is_learnt_from_more_and_more_lines_and_another_is_read_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"image": Image.fromarray(strokes(90, seed=k)), "text": "iam \u2603"} for k in range(9)]
    for split, count in (("train", 9), ("validation", 4)):
        datasets.Dataset.from_list(rows[:count]).to_parquet(f"data/{split}.parquet")
    untrained(Alphabet(" aim"), 4.0).save_pretrained("weights")
    monkeypatch.setattr(hand, "weights_version", lambda source: "01234567")  # as a hash of digits alone may be
    monkeypatch.setattr(hand, "LEARNT", (2,))
    monkeypatch.setattr(hand, "VISITS", 9)
    command = ["hand.csv", "data", "data", "--weights", "weights", "--precision", "fp32"]
    hand.main(command)
    table = pd.read_csv("hand.csv", dtype={"weights": str})
    assert list(zip(table.lines, table.seed, strict=True)) == [(0, 0), (2, 0), (9, 0), (2, 1), (2, 2)]
    rates = [f"{name}_{part}" for name in ("own", "other") for part in ("rate", "low", "high")]
    assert set(table) == {"lines", "seed", "minutes", "precision", "weights", *rates}
    assert (table.own_low <= table.own_rate).all() and (table.own_rate <= table.own_high).all()

    kept = table.drop(index=2).assign(minutes=60.0)
    kept.to_csv("hand.csv", index=False)
    hand.main(command)
    again = pd.read_csv("hand.csv", dtype={"weights": str})
    assert again[:4].equals(kept.reset_index(drop=True)) and again.lines[4:].tolist() == [9]  # only that one is learnt
    table.assign(weights="others").to_csv("hand.csv", index=False)
    with pytest.raises(DataError, match="rows of other weights"):
        hand.main(command)
