"""Charts are saved, shown with a text and without bands, and closed."""

import io

import matplotlib.pyplot as plt
from PIL import Image

from hwrlib import charts


def test_a_figure_is_saved_and_shown_with_a_text_in_the_same_bytes_each_time(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(charts, "display", lambda data, **options: shown.append((data, options)))
    monkeypatch.setenv("HWR_CHARTS", str(tmp_path / "new"))
    charts.style()
    for name in ("09_chapter/line", "09_chapter/again"):
        fig, axis = plt.subplots(figsize=(4, 2))
        axis.plot([3, 1, 2])
        charts.show(fig, name, "A zigzag")
        assert not plt.fignum_exists(fig.number)
    first, second = ((tmp_path / "new" / "09_chapter" / f"{name}.png").read_bytes() for name in ("line", "again"))
    with Image.open(io.BytesIO(first)) as image:
        assert image.size == (600, 300) and "Software" not in image.info
    (data, options), (again, _) = shown
    assert options == {"raw": True, "metadata": {"image/png": {"alt": "A zigzag"}}} and data["text/plain"] == "A zigzag"
    assert first == second and data["image/png"] == again["image/png"]
    assert f"{charts.FOLDER.parent.name}/" in (charts.FOLDER.parents[1] / ".gitignore").read_text().split()
