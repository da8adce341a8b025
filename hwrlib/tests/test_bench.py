"""The benchmark: what it measures and how it reports; no test times anything against a limit."""

import functools
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from hwrlib.alphabet import REFERENCE
from hwrlib.model import CRNN
from hwrlib.scripts import bench


def png(width, height=40):
    pixels = np.full((height, width), 255, np.uint8)
    pixels[10:30, 5:-5:9] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


IMAGES, TEXTS = [png(90), png(120), png(80)], ["a b", "c # d", "to"]


def test_the_references_preparation():
    line = bench.Reference(IMAGES, TEXTS, "cpu").prepare(IMAGES[0])
    assert line.shape == (1, 128, 288) and line.dtype == torch.float32
    assert line.min() == pytest.approx(-1, abs=0.1) and line.max() == 1


def test_the_references_targets_lack_what_its_alphabet_lacks():
    labels = bench.Reference(IMAGES, TEXTS, "cpu").labels[1]
    assert REFERENCE.decode(labels.tolist()) == "c  d"


def test_the_references_pass_is_the_networks_where_nothing_is_padded():
    side = bench.Reference(IMAGES, TEXTS, "cpu")
    side.model.eval()
    line = side.prepare(IMAGES[0])[None]
    with torch.no_grad():
        assert torch.allclose(side.forward(line), side.model(line), atol=1e-4)


def test_both_sides_train_their_network_and_say_how_long():
    for side in (bench.Reference(IMAGES, TEXTS, "cpu"), bench.Ours(IMAGES, TEXTS, "cpu", "no", 1.5)):
        before = side.model.fc.weight.detach().clone()
        assert side.train() > 0
        assert not torch.equal(before, side.model.fc.weight)
        assert side.read() > 0


def test_every_engine_reads_the_same_lines_and_the_first_is_the_measure():
    table = bench.compare_engines(IMAGES, CRNN(width_divisor=2.0), rounds=1)
    assert list(table.columns) == ["engine", "seconds", "ratio", "same"]
    assert table.engine[:2].tolist() == ["torch, batch norm apart", "torch as hwrlib reads, float32"]
    assert (table.seconds > 0).all() and table.ratio[0] == 1 and table.same[0] == 1


def test_command_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "metadata.csv").write_text(
        "file_name,text\n" + "".join(f"{k}.png,{text}\n" for k, text in enumerate(TEXTS))
    )
    for k, image in enumerate(IMAGES):
        (tmp_path / f"{k}.png").write_bytes(image)
    Image.open(bench.PAGE).crop((0, 0, 1200, 180)).save(tmp_path / "page.png")
    monkeypatch.setattr(bench, "PAGE", tmp_path / "page.png")
    for name in ("read_a_page", "compare", "compare_engines"):
        monkeypatch.setattr(bench, name, functools.partial(getattr(bench, name), rounds=1))
    bench.main(["--source", str(tmp_path), "--lines", "2", "--json"])
    tables = json.loads(capsys.readouterr().out)
    rows = tables["programs"]
    assert [row["task"] for row in rows].count("train") == [row["task"] for row in rows].count("read") == 3
    assert {row["side"] for row in rows} == {"reference", "recipe, width / 1", "recipe, width / 2.5"}
    assert all(row["ratio"] == 1 for row in rows if row["side"] == "reference")
    assert all(row["lines_per_second"] > 0 and row["share"] > 0 for row in rows)
    assert tables["engines"][0]["ratio"] == 1
    assert tables["machine"]["lines"] == 2 and tables["machine"]["page, lines"] == 1


@pytest.mark.parametrize("lines", ["0", "-3", "many"])
def test_a_wrong_number_of_lines(lines, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--lines", lines])
    assert "--lines" in capsys.readouterr().err
