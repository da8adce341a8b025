"""Charts are saved, shown with a text, and closed."""

import os
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from hwrlib import charts


@pytest.fixture
def shown(monkeypatch):
    calls = []
    monkeypatch.setattr(charts, "display", lambda *arguments, **options: calls.append((arguments, options)))
    return calls


def test_show_saves_at_150_dpi_and_displays_with_alt_text(tmp_path, monkeypatch, shown):
    monkeypatch.setenv("HWR_CHARTS", str(tmp_path / "new"))
    charts.style()
    fig, axis = plt.subplots(figsize=(4, 2))
    axis.plot([1, 2])
    charts.show(fig, "09_chapter/line", "A rising line")
    with Image.open(tmp_path / "new" / "09_chapter" / "line.png") as image:
        assert image.size == (600, 300)
        assert "Software" not in image.info
    ((data,), options) = shown[0]
    assert options["raw"]
    assert options["metadata"]["image/png"]["alt"] == data["text/plain"] == "A rising line"
    assert not plt.fignum_exists(fig.number)


def test_the_same_figure_gives_the_same_bytes(tmp_path, monkeypatch, shown):
    monkeypatch.setenv("HWR_CHARTS", str(tmp_path))
    for name in ("first", "second"):
        fig, axis = plt.subplots()
        axis.plot([3, 1, 2])
        charts.show(fig, name, "A zigzag")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert shown[0][0][0]["image/png"] == shown[1][0][0]["image/png"]


def test_without_the_variable_charts_go_where_git_ignores_them():
    told = subprocess.run(["git", "check-ignore", "-q", charts.FOLDER], cwd=Path(charts.__file__).parent)
    assert told.returncode == 0


def test_under_pytest_they_go_to_a_temporary_folder():
    folder = Path(os.environ["HWR_CHARTS"])
    assert folder.is_dir()
    assert charts.FOLDER not in (folder, *folder.parents)
    assert os.environ["HWR_DATA"] == "sample"
    told = subprocess.run(["printenv", "HWR_CHARTS"], capture_output=True, text=True, check=True)  # as a kernel is told
    assert told.stdout.strip() == str(folder)
