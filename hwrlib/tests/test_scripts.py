"""What makes the shipped files and what measures, timing nothing against a limit; and what the package declares."""

import ast
import functools
import importlib.util
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hwrlib import WEIGHTS
from hwrlib.alphabet import IAM, Alphabet
from hwrlib.data import load_lines
from hwrlib.language import CharNgram
from hwrlib.model import CRNN
from hwrlib.recognizer import calibrated
from hwrlib.scripts import average, bench, calibration, language, rerank, strokes, words
from hwrlib.tests import conftest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NEEDED, EXTRAS = PROJECT["project"]["dependencies"], PROJECT["project"]["optional-dependencies"]
FILES = [path for path in (ROOT / "hwrlib").rglob("*.py") if "tests" not in path.parts]
CODE = [path for path in FILES if "scripts" not in path.parts]


def test_calibration_finds_what_was_put_in_and_changes_nothing_else_in_the_config(tmp_path):
    confidences = np.linspace(0.2, 0.99, 50)
    shares = np.array([calibrated(c, 0.5, 1.7) for c in confidences])
    assert calibration.calibrate(confidences, shares) == [0.5, 1.7]
    with pytest.raises(ValueError, match="3 lines: too few"):
        calibration.calibrate(np.array([1e-6] * 3), np.array([0.1, 0.0, 0.1]))
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    (tmp_path / "data").mkdir()
    load_lines("validation", "sample").select(range(4)).to_parquet(tmp_path / "data" / "validation.parquet")
    calibration.main([str(tmp_path / "data"), "--weights", str(tmp_path / "weights"), "--precision", "fp32"])
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (WEIGHTS, tmp_path / "weights"))
    assert list(after["calibration"]) == ["greedy", "beam", "language"]
    assert after["calibration"] != before["calibration"]
    assert after | {"calibration": 0} == before | {"calibration": 0}
    assert CRNN.from_pretrained(tmp_path / "weights").calibration == after["calibration"]


def test_the_average_of_two_networks_lies_between_them_and_is_saved_in_float16(tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        CRNN(Alphabet("ab"), 2.0).save_pretrained(tmp_path / str(seed))
    average.main([str(tmp_path / "mean"), str(tmp_path / "0"), str(tmp_path / "1")])
    first, second, mean = (CRNN.from_pretrained(tmp_path / name).state_dict() for name in ("0", "1", "mean"))
    for name, tensor in mean.items():
        exact = (first[name].double() + second[name].double()) / 2
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-3, atol=1e-6)
    stored = load_file(tmp_path / "mean" / "model.safetensors")
    assert stored["cnn.4.weight"].dtype == torch.float16
    assert stored["cnn.0.weight"].dtype == stored["fc.bias"].dtype == torch.float32
    with pytest.raises(ValueError, match="cannot be averaged"):
        average.average([CRNN(Alphabet("ab"), 2.0), CRNN(Alphabet("ab"), 2.5)])


def test_lines_of_the_brown_corpus_and_pen_strokes_are_spaced_as_iams_but_for_those_of_held_out_texts(tmp_path):
    tagged = "\n\t``/`` It/pps cost/vbd $5/nns ,/, ''/'' {/( half/abn //in Se\xf1or/nn --/-- yes/rb ./.\n"
    (tmp_path / "ca00").write_text(tagged, "latin-1")
    assert list(language.brown_lines(tmp_path)) == ['" It cost', ', " ( half /', "- yes ."]
    pens = [[[0, 0, 10, 100], [50, 50, 320, 50]], [[0, 0, 0, 100]], [[0, 0, 500, 100]]]
    ids = ["a01-000u-01", "b02-001z-02", "c04-110z-03"]
    pd.DataFrame({"strokes": pens, "text": ["a, b~", "I", "no"], "line_id": ids}).to_parquet(tmp_path / "pens.parquet")
    strokes.main([str(tmp_path / "pens.parquet"), str(tmp_path / "lines.parquet")])
    lines = load_lines("train", tmp_path / "lines.parquet")
    assert lines["text"][:] == ["a , b", "I"]
    assert all(image.height == 128 <= image.width for image in lines["image"])
    language.main([str(tmp_path / "6.npz"), str(tmp_path / "pens.parquet"), "--brown", str(tmp_path)])
    prior = CharNgram.load(tmp_path / "6.npz").prior
    assert prior[IAM.encode("n")[0]] == prior.min() < prior[IAM.encode("b")[0]]  # an "n" is in the held-out text alone


def test_words_are_cut_where_the_gaps_leave_no_doubt(tmp_path):
    def written(*spans, width=400):
        line = np.full((128, width), 255, np.uint8)
        for begin, end in spans:
            line[40:90, begin:end] = 0
        return line

    cut = words.cut_words(written((20, 60), (66, 120), (180, 240), (246, 300)), "Well , sir .")
    assert [(word.shape, text) for word, text in cut] == [((128, 149), "Well ,"), ((128, 251), "sir .")]
    assert words.cut_words(written((20, 120), (180, 280), width=300), "I considered") == []  # pieces of a like width
    assert [word.shape for word, _ in words.cut_words(written((20, 60), width=90), "one")] == [(128, 128)]
    lines = load_lines("validation", "sample").select(range(8))
    lines.to_parquet(tmp_path / "train.parquet")
    words.main([str(tmp_path), str(tmp_path / "words.parquet")])
    texts = load_lines("train", tmp_path / "words.parquet")["text"][:]
    assert len(texts) > 8 and all(any(text in line for line in lines["text"][:]) for text in texts)


def test_the_changes_and_rates_of_the_reranker_are_counted():
    found = rerank.changes(["He saw Mary 12 times"], ["He saw Mary 12 tines"], ["He sow Mary 12 times"])
    counts = {kind: [*some.values()] for kind, some in found.items()}  # words, broken, mended
    assert counts == {"name": [1, 0, 0], "number": [1, 0, 0], "other": [3, 1, 1]}
    nbest = [(64, "aa", -1.0, 0.0, -9.0, -9.0), (64, "ab", -2.0, 0.0, -1.0, -1.0)]
    line = {"reference": "ab", "greedy": "aa", "once": "ab", "nbest": nbest}
    table = rerank.measure([line] * 3, np.array([[0.0, 1.0, 0.0]]))
    rates = table[table["lines"] == "all"].groupby("decoder")["cer_rate"].max().to_dict()
    assert rates == {"greedy": 0.5, "6-gram": 0.5, "6-gram, without views": 0, "reranked": 0, "best of 16": 0}


@pytest.mark.usefixtures("one_thread")
def test_the_benchmarks_reference_learns_and_its_command_prints_all_tables(monkeypatch, tmp_path, capsys):
    texts = {90: "a b", 120: "c # d", 80: "to"}
    rows = [{"image": conftest.encoded(conftest.strokes(width)), "text": text} for width, text in texts.items()]
    side = bench.Reference(rows, "cpu")
    line = side.prepare(rows[0]["image"])
    assert line.shape == (1, 128, 360) and line.dtype == torch.float32
    assert line.min() == pytest.approx(-1, abs=0.1) and line.max() == 1
    before = side.model.fc.weight.detach().clone()
    side.train()
    assert not torch.equal(before, side.model.fc.weight)
    for k, row in enumerate(rows):
        (tmp_path / f"{k}.png").write_bytes(row["image"])
    table = "".join(f"{k}.png,{row['text']}\n" for k, row in enumerate(rows))
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{table}")
    Image.open(bench.PAGE).crop((0, 0, 1200, 150)).save(tmp_path / "page.png")
    monkeypatch.setattr(bench, "PAGE", tmp_path / "page.png")
    monkeypatch.setattr(bench, "in_turn", functools.partial(bench.in_turn, rounds=1))
    bench.main(["--source", str(tmp_path), "--lines", "2"])
    tables = json.loads(capsys.readouterr().out)
    sides = ("reference", "recipe, width / 1", "recipe, width / 2.5")
    assert [row["side"] for row in tables["programs"]] == [side for side in sides for _ in ("train", "read")]
    assert all(row["lines_per_second"] > 0 and row["share"] > 0 for row in tables["programs"])
    names = [row["engine"] for row in tables["engines"]]
    assert names[:2] == ["torch, batch norm apart", "torch as hwrlib reads, fp32"]
    assert ("ONNX Runtime" in names) == all(map(importlib.util.find_spec, ("onnx", "onnxruntime")))
    assert tables["machine"]["lines"] == 2 and tables["machine"]["page, lines"] == 1


def test_requirements_are_the_dependencies_each_with_a_lower_bound_and_pinned():
    rows = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    widgets = [row for row in EXTRAS["app"] if not row.startswith(("voila", "tornado"))]  # a notebook needs no server
    assert [row for row in rows if not row.startswith("#")] == NEEDED + widgets + EXTRAS["archive"] + EXTRAS["test"]
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    for row in NEEDED + [row for extra in EXTRAS.values() for row in extra]:
        name, _, bound = row.partition(">=")
        assert bound and not set("<=,!~") & set(bound), row
        assert f"\n{name.partition('[')[0].lower().replace('_', '-')}==" in pinned, row


def imports(path):
    """The names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        yield from [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def test_what_the_module_imports_is_declared_and_not_what_windows_lacks_and_the_wheel_holds_no_script():
    for path in FILES:
        assert not {"fcntl", "grp", "pwd", "resource", "termios"} & {*imports(path)}, path
        assert not re.search(r"\bos\.(fork|getpgrp|killpg|mkfifo|sysconf|uname|wait4)\b", path.read_text("utf-8")), path
    modules = {"PIL": "pillow", "cv2": "opencv-python-headless", "IPython": "ipython", "fpdf": "fpdf2"}
    names = {row.partition(">=")[0].partition("[")[0] for row in NEEDED + EXTRAS["app"] + EXTRAS["archive"]}
    names |= {"hwrlib", "pillow_heif", "traitlets", "transformers", *sys.stdlib_module_names}  # come with or by choice
    for path in CODE:
        for name in imports(path):
            top = name.partition(".")[0]
            assert modules.get(top, top) in names and not name.startswith("hwrlib.scripts"), f"{path}: {name}"
    tool = PROJECT["tool"]["setuptools"]
    assert {".".join(path.parent.relative_to(ROOT).parts) for path in CODE} == set(tool["packages"])
    folders = {ROOT / package.replace(".", "/"): patterns for package, patterns in tool["package-data"].items()}
    held = {path for folder, patterns in folders.items() for pattern in patterns for path in folder.glob(pattern)}
    data = {path for path in (ROOT / "hwrlib").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert held == {path for path in data if ROOT / "hwrlib" / "tests" not in path.parents}
