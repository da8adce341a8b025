"""What makes the shipped files: each script has its help; calibration, publishing, and what the package declares."""

import ast
import json
import runpy
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hwrlib.alphabet import Alphabet
from hwrlib.data import load_lines
from hwrlib.model import CRNN
from hwrlib.recognizer import WEIGHTS, calibrated
from hwrlib.scripts import average, calibration, language, publish

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "hwrlib" / "scripts").glob("[!_]*.py"))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_what_it_does(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(f"hwrlib.scripts.{name}", run_name="__main__")
    assert "usage: " in capsys.readouterr().out


def test_nothing_imports_scripts():
    for path in (ROOT / "hwrlib").rglob("*.py"):
        if not {"scripts", "tests"} & set(path.relative_to(ROOT).parts):
            assert "hwrlib.scripts" not in path.read_text(encoding="utf-8"), path


# Calibration


def test_calibration_finds_the_offset_and_slope_that_were_put_in():
    confidences = np.linspace(0.2, 0.99, 50)
    shares = np.array([calibrated(c, 0.5, 1.7) for c in confidences])
    assert calibration.calibrate(confidences, shares) == [0.5, 1.7]


def test_calibration_is_written_into_the_config_and_nothing_else_changes(tmp_path, capsys):
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    (tmp_path / "data").mkdir()
    load_lines("validation", "sample").select(range(4)).to_parquet(tmp_path / "data" / "validation.parquet")
    before = json.loads((tmp_path / "weights" / "config.json").read_text())
    weights = (tmp_path / "weights" / "model.safetensors").read_bytes()
    calibration.main([str(tmp_path / "data"), "--weights", str(tmp_path / "weights"), "--precision", "no"])
    model = CRNN.from_pretrained(tmp_path / "weights")
    assert list(model.calibration) == ["greedy", "beam", "language"]
    assert all(row.split()[0] in model.calibration for row in capsys.readouterr().out.splitlines())
    after = json.loads((tmp_path / "weights" / "config.json").read_text())
    assert {**after, "calibration": None} == {**before, "calibration": None}
    assert (tmp_path / "weights" / "model.safetensors").read_bytes() == weights
    assert model.calibration != before["calibration"]


def test_lines_that_are_all_read_alike_are_refused():
    with pytest.raises(ValueError, match="3 lines: too few"):
        calibration.calibrate(np.array([1e-6] * 3), np.array([0.1, 0.0, 0.1]))


# Publishing


@pytest.fixture
def copy(tmp_path):
    """README and the chapters, to be rewritten."""
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("recorded"))
    return tmp_path


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_publishing_rewrites_every_badge_and_bootstrap_and_nothing_else(copy):
    before = contents(copy)
    changed = publish.publish("ada/my.notes", copy)
    assert sorted(changed) == sorted(before)
    for path, old in before.items():
        rows = list(zip(old.decode().split("\n"), path.read_text(encoding="utf-8").split("\n"), strict=True))
        differing = [(a, b) for a, b in rows if a != b]
        assert all("ada/my.notes" in b for _, b in differing)
        assert len(differing) == 2 or path.name == "README.md"
    text = "".join(path.read_text(encoding="utf-8") for path in before)
    assert text.count("github.com/github") == 0
    assert text.count("github/ada/my.notes/blob") == text.count("/blob/main/notebooks/")
    assert publish.publish("ada/my.notes", copy) == []


def test_publishing_the_same_name_again_changes_no_byte(copy):
    publish.publish("ada/notes", copy)
    once = contents(copy)
    publish.publish("grace/other", copy)
    assert contents(copy) != once
    publish.publish("ada/notes", copy)
    assert contents(copy) == once


def test_the_committed_chapters_all_lead_to_one_repository(copy):
    name = publish.re.search(publish.BADGE, (copy / "README.md").read_text())[0].partition(".com/github/")[2]
    assert publish.publish(name, copy) == []


BAD_NAMES = [
    "notes",
    "ada/",
    "/notes",
    "-ada/notes",
    "ada-/notes",
    "a--da/notes",
    "a" * 40 + "/notes",
    "ada/notes/more",
]
BAD_NAMES += ["ada/..", "ada/notes.git", "ada/no tes", "ada/notes\n", 'ada/"', "https://github.com/ada/notes"]
BAD_NAMES += ["a_da/notes", "ada/" + "n" * 101, "adá/notes"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_github_does_not_allow_is_refused(name, copy, capsys):
    before = contents(copy)
    with pytest.raises(ValueError, match="OWNER/NAME"):
        publish.publish(name, copy)
    assert contents(copy) == before
    with pytest.raises(SystemExit, match="2"):
        publish.main(["--", name])


def test_a_chapter_without_its_badge_is_named_and_nothing_is_written(copy):
    path = sorted((copy / "notebooks").glob("*.ipynb"))[-1]
    path.write_text(path.read_text(encoding="utf-8").replace("/blob/", "/tree/"), encoding="utf-8")
    before = contents(copy)
    with pytest.raises(ValueError, match=f"{path.name}: no badge"):
        publish.publish("ada/notes", copy)
    assert contents(copy) == before


# The package


@pytest.fixture(scope="module")
def declared():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_requirements_are_the_dependencies_with_those_of_app_archive_and_test(declared):
    rows = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    extras = declared["project"]["optional-dependencies"]
    server = ("voila", "tornado")  # a notebook needs no server of its own
    widgets = [row for row in extras["app"] if not row.startswith(server)]
    expected = declared["project"]["dependencies"] + widgets + extras["archive"] + extras["test"]
    assert [row for row in rows if not row.startswith("#")] == expected


def test_bounds_are_lower_ones_and_every_requirement_is_pinned(declared):
    extras = declared["project"]["optional-dependencies"]
    names = []
    for row in declared["project"]["dependencies"] + [row for extra in extras.values() for row in extra]:
        name, _, bound = row.partition(">=")
        assert bound and not set("<=,!~") & set(bound), row
        names.append(name.partition("[")[0].lower().replace("_", "-"))
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    assert [name for name in names if f"\n{name}==" not in pinned] == []


def test_what_the_module_imports_is_declared(declared):
    modules = {
        "PIL": "pillow",
        "cv2": "opencv-python-headless",
        "IPython": "ipython",
        "huggingface_hub": "huggingface_hub",
        "fpdf": "fpdf2",
    }
    extras = declared["project"]["optional-dependencies"]
    rows = declared["project"]["dependencies"] + extras["app"] + extras["archive"]
    names = {row.partition(">=")[0].partition("[")[0] for row in rows} | {"hwrlib"}
    optional = {"pillow_heif", "traitlets"}  # HEIC; with ipywidgets
    optional |= {"fontTools", "psutil", "onnxruntime", "openvino"}  # for scripts alone
    for path in (ROOT / "hwrlib").rglob("*.py"):
        if "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in {full.partition(".")[0] for full in found} - sys.stdlib_module_names - optional:
                assert modules.get(name, name) in names, f"{path}: {name}"


def test_the_package_holds_every_file_that_reading_needs(declared):
    tool = declared["tool"]["setuptools"]
    rooms = {path.parent for path in (ROOT / "hwrlib").rglob("*.py")} - {ROOT / "hwrlib" / "tests"}
    assert {str(room.relative_to(ROOT)).replace("/", ".") for room in rooms} == set(tool["packages"])
    held = set()
    for package, patterns in tool["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        held |= {path for pattern in patterns for path in folder.glob(pattern)}
    data = {path for path in (ROOT / "hwrlib").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    data = {path for path in data if ROOT / "hwrlib" / "tests" not in path.parents}
    assert held == data


def test_lines_of_the_brown_corpus(tmp_path):
    for group in "abcdefghijklmnopqr":
        for number in range(28):
            if len(list(tmp_path.iterdir())) < 500:
                (tmp_path / f"c{group}{number:02d}").write_text("", encoding="latin-1")
    (tmp_path / "ca00").write_text(
        "\n\t``/`` It/pps cost/vbd $5/nns ,/, ''/'' {/( half/abn //in Se\xf1or/nn --/-- yes/rb ./.\n", "latin-1"
    )
    lines = list(language.brown_lines(tmp_path))
    assert lines == ['" It cost', ', " ( half /', "- yes ."]
    (tmp_path / "ca01").unlink()
    with pytest.raises(FileNotFoundError, match="499 of the Brown corpus's 500 files"):
        next(language.brown_lines(tmp_path))


def test_the_average_of_two_networks_lies_between_them_and_loads(tmp_path):
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


def test_only_networks_of_one_kind_are_averaged():
    with pytest.raises(ValueError, match="2 networks of 2 kinds"):
        average.average([CRNN(Alphabet("ab"), 2.0), CRNN(Alphabet("ab"), 2.5)])
    with pytest.raises(ValueError, match="1 networks"):
        average.average([CRNN(Alphabet("ab"))])
