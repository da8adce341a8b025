"""The chapters as committed: run from top to bottom, whole, light, and linked."""

import json
import os
import re
import sys
import types
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CHAPTERS = 9
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


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


def test_chapters_are_numbered_from_one_without_a_gap():
    assert [path.stem[:3] for path in NOTEBOOKS] == [f"{k:02d}_" for k in range(1, len(NOTEBOOKS) + 1)]
    assert 4 <= len(NOTEBOOKS) <= CHAPTERS


def test_every_code_cell_was_run_once_in_order(code):
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))


def test_no_cell_failed_or_warned(code):
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error", source(cell)
            assert output.get("name") != "stderr", "".join(output["text"])


def test_it_is_light(path):
    assert path.stat().st_size < 400_000


def test_it_begins_with_title_and_badge_of_its_own(path, cells):
    first = source(cells[0])
    assert cells[0]["cell_type"] == "markdown"
    assert first.startswith("# ")
    assert BADGE in first
    assert f"{ON_COLAB}{path.name})" in first or f'{ON_COLAB}{path.name}"' in first


def test_the_second_cell_is_the_same_bootstrap_in_all(cells):
    assert cells[1]["cell_type"] == "code"
    assert source(cells[1]) == BOOTSTRAP
    assert 'os.environ.get("HWR_DATA"' in BOOTSTRAP


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A folder as Colab opens it, with scripts for git and python; a function that changes what one of them does."""
    commands, content = tmp_path / "commands", tmp_path / "content"
    commands.mkdir()
    content.mkdir()
    monkeypatch.chdir(content)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(commands / "python"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("HWR_DATA", raising=False)

    def does(name, script):
        (commands / name).write_text(f'#!/bin/sh\necho "$(basename "$0") $*" >> {tmp_path}/calls\n{script}\n')
        (commands / name).chmod(0o755)

    does("git", "mkdir -p handwriting-notebooks/notebooks handwriting-notebooks/hwrlib")
    does("python", "exit 0")
    return does


def test_on_colab_the_bootstrap_fetches_the_repository_once(colab, tmp_path):
    names = {}
    exec(BOOTSTRAP, names)
    home = tmp_path / "content" / "handwriting-notebooks"
    clone, install = (tmp_path / "calls").read_text().splitlines()
    assert clone.startswith("git clone ") and clone.endswith(f" https://github.com/{REPOSITORY} {home.name}")
    assert install.startswith("python -m pip install ") and install.endswith(f" -r {home.name}/requirements.txt")
    assert Path.cwd() == home / "notebooks"
    assert sys.path[0] == str(home)
    assert names["SOURCE"] == "iam"
    exec(BOOTSTRAP, {})  # run again: nothing more is called
    assert Path.cwd() == home / "notebooks"
    assert len((tmp_path / "calls").read_text().splitlines()) == 2
    os.chdir(tmp_path / "content")  # as after a restart of the session
    exec(BOOTSTRAP, {})
    assert Path.cwd() == home / "notebooks"
    assert [call.split()[0] for call in (tmp_path / "calls").read_text().splitlines()] == ["git", "python", "python"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("git", "fatal: Could not resolve host: github.com"),
        ("git", "fatal: could not read Username for 'https://github.com': terminal prompts disabled"),
        ("python", "ERROR: No matching distribution found for torch"),
    ],
)
def test_a_bootstrap_that_fails_says_what_is_wrong_and_what_to_do(colab, tmp_path, name, says):
    colab(name, f'echo "{says}" >&2\nexit 128')
    with pytest.raises(RuntimeError) as error:
        exec(BOOTSTRAP, {})
    assert says in str(error.value)
    assert "Check the network" in str(error.value)
    assert name == "python" or f"https://github.com/{REPOSITORY}" in str(error.value)
    assert Path.cwd() == tmp_path / "content"  # so that the cell can be run again
    colab(name, "mkdir -p handwriting-notebooks/notebooks")
    exec(BOOTSTRAP, {})
    assert Path.cwd().name == "notebooks"


def test_git_asks_for_no_password(colab, tmp_path):
    colab("git", f'echo "$GIT_TERMINAL_PROMPT" > {tmp_path}/prompt; exit 1')
    with pytest.raises(RuntimeError):
        exec(BOOTSTRAP, {})
    assert (tmp_path / "prompt").read_text() == "0\n"


def test_it_ends_with_exercises_and_the_next_chapter(path, cells):
    last = source(cells[-1])
    assert cells[-1]["cell_type"] == "markdown"
    assert "exercise" in "\n".join(source(cell) for cell in cells[-2:]).lower()
    number = int(path.stem[:2])
    if number < CHAPTERS:
        assert re.search(rf"\b{number + 1:02d}_\w+\.ipynb\b", last)


def test_its_links_lead_to_chapters_that_exist_or_are_planned(cells):
    names = {path.name for path in NOTEBOOKS}
    for name in re.findall(r"\b(\d\d_\w+\.ipynb)\b", "\n".join(map(source, cells))):
        assert name in names or int(name[:2]) > len(names), name


def test_charts_are_shown_with_a_text(code):
    sources = [source(cell) for cell in code]
    # Functions of the chapter that end in show, or in one another.
    helpers = ["show"] + [name for text in sources if "show(" in text for name in re.findall(r"^def (\w+)", text, re.M)]
    helpers += [
        n for text in sources for n in re.findall(r"^def (\w+)", text, re.M) if any(f"{h}(" in text for h in helpers)
    ]
    for cell in code[1:]:
        text = source(cell).rstrip()
        assert not text.endswith(";"), text
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                assert any(f"{helper}(" in text for helper in helpers) or "poster=" in text, text
                assert output["metadata"]["image/png"]["alt"], text


def test_only_outputs_that_cannot_repeat_go_unchecked(code):
    for cell in code:
        assert set(cell["metadata"].get("tags", [])) <= {"nbval-ignore-output"}, source(cell)
