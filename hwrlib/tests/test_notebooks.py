"""The chapters as committed: run from top to bottom, whole, light, and linked."""

import ast
import csv
import json
import os
import re
import sys
import types
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from hwrlib import WEIGHTS
from hwrlib.model import weights_version

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.name for path in NOTEBOOKS]
RECORDED = {"results": ("all", "grey", "bin"), "results_beam": ("all",), "results_language": ("all", "grey", "bin")}


def source(cell):
    return "".join(cell["source"])


BOOTSTRAP = source(json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))["cells"][1])
REPOSITORY = re.search(r'^REPOSITORY = "([\w.-]+/[\w.-]+)"$', BOOTSTRAP, re.M)[1]
ON_COLAB = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.fixture
def code(cells):
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_every_code_cell_was_run_once_in_order_none_failed_or_warned_and_charts_have_a_text(code):
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert set(cell["metadata"].get("tags", [])) <= {"nbval-ignore-output"}, source(cell)
        for output in cell["outputs"]:
            assert output["output_type"] != "error", source(cell)
            assert output.get("name") != "stderr", "".join(output["text"])
            if "image/png" in output.get("data", {}):
                assert output["metadata"]["image/png"]["alt"], source(cell)


def test_it_begins_with_a_badge_and_the_bootstrap_ends_with_exercises_and_its_links_lead_to_chapters(path, cells):
    assert [cell["cell_type"] for cell in cells[:2]] == ["markdown", "code"]
    first = source(cells[0])
    assert first.startswith("# ") and "https://colab.research.google.com/assets/colab-badge.svg" in first
    assert re.search(re.escape(ON_COLAB + path.name) + '[)"]', first)
    assert source(cells[1]) == BOOTSTRAP and 'os.environ.get("HWR_DATA"' in BOOTSTRAP
    assert "exercise" in "\n".join(source(cell) for cell in cells[-2:]).lower()
    assert path.name == NAMES[-1] or NAMES[NAMES.index(path.name) + 1] in source(cells[-1])
    assert set(re.findall(r"\b(\d\d_\w+\.ipynb)\b", "\n".join(map(source, cells)))) <= set(NAMES)
    text = path.read_text(encoding="utf-8")
    outputs = [cell.get("outputs") for cell in cells]
    assert len(text.encode()) < 400_000 and "widget" not in json.dumps([json.loads(text)["metadata"], outputs])
    assert text.count(REPOSITORY) == 2  # in the badge and in the bootstrap, for one sed to change


def test_chapters_are_numbered_and_readme_links_them_all_and_files_that_are_there():
    assert [name[:3] for name in NAMES] == [f"{k:02d}_" for k in range(1, 10)]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(https://colab[^)]*/blob/main/notebooks/([^)]+)\)", readme)) == set(NAMES)
    assert readme.count(ON_COLAB) == len(NAMES)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", readme)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_and_the_model_card_have_the_recorded_results_of_the_shipped_weights():
    readme, card = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "hwrlib/weights/README.md"))
    recorded, brief = ROOT / "notebooks" / "recorded", []
    for name, parts in RECORDED.items():
        found = json.loads((recorded / f"{name}.json").read_text())
        assert found["weights"] == weights_version(WEIGHTS), name
        for part in parts:
            rates = [found[part][kind] for kind in ("cer", "wer")]
            cells = [f"{rate['rate']:.2%} ({rate['low']:.2%} to {rate['high']:.2%})" for rate in rates]
            row = f"| {' | '.join([str(found[part]['lines']), *cells])} |"
            assert row in readme and row in card, (name, part)
        if name != "results_beam":
            brief.append(" / ".join(f"{100 * found['all'][kind]['rate']:.2f}" for kind in ("cer", "wer")))
            assert all(f"{{type: {k}, value: {found['all'][k]['rate']:.4f}}}" in card for k in ("cer", "wer")), name
    assert f"| {'; '.join(brief)} |" in readme  # beside the results of others
    for row in csv.DictReader((recorded / "real.csv").open()):
        shown = f"| {row['files']} | {100 * float(row['cer']):.1f} % |"
        assert shown in readme and shown in card, row


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A folder as Colab opens it, with a script for git and one for python; a function that changes what one does."""
    (tmp_path / "content").mkdir()
    monkeypatch.chdir(tmp_path / "content")
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("HWR_DATA", raising=False)

    def does(name, script):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$(basename "$0") $*" >> {tmp_path}/calls\n{script}\n')
        (tmp_path / name).chmod(0o755)

    does("git", "mkdir -p handwriting-notebooks/notebooks handwriting-notebooks/hwrlib")
    does("python", "exit 0")
    return does


@pytest.mark.parametrize("name", ["git", "python"])
def test_a_bootstrap_that_fails_says_why_can_be_run_again_and_asks_for_no_password(colab, tmp_path, name):
    colab(name, 'echo "fatal: no host, prompt $GIT_TERMINAL_PROMPT" >&2\nexit 128')
    with pytest.raises(RuntimeError, match=r"(?s)fatal: no host, prompt 0.*Check the network"):
        exec(BOOTSTRAP, {})
    assert Path.cwd() == tmp_path / "content"
    colab(name, "mkdir -p handwriting-notebooks/notebooks")
    exec(BOOTSTRAP, {})
    assert Path.cwd().name == "notebooks"


COLAB_HAS = {"torch", "numpy", "pandas", "datasets", "matplotlib", "seaborn", "PIL", "cv2", "IPython", "ipywidgets"}


def imported(cell):
    """The packages, of neither Python nor this repository, that a cell imports."""
    nodes = list(ast.walk(ast.parse(source(cell))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "hwrlib", "google"}


def test_on_colab_each_chapter_is_set_up_twice_fetched_once_and_gets_what_it_imports(path, code, colab, tmp_path):
    home = tmp_path / "content" / "handwriting-notebooks"
    copy = f"cp -R {path} {ROOT / 'notebooks' / 'recorded'} notebooks && ln -s {ROOT / 'hwrlib'} hwrlib"
    colab("git", f"mkdir -p {home}/notebooks && cd {home} && {copy}")
    setup, names = [cell for cell in code if '"pip"' in source(cell)], {}
    for _ in range(2):
        for cell in setup:
            assert cell["metadata"]["cellView"] == "form" and source(cell).startswith("# @title ")
            exec(source(cell), names)
        assert (Path.cwd(), names["SOURCE"]) == (home / "notebooks", "iam") and Path(path.name).exists()
        assert PathFinder.find_spec("hwrlib", sys.path[:1]) and Path("recorded").is_dir()
    os.chdir(tmp_path / "content")  # as after a restart of the session
    exec(BOOTSTRAP, {})
    assert Path.cwd() == home / "notebooks" and source(setup[0]) == BOOTSTRAP
    calls = (tmp_path / "calls").read_text()
    assert calls.count("git clone") == 1 and f" https://github.com/{REPOSITORY} {home.name}\n" in calls
    installed = set(re.findall(r"([\w-]+)(?:\[\w+\])?>=", calls))
    assert ("ray" in installed) == (len(setup) == 2) == (path.name == NAMES[-1])
    assert set().union(*map(imported, code)) <= COLAB_HAS | installed
