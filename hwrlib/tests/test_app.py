"""The app without a browser: what its widgets hold after what a browser sends."""

import base64
import io
import json
import re
import sys
import threading
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from hwrlib.app import app as module
from hwrlib.app import teaching
from hwrlib.app.app import ReadingApp
from hwrlib.app.corrections import remove_line, save_line
from hwrlib.app.widgets import DrawingPad, Pictures, ReadingView, strokes_to_line
from hwrlib.beam import PrefixBeam
from hwrlib.data import load_lines
from hwrlib.images import load_page, prepare_pixels
from hwrlib.model import CRNN
from hwrlib.page.lines import find_lines
from hwrlib.recognizer import Recognizer
from hwrlib.tests.conftest import encoded, untrained

HELLO = [[0, 0, 0, 100], [0, 60, 30, 50, 40, 100], [60, 75, 90, 70, 75, 50, 60, 75, 85, 100], [110, 0, 112, 100]]
HELLO += [[140, 98]]
CHAPTERS = Path(module.__file__).parents[2] / "notebooks"
VIEW = "application/vnd.jupyter.widget-view+json"


def scribble(height, width):
    page = np.full((height, width), 240, np.uint8)
    for top in range(height // 8, height - 40, 90):
        for x in range(40, width - 60, 23):
            page[top : top + 36, x : x + 4] = 30
    return page


LINE, PAGE = encoded(scribble(100, 900)), encoded(scribble(500, 900))


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer(untrained(width_divisor=8.0), "fp32", PrefixBeam(width=4))


@pytest.fixture
def app(recognizer, tmp_path, monkeypatch):
    monkeypatch.delenv("SERVER_SOFTWARE", raising=False)
    monkeypatch.setattr("hwrlib.recognizer.SURE", 0.0)  # what an untrained network reads is never sure: turn no page
    app = ReadingApp(lambda: recognizer, tmp_path / "kept" / "my_lines")
    wait(app)
    return app


def wait(app):
    for thread in (app._reader, app._teacher) * 2:  # a job may add one
        thread.submit(int).result()


def send(widget, kind, *buffers, **message):
    data = {"method": "custom", "content": {"kind": kind, **message}}
    widget.comm.handle_msg({"content": {"data": data}, "buffers": list(buffers)})


def tell(app, kind, *buffers, **message):
    """What arrives when the browser sends a message, and all that follows from it."""
    widget = app.pictures if kind in ("picture", "refused", "sample", "again", "pad") else app.view
    send(widget, kind, *buffers, **message)
    wait(app)


def give(app, name, content):
    tell(app, "picture", memoryview(content), name=name)


def write(app, strokes, rows=None):
    app.pad.set_state({"strokes": strokes, "rows": rows or [0] * len(strokes)})
    wait(app)


def keep(app, *texts, late=0):
    tell(app, "keep", number=app.view.number - late, lines=[[k, text] for k, text in enumerate(texts)])


def texts(app):
    return [line["text"] for line in app.view.lines]


def kept(app):
    return load_lines("train", app.folder)["text"][:]


def test_strokes_become_a_line_wherever_and_however_large_one_writes():
    line = strokes_to_line(HELLO)
    assert line.shape[0] == 128 < line.shape[1] and line.max() == 255 > 60 > line.min()
    moved = [[3 * v + (500 if k % 2 == 0 else 20) for k, v in enumerate(stroke)] for stroke in HELLO]
    assert np.abs(strokes_to_line(moved).astype(int) - line).mean() < 1
    for smallest in ([5, 5], [5, 5, 5, 90], [0, 0, 300, 0]):
        assert prepare_pixels(strokes_to_line([smallest])).min() < 100


def test_each_widget_carries_its_front_end_which_calls_nobody_and_writes_no_html():
    foreign = r"(innerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|XMLHttpRequest|import\(|http)"
    for widget in (DrawingPad, Pictures, ReadingView):
        code, style = (widget().get_state()[name] for name in ("_esm", "_css"))
        assert "export default { render }" in code and "--paper" in style and "url(" not in style
        assert not re.findall(foreign, code.replace("http://www.w3.org/2000/svg", ""))


def test_the_app_tells_colab_where_its_widgets_come_from_and_others_show_its_picture(app, tmp_path, monkeypatch):
    assert DisplayFormatter().format(app)[1] == {}  # as IPython does it with the last value of a cell
    (tmp_path / "app.png").write_bytes(LINE)
    app.poster = tmp_path / "app.png"
    bundle, metadata = DisplayFormatter().format(app)
    assert (bundle[VIEW]["model_id"], base64.b64decode(bundle["image/png"])) == (app.model_id, LINE)
    assert "sample page" in metadata["image/png"]["alt"]
    output = types.ModuleType("google.colab.output")  # what anywidget asks for
    output.enable_custom_widget_manager = lambda: None
    output._widgets = types.SimpleNamespace(_installed_url="https://ssl.gstatic.com/manager.js")
    monkeypatch.setitem(sys.modules, "google.colab.output", output)
    colab = {"custom_widget_manager": {"url": "https://ssl.gstatic.com/manager.js"}}
    assert DisplayFormatter().format(app) == (bundle, metadata | {VIEW: {"colab": colab}})


def test_the_committed_chapter_shows_the_picture():
    chapter = json.loads((CHAPTERS / "07_read_your_handwriting.ipynb").read_text(encoding="utf-8"))
    (output,) = next(cell["outputs"] for cell in chapter["cells"] if "poster=" in "".join(cell["source"]))
    picture = CHAPTERS.parent / "charts" / "07_read_your_handwriting" / "app.png"
    assert base64.b64decode(output["data"]["image/png"]) == picture.read_bytes()


def test_the_pad_is_there_before_the_network_which_is_loaded_again_where_it_could_not_be(recognizer, tmp_path):
    arrived, broken = threading.Event(), [FileNotFoundError("weights: no such file")]

    def load():
        arrived.wait(60)
        if broken:
            raise broken.pop()
        return recognizer

    app = ReadingApp(load, tmp_path)
    assert app.view.status == module.LOADING
    arrived.set()
    wait(app)
    assert app.view.error == "the network: weights: no such file"
    write(app, HELLO)
    assert (app.view.error, texts(app)) == ("", [recognizer.read(strokes_to_line(HELLO)).text])


def test_what_is_written_is_read_and_clearing_clears(app, recognizer):
    assert (app.view.status, texts(app), app.view.busy) == (module.READY, [], False)
    write(app, HELLO)
    reading = recognizer.read(strokes_to_line(HELLO))
    assert texts(app) == [reading.text]
    (line,) = json.loads(json.dumps(app.view.lines))
    assert [c[0] for c in line["characters"]] == list(reading.text) and reading.text not in line["alternatives"]
    assert max(c[3] for c in line["characters"]) <= app.view.size[0]
    shown = np.asarray(Image.open(io.BytesIO(app.view.picture)))
    assert (shown == prepare_pixels(strokes_to_line(HELLO), width_divisor=8.0)).all()
    below = [[v + 200 * (k % 2) for k, v in enumerate(stroke)] for stroke in HELLO]
    write(app, HELLO + below, [0] * 5 + [1] * 5)
    assert texts(app) == [reading.text] * 2
    write(app, [])
    assert (texts(app), app.view.picture, app.view.status) == ([], b"", module.READY)
    write(app, [[1, 2, 3]])
    assert "stroke 0" in app.view.error and not app.view.busy


def test_a_page_comes_line_by_line_all_boxes_first_until_it_is_stopped_or_another_comes(app, recognizer, monkeypatch):
    seen, read, found = [], recognizer.read_prepared, find_lines(scribble(500, 900))
    app.view.observe(lambda change: seen.append((len(app.view.boxes), len(change["new"]))), "lines")
    give(app, "page.png", PAGE)
    assert app.view.boxes == [list(line.box) for line in found]
    assert seen == [(len(found), k) for k in range(1, len(found) + 1)]
    assert texts(app) == [reading.text for reading in recognizer.read_page(scribble(500, 900))]
    assert (app.view.mode, app.pictures.shown, app.pad.layout.display) == ("page", True, "none")
    assert app.view.status.startswith("Read page.png.")

    def read_meanwhile(*arguments, **above):
        if meanwhile:
            meanwhile.pop()()
            assert (texts(app), len(app.view.boxes)) == ([], len(found) if app.view.mode == "page" else 0)
        return read(*arguments, **above)

    monkeypatch.setattr(recognizer, "read_prepared", read_meanwhile)
    meanwhile = [lambda: send(app.view, "stop")]
    give(app, "page.png", PAGE)
    assert app.view.status == f"Stopped: 1 of {len(found)} lines of page.png were read."
    assert (len(app.view.boxes), len(texts(app)), app.view.busy) == (len(found), 1, False)
    meanwhile = [lambda: app.show(LINE, "line.png")]
    give(app, "page.png", PAGE)
    assert app.view.status.startswith("Read line.png.")
    assert (len(texts(app)), app.view.busy) == (1, False)


def test_a_picture_is_a_line_or_a_page_as_one_says_is_rotated_and_leaves_the_pad_as_it_was(app):
    give(app, "line.png", encoded(np.pad(scribble(100, 900), ((80, 120), (0, 0)), constant_values=240)))
    assert (app.view.mode, len(app.view.lines)) == ("lines", 1)
    wide = np.pad(scribble(300, 900), ((0, 0), (0, 700)), constant_values=240)
    give(app, "wide.png", encoded(wide))
    tell(app, "again", **{"as": "page"})
    count = len(app.view.lines)
    tell(app, "again", **{"as": "line"})
    assert (count, len(app.view.lines)) == (len(find_lines(wide)), 1)
    give(app, "page.png", encoded(np.ascontiguousarray(np.rot90(scribble(200, 260)))))
    tell(app, "again", turn=1, **{"as": ""})
    assert app.view.size == [260, 200] and "turned by 90°" in app.view.status
    found = find_lines(scribble(200, 260))
    assert app.view.boxes == [list(line.box) for line in found]
    for _ in range(2):  # before either is read
        send(app.pictures, "again", turn=2, **{"as": ""})
    wait(app)
    assert app.view.size == [260, 200] and "turned by 90°" in app.view.status
    keep(app, "a line")
    (file,) = app.folder.glob("*.png")
    assert (load_page(file) == found[0].image).all()
    write(app, HELLO)
    before = texts(app)
    tell(app, "sample", of="line")
    assert app.view.status.startswith("Read the sample line (synthetic).")
    tell(app, "pad")
    assert texts(app) == before and (app.pictures.shown, app.pad.layout.display) == (False, None)


def test_a_picture_that_cannot_be_read_says_why_and_the_next_one_is_read(app):
    cases = {b"no image": "no image that can be read", b"": "empty", b"%PDF-1.4": "PDF"}
    cases |= {b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "PostScript", LINE[:-200]: "damaged"}
    cases |= {encoded(np.full((500, 500), 255, np.uint8)): "no writing"}
    for content, why in cases.items():
        give(app, "<i>\ud83d.png", content)
        assert app.view.error.startswith("<i>?.png: ") and why in app.view.error
        assert (texts(app), app.view.status, app.view.busy) == ([], "", False)
    give(app, "line.png", LINE)
    assert (app.view.error, len(app.view.lines)) == ("", 1)
    tell(app, "refused", name="x.jpg", why="it has 110 megapixels")
    assert (app.view.error, len(app.view.lines)) == ("x.jpg: it has 110 megapixels", 1)


def test_lines_are_kept_counted_downloaded_and_taken_back_as_they_were_kept(app, monkeypatch):
    sent = []
    monkeypatch.setattr(app.view, "send", lambda message, buffers=None: sent.append((message, buffers)))
    tell(app, "zip")
    assert "no line has been kept" in app.view.error
    write(app, HELLO)
    keep(app, 'hello, "you"')
    tell(app, "zip")
    ((message, (data,)),) = [(message, buffers) for message, buffers in sent if message["kind"] == "zip"]
    assert message["name"] == "my_lines.zip" and "metadata.jsonl" in zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert (np.asarray(load_lines("train", app.folder)["image"][0]) == strokes_to_line(HELLO)).all()
    keep(app, "again")  # a second click
    assert (app.view.kept, app.view.undoable, app.view.lines[0]["kept"]) == (1, True, True)
    write(app, [*HELLO, [9, 200, 9, 290]], [0] * 5 + [1])  # all that is on the pad is read again
    assert [line["kept"] for line in app.view.lines] == [True, False] and texts(app)[0] == 'hello, "you"'
    give(app, "page.png", PAGE)
    keep(app, "too late", late=1)  # an answer to an older reading
    keep(app, "first", " ", "Größe")
    assert kept(app) == ['hello, "you"', "first", "Größe"]
    assert [line["kept"] for line in app.view.lines][:3] == [True, False, True]
    assert "is empty" in app.view.lines[1]["said"] and "cannot write ßö" in app.view.lines[2]["said"]
    tell(app, "undo")
    assert kept(app) == ['hello, "you"'] and not any(line["kept"] for line in app.view.lines)
    tell(app, "undo")
    assert (app.view.kept, app.view.undoable, app.view.error) == (0, False, "")
    assert not list(app.folder.glob("*.png"))


def test_under_voila_each_visitor_has_a_folder_which_no_name_leads_out_of(app, recognizer, tmp_path, monkeypatch):
    tell(app, "visitor", name="0" * 32)
    assert app.folder == tmp_path / "kept" / "my_lines"  # in a notebook nobody visits
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5")
    for name in ("0123456789abcdef" * 2, "f" * 32):
        for before in (0, 1):
            app = ReadingApp(lambda: recognizer, tmp_path / "lines")
            assert app.folder.parent == tmp_path / "lines"  # also before it is known who comes
            tell(app, "visitor", name=name)
            tell(app, "visitor", name="../../elsewhere")
            assert app.view.kept == before
            write(app, HELLO)
            keep(app, f"of {name[:2]}")
        assert app.folder == tmp_path / "lines" / name and kept(app) == [f"of {name[:2]}"] * 2
        assert str(tmp_path) not in app.view.place


class Taught:
    """Stands in for a trainer: what a run leaves where the error rates were these, before it and after each epoch."""

    def __init__(self, model, rows, held_out, folder, settings, replay_rows, on_step):
        assert (len(rows), len(held_out), settings.epochs) == (4, 1, teaching.PRESETS["personal"].epochs)
        assert len(replay_rows) > 100
        self.model, self.folder, self.on_step = model, folder, on_step

    def run(self, bar):
        self.history = [{"cer": rate} for rate in self.rates]
        assert [self.on_step(done, 3) for done in (1, 2, 3)] == [False] * 3
        self.model.save_pretrained(Path(self.folder) / "best")


def test_teaching_says_what_it_brought_and_changes_nothing_where_it_is_stopped_or_has_too_few_lines(app, monkeypatch):
    """With six kept lines, of which five can be learnt."""
    app.recognizer = before = Recognizer(untrained(width_divisor=3.0), "fp32", PrefixBeam(width=4))
    weights, shown, network = before.model.fc.weight.clone(), [], app.folder.parent / "my_lines_network"
    for text in ("one", "two", "three", "four", "five", "Größe"):
        save_line(app.folder, scribble(100, 900), text)

    def stop(change):
        if change["new"].get("total"):  # the first step is done
            send(app.view, "stop teaching")

    app.view.observe(stop, "teaching")
    tell(app, "teach")
    assert app.view.teaching == {"running": False, "says": "Stopped. The network has not changed."}
    assert app.recognizer is before and torch.equal(before.model.fc.weight, weights)
    app.view.unobserve(stop, "teaching")
    app.view.observe(lambda change: shown.append(change["new"].get("done")), "teaching")
    monkeypatch.setattr(teaching, "make_trainer", Taught)
    monkeypatch.setattr(Taught, "rates", [0.5, 0.5, 0.75], raising=False)
    tell(app, "teach")
    assert "50.0% before, 50.0% after learning from 4 others. No round was better" in app.view.teaching["says"]
    assert (app.recognizer is before, network.exists()) == (True, False)
    monkeypatch.setattr(Taught, "rates", [0.5, 0.25, 0.75])
    tell(app, "teach")
    says = app.view.teaching["says"]
    assert says.startswith("Wrong characters (CER) on 1 held-out line: 50.0% before, 25.0% after")
    assert "uses the new weights. Left out: 'Größe': " in says
    assert shown == [None, 1, 2, 3, None] * 2
    assert (app.recognizer is before, app.recognizer.decoder is before.decoder) == (False, True)
    assert (CRNN.from_pretrained(network).fc.weight == before.model.fc.weight).all()
    for file in list(app.folder.glob("*.png"))[1:]:
        remove_line(file)
    tell(app, "teach")
    assert "of 1 kept lines can be learnt from; keep at least 5" in app.view.error
    assert not app.view.teaching["running"]
