"""The benchmark: what it measures and how it reports; no test times anything against a limit."""

import functools
import importlib.util
import json

import pytest
import torch
from PIL import Image

from hwrlib.scripts import bench
from hwrlib.tests.conftest import encoded, strokes

pytestmark = pytest.mark.usefixtures("one_thread")


ROWS = [{"image": encoded(strokes(width)), "text": text} for width, text in ((90, "a b"), (120, "c # d"), (80, "to"))]


def test_the_reference_prepares_reads_and_learns():
    side = bench.Reference(ROWS, "cpu")
    line = side.prepare(ROWS[0]["image"])
    assert line.shape == (1, 128, 360) and line.dtype == torch.float32
    assert line.min() == pytest.approx(-1, abs=0.1) and line.max() == 1
    before = side.model.fc.weight.detach().clone()
    side.train()
    assert not torch.equal(before, side.model.fc.weight)


def test_the_command_prints_all_tables_with_and_without_onnx(monkeypatch, tmp_path, capsys):
    for k, row in enumerate(ROWS):
        (tmp_path / f"{k}.png").write_bytes(row["image"])
    rows = "".join(f"{k}.png,{row['text']}\n" for k, row in enumerate(ROWS))
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{rows}")
    Image.open(bench.PAGE).crop((0, 0, 1200, 150)).save(tmp_path / "page.png")
    monkeypatch.setattr(bench, "PAGE", tmp_path / "page.png")
    monkeypatch.setattr(bench, "in_turn", functools.partial(bench.in_turn, rounds=1))
    bench.main(["--source", str(tmp_path), "--lines", "2"])
    tables = json.loads(capsys.readouterr().out)
    sides = ("reference", "recipe, width / 1", "recipe, width / 2.5")
    assert [row["side"] for row in tables["programs"]] == [side for side in sides for _ in ("train", "read")]
    assert all(row["ratio"] == 1 for row in tables["programs"] if row["side"] == "reference")
    assert all(row["lines_per_second"] > 0 and row["share"] > 0 for row in tables["programs"])
    names = [row["engine"] for row in tables["engines"]]
    assert names[:2] == ["torch, batch norm apart", "torch as hwrlib reads, fp32"]
    assert ("ONNX Runtime" in names) == all(map(importlib.util.find_spec, ("onnx", "onnxruntime")))
    assert tables["engines"][0]["ratio"] == 1
    assert tables["machine"]["lines"] == 2 and tables["machine"]["page, lines"] == 1
