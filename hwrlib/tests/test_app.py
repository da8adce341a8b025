"""The app without a browser: what its widgets hold after what a browser sends."""

import base64
import io
import json
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hwrlib.alphabet import IAM
from hwrlib.app import app as module
from hwrlib.app import teaching
from hwrlib.app.app import ReadingApp
from hwrlib.app.widgets import DrawingPad, Pictures, ReadingView, strokes_to_line
from hwrlib.beam import PrefixBeam
from hwrlib.data import DataError, load_lines
from hwrlib.image_files import load_page
from hwrlib.images import prepare_pixels
from hwrlib.model import CRNN
from hwrlib.page.lines import find_lines
from hwrlib.recognizer import Recognizer

HELLO = [
    [0, 0, 0, 100],
    [0, 60, 30, 50, 40, 100],
    [60, 75, 90, 70, 75, 50, 60, 75, 85, 100],
    [110, 0, 112, 100],
    [140, 98],
]
CHAPTERS = Path(module.__file__).parents[2] / "notebooks"
ALONE = "0123456789abcdef" * 2  # a visitor's name


def png(pixels, **options):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", **options)
    return data.getvalue()


def scribble(height, width):
    """Paper with rows of strokes."""
    page = np.full((height, width), 240, np.uint8)
    for top in range(height // 8, height - 40, 90):
        for x in range(40, width - 60, 23):
            page[top : top + 36, x : x + 4] = 30
    return page


def untrained(width_divisor):
    """What is tested here is not what it reads."""
    torch.manual_seed(0)
    model = CRNN(IAM, width_divisor=width_divisor)
    with torch.no_grad():
        model(torch.rand(2, 1, 128, 64) * 2 - 1)
        model.fc.weight.mul_(20)
        model.fc.bias.zero_()
    return Recognizer(model, "no", PrefixBeam(width=4))


@pytest.fixture(scope="module")
def recognizer():
    return untrained(8.0)


@pytest.fixture
def app(recognizer, tmp_path, monkeypatch):
    monkeypatch.delenv("SERVER_SOFTWARE", raising=False)
    monkeypatch.setattr("hwrlib.recognizer.SURE", 0.0)  # what an untrained network reads is never sure: turn no page
    return ReadingApp(recognizer, tmp_path / "kept" / "my_lines")


def tell(app, kind, *buffers, **message):
    """What arrives when the browser sends a message, and all that follows from it."""
    widget = app.pictures if kind in ("picture", "refused", "sample", "again", "pad") else app.view
    widget._handle_custom_msg({"kind": kind, **message}, list(buffers))
    app.wait()


def give(app, name, content):
    tell(app, "picture", memoryview(content), name=name)


def write(app, strokes, rows=()):
    app.pad.set_state({"strokes": strokes, "rows": list(rows)})
    app.wait()


def keep(app, *texts, number=None):
    number = app.view.number if number is None else number
    tell(app, "keep", number=number, lines=[[k, text] for k, text in enumerate(texts)])


def texts(app):
    return [line["text"] for line in app.view.lines]


def kept(app):
    return load_lines("train", app.folder)["text"][:]


# The widgets


def test_strokes_become_a_line_and_always_the_same():
    line = strokes_to_line(HELLO)
    assert line.dtype == np.uint8
    assert line.shape[0] == 128 < line.shape[1]
    assert line.max() == 255 > 60 > line.min()
    assert (line == strokes_to_line(HELLO)).all()


def test_where_on_the_pad_and_how_large_one_writes_does_not_matter():
    moved = [[3 * v + (500 if k % 2 == 0 else 20) for k, v in enumerate(stroke)] for stroke in HELLO]
    assert np.abs(strokes_to_line(moved).astype(int) - strokes_to_line(HELLO)).mean() < 1


@pytest.mark.parametrize("strokes", [[[5, 5]], [[5, 5, 5, 90]], [[0, 0, 300, 0]]], ids=["dot", "bar", "dash"])
def test_the_smallest_drawings_can_be_prepared(strokes):
    assert prepare_pixels(strokes_to_line(strokes)).min() < 100


@pytest.mark.parametrize("strokes", [[], [[]], [[1, 2, 3]], [[float("nan"), 1]], [["a", "b"]]])
def test_bad_strokes_are_refused(strokes):
    with pytest.raises(ValueError, match="stroke"):
        strokes_to_line(strokes)


@pytest.mark.parametrize("widget", [DrawingPad, Pictures, ReadingView])
def test_each_widget_carries_its_front_end_which_calls_nobody_and_writes_no_html(widget):
    state = widget().get_state()
    assert "export default { render }" in state["_esm"]
    assert "--paper" in state["_css"]
    for word in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest", "import("):
        assert word not in state["_esm"]
    assert "http" not in state["_esm"].replace("http://www.w3.org/2000/svg", "")
    assert "url(" not in state["_css"]


# Reading


def test_a_new_app_is_ready_and_empty(app):
    assert app.view.status == module.READY
    assert app.view.lines == []
    assert not app.view.busy


def test_the_pad_is_there_before_the_network_and_its_writing_is_read_afterwards(recognizer, tmp_path):
    arrived = threading.Event()
    app = ReadingApp(lambda: arrived.wait(60) and recognizer, tmp_path)
    assert app.view.status == module.LOADING
    app.pad.set_state({"strokes": HELLO, "rows": [0] * 5})
    assert app.view.busy
    arrived.set()
    app.wait()
    assert texts(app) == [recognizer.read(strokes_to_line(HELLO)).text]


def test_a_network_that_cannot_be_loaded_is_said(tmp_path):
    def fail():
        raise FileNotFoundError("weights: no such file")

    app = ReadingApp(fail, tmp_path)
    app.wait()
    assert "weights: no such file" in app.view.error
    write(app, HELLO)
    assert "could not be loaded" in app.view.error


def test_what_is_written_is_read_and_clearing_clears(app, recognizer):
    write(app, HELLO)
    reading = recognizer.read(strokes_to_line(HELLO))
    assert texts(app) == [reading.text]
    assert app.view.status.startswith("Read your writing.")
    (line,) = app.view.lines
    assert [c[0] for c in line["characters"]] == list(reading.text)
    assert max(c[3] for c in line["characters"]) <= app.view.size[0]
    assert reading.text not in line["alternatives"]
    shown = np.asarray(Image.open(io.BytesIO(app.view.picture)))
    assert (shown == prepare_pixels(strokes_to_line(HELLO), width_divisor=8.0)).all()
    json.dumps(app.view.lines)
    write(app, [])
    assert (texts(app), app.view.picture, app.view.status) == ([], b"", module.READY)


def test_two_lines_on_the_pad_are_two_lines(app, recognizer):
    below = [[v + 200 * (k % 2) for k, v in enumerate(stroke)] for stroke in HELLO]
    write(app, HELLO + below, [0] * 5 + [1] * 5)
    assert texts(app) == [recognizer.read(strokes_to_line(HELLO)).text] * 2


def test_strokes_that_cannot_be_drawn_say_why(app):
    write(app, [[1, 2, 3]])
    assert "stroke 0" in app.view.error
    assert not app.view.busy


def test_a_page_comes_line_by_line_all_boxes_first(app, recognizer):
    seen = []
    app.view.observe(lambda change: seen.append((len(app.view.boxes), len(change["new"]))), "lines")
    give(app, "page.png", png(scribble(500, 900)))
    found = find_lines(scribble(500, 900))
    assert app.view.boxes == [list(line.box) for line in found]
    assert seen == [(len(found), k) for k in range(1, len(found) + 1)]
    assert texts(app) == [reading.text for reading in recognizer.read_page(scribble(500, 900))]
    assert app.view.mode == "page"
    assert app.pictures.shown
    assert app.pad.layout.display == "none"


def test_the_lines_of_a_page_are_found_once(app, monkeypatch):
    calls = []
    find = find_lines
    monkeypatch.setattr("hwrlib.recognizer.find_lines", lambda page: calls.append(1) or find(page))
    give(app, "page.png", png(scribble(500, 900)))
    keep(app, "first", "second")
    assert len(calls) == 1


def test_a_picture_in_which_one_line_is_found_is_a_line_until_one_says_page(app):
    picture = np.full((300, 900), 240, np.uint8)
    picture[80:180] = scribble(100, 900)
    give(app, "line.png", png(picture))
    assert (app.view.mode, len(app.view.lines)) == ("lines", 1)
    wide = np.hstack([scribble(300, 900), np.full((300, 700), 240, np.uint8)])
    give(app, "wide.png", png(wide))
    tell(app, "again", **{"as": "page"})
    count = len(app.view.lines)
    tell(app, "again", **{"as": "line"})
    assert (count, len(app.view.lines)) == (len(find_lines(wide)), 1)
    assert app.pictures.kind == "line"


def test_a_page_is_rotated_by_quarter_turns_and_kept_upright(app):
    page = scribble(200, 260)
    give(app, "page.png", png(np.ascontiguousarray(np.rot90(page))))
    tell(app, "again", turn=1)
    assert app.view.size == [260, 200]
    found = find_lines(page)
    assert app.view.boxes == [list(line.box) for line in found]
    keep(app, "a line")
    (file,) = app.folder.glob("*.png")
    assert (load_page(file) == found[0].image).all()
    tell(app, "again", turn=1)
    assert app.view.size == [200, 260]


def test_exif_turns_a_photo(app):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    give(app, "photo.png", png(np.ascontiguousarray(np.rot90(scribble(260, 500))), exif=exif))
    assert app.view.size == [500, 260]


def test_stop_keeps_what_was_read(app, recognizer, monkeypatch):
    read, whole = recognizer.read_prepared, len(find_lines(scribble(500, 900)))

    def read_and_stop(*arguments):
        app.view._handle_custom_msg({"kind": "stop"}, [])
        return read(*arguments)

    monkeypatch.setattr(recognizer, "read_prepared", read_and_stop)
    give(app, "page.png", png(scribble(500, 900)))
    assert app.view.status == f"Stopped: 1 of {whole} lines of page.png were read."
    assert len(app.view.boxes) == whole > 1
    assert not app.view.busy


def test_a_new_picture_ends_the_reading_of_the_last_and_leaves_nothing_of_it(app, recognizer, monkeypatch):
    read, given = recognizer.read_prepared, []

    def read_and_give(pixels, *arguments):
        if not given:
            given.append(True)
            app.show(png(scribble(100, 900)), "line.png")
            assert (app.view.lines, app.view.boxes, app.view.picture) == ([], [], b"")
        return read(pixels, *arguments)

    monkeypatch.setattr(recognizer, "read_prepared", read_and_give)
    give(app, "page.png", png(scribble(500, 900)))
    assert app.view.status.startswith("Read line.png.")
    assert len(app.view.lines) == 1


def test_back_to_the_pad_what_was_written_is_there_again(app):
    write(app, HELLO)
    before = texts(app)
    give(app, "line.png", png(scribble(100, 900)))
    tell(app, "pad")
    assert texts(app) == before
    assert not app.pictures.shown
    assert app.pad.layout.display is None


def test_the_samples_can_be_read(app):
    tell(app, "sample", of="line")
    assert app.view.status.startswith("Read line 58 of the sample (synthetic).")


# What cannot be read

BAD_TAG = struct.pack("<2sHIHHHIIHHIII", b"II", 42, 8, 2, 256, 3, 1, 50, 257, 99, 2**31, 2**31, 0)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no image", "no image that can be read"),
        (b"", "empty"),
        (b"%PDF-1.4", "PDF"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (png(scribble(100, 900))[:-200], "damaged"),
        (BAD_TAG, ""),
        (png(np.full((500, 500), 255, np.uint8)), "no writing"),
    ],
)
def test_a_picture_that_cannot_be_read_says_why_and_the_next_one_is_read(app, content, why):
    give(app, "<i>\ud83d.png", content)
    assert app.view.error.startswith("<i>?.png: ")
    assert why in app.view.error
    assert texts(app) == []
    assert not app.view.busy
    give(app, "line.png", png(scribble(100, 900)))
    assert (app.view.error, len(app.view.lines)) == ("", 1)


def test_what_the_browser_refuses_is_said_beside_nothing_of_the_last_picture(app):
    give(app, "line.png", png(scribble(100, 900)))
    tell(app, "refused", name="x.jpg", why="it has 110 megapixels")
    assert app.view.error == "x.jpg: it has 110 megapixels"
    assert (texts(app), app.view.status, app.view.picture) == ([], "", b"")


def test_no_memory_for_an_image_is_said_and_the_next_one_is_read(app, recognizer, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("no memory for 9 GB")

    with monkeypatch.context() as patch:
        patch.setattr(recognizer, "read_prepared", fail)
        give(app, "line.png", png(scribble(100, 900)))
    assert app.view.error == "line.png: no memory for 9 GB"
    give(app, "line.png", png(scribble(100, 900)))
    assert app.view.status.startswith("Read line.png.")


def test_an_error_nobody_foresaw_is_shown_and_raised(app, recognizer, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(recognizer, "read_prepared", fail)
    with pytest.raises(ZeroDivisionError):
        give(app, "line.png", png(scribble(100, 900)))
    assert app.view.error == "line.png: a bug"


# Corrections


def test_a_line_is_kept_counted_and_taken_back(app):
    write(app, HELLO)
    keep(app, 'hello, "you"')
    assert kept(app) == ['hello, "you"']
    assert (np.asarray(load_lines("train", app.folder)["image"][0]) == strokes_to_line(HELLO)).all()
    assert (app.view.kept, app.view.undoable, app.view.lines[0]["kept"]) == (1, True, True)
    tell(app, "undo")
    assert (app.view.kept, app.view.undoable, app.view.lines[0]["kept"]) == (0, False, False)
    assert not list(app.folder.glob("*.png"))
    tell(app, "undo")
    assert app.view.error == ""


def test_all_lines_of_a_page_are_kept_at_once_and_taken_back_at_once(app):
    write(app, HELLO)
    keep(app, "before")
    give(app, "page.png", png(scribble(500, 900)))
    count = len(app.view.lines)
    keep(app, *(f"line {k}" for k in range(count)))
    assert kept(app) == ["before", *(f"line {k}" for k in range(count))]
    assert all(image.height < 150 for image in load_lines("train", app.folder)["image"][1:])
    tell(app, "undo")
    assert kept(app) == ["before"]


def test_what_is_wrong_with_one_line_is_said_beside_it_and_the_others_are_kept(app):
    give(app, "page.png", png(scribble(500, 900)))
    keep(app, "first", " ", "third")
    assert [line["kept"] for line in app.view.lines][:3] == [True, False, True]
    assert "the text is empty" in app.view.lines[1]["said"]
    assert kept(app) == ["first", "third"]


def test_an_answer_to_an_older_reading_keeps_nothing(app):
    write(app, HELLO)
    old = app.view.number
    give(app, "line.png", png(scribble(100, 900)))
    keep(app, "hello", number=old)
    assert app.view.kept == 0
    assert not app.folder.exists()


def test_a_character_that_the_network_cannot_write_is_kept_and_said(app):
    write(app, HELLO)
    keep(app, "Größe")
    assert kept(app) == ["Größe"]
    assert "cannot write ßö" in app.view.lines[0]["said"]


def test_a_full_disk_is_said(app, monkeypatch):
    def full(file):
        raise OSError("No space left on device")

    write(app, HELLO)
    monkeypatch.setattr("hwrlib.app.corrections.os.fsync", full)
    keep(app, "hello")
    assert app.view.lines[0]["said"] == "Not kept: No space left on device"


def test_kept_lines_are_downloaded(app, monkeypatch):
    sent = []
    monkeypatch.setattr(app.view, "send", lambda message, buffers=None: sent.append((message, buffers)))
    tell(app, "zip")
    assert "no line has been kept" in app.view.error
    write(app, HELLO)
    keep(app, "hello")
    tell(app, "zip")
    ((message, (data,)),) = [(message, buffers) for message, buffers in sent if message["kind"] == "zip"]
    assert message["name"] == "my_lines.zip"
    assert "metadata.jsonl" in zipfile.ZipFile(io.BytesIO(data)).namelist()


def test_a_folder_that_names_a_file_outside_it_is_not_downloaded(app):
    app.folder.mkdir(parents=True)
    (app.folder / "metadata.jsonl").write_text('{"file_name": "/etc/passwd", "text": "a"}\n')
    tell(app, "zip")
    assert "leads out of" in app.view.error


def test_under_voila_each_visitor_has_a_folder_which_no_name_leads_out_of(recognizer, tmp_path, monkeypatch):
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5")
    apps = [ReadingApp(recognizer, tmp_path / "lines") for _ in range(2)]
    for app, name in zip(apps, (ALONE, ALONE[::-1]), strict=True):
        tell(app, "visitor", name=name)
        tell(app, "visitor", name="../../elsewhere")
        write(app, HELLO)
        keep(app, f"of {name[:2]}")
        assert app.folder == tmp_path / "lines" / name
        assert kept(app) == [f"of {name[:2]}"]
        assert str(tmp_path) not in app.view.place
    again = ReadingApp(recognizer, tmp_path / "lines")
    assert again.view.kept == 0
    tell(again, "visitor", name=ALONE)
    assert again.view.kept == 1


def test_in_a_notebook_no_visitor_changes_the_folder(app):
    before = app.folder
    tell(app, "visitor", name=ALONE)
    assert app.folder == before


def test_where_no_kernel_runs_a_picture_stands_in(recognizer, tmp_path):
    (tmp_path / "app.png").write_bytes(png(scribble(100, 900)))
    app = ReadingApp(recognizer, tmp_path, tmp_path / "app.png")
    bundle, metadata = app._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == (tmp_path / "app.png").read_bytes()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == app.model_id
    assert "sample page" in metadata["image/png"]["alt"]


def test_the_committed_chapter_shows_the_picture_and_holds_no_widget():
    chapter = json.loads((CHAPTERS / "07_read_your_handwriting.ipynb").read_text(encoding="utf-8"))
    (output,) = next(cell["outputs"] for cell in chapter["cells"] if "poster=" in "".join(cell["source"]))
    picture = CHAPTERS.parent / "charts" / "07_read_your_handwriting" / "app.png"
    assert base64.b64decode(output["data"]["image/png"]) == picture.read_bytes()
    assert "widgets" not in chapter["metadata"]
    assert "widget-view" not in json.dumps(chapter["cells"])


# Teaching


@pytest.fixture
def pupil(app, monkeypatch):
    """An app that learns in few steps."""
    app.recognizer = untrained(3.0)
    preset = teaching.PRESETS["personal"]
    settings = teaching.dataclasses.replace(preset, epochs=1, learning_rate=1e-6)
    monkeypatch.setattr(teaching, "PRESETS", {"personal": settings})
    monkeypatch.setattr(teaching, "REHEARSED", 4)
    monkeypatch.setattr(teaching, "rehearse", lambda own, general: own + general[:2])
    return app


def keep_five(app):
    for k in range(5):
        module.keep(app.folder, scribble(100, 900), f"line {k}")


def test_teaching_says_what_it_brought_and_the_app_reads_with_it(pupil, monkeypatch):
    keep_five(pupil)
    module.keep(pupil.folder, scribble(100, 900), "Größe")
    rates = iter([(0.5, 1.0), (0.25, 0.5)])
    monkeypatch.setattr(teaching.Trainer, "validate", lambda _: next(rates))
    before, shown = pupil.recognizer, []
    pupil.view.observe(lambda change: shown.append(change["new"]), "teaching")
    tell(pupil, "teach")
    says = pupil.view.teaching["says"]
    assert "(CER) on 1 held-out line: 50.0% before, 25.0% after learning from 4 others." in says
    assert "Left out: 'Größe'" in says
    assert pupil.recognizer is not before
    assert pupil.recognizer.decoder is before.decoder
    assert (pupil.folder.parent / "my_lines_network" / "model.safetensors").exists()
    steps = [state["done"] for state in shown if state.get("total")]
    assert steps == list(range(len(steps))) and len(steps) > 1
    assert not pupil.view.teaching["running"]
    write(pupil, HELLO)
    assert pupil.view.error == ""


def test_a_teaching_that_brings_nothing_changes_nothing(pupil, monkeypatch):
    keep_five(pupil)
    monkeypatch.setattr(teaching.Trainer, "validate", lambda _: (0.5, 1.0))
    before = pupil.recognizer
    tell(pupil, "teach")
    assert "stays as it was" in pupil.view.teaching["says"]
    assert pupil.recognizer is before
    assert not (pupil.folder.parent / "my_lines_network").exists()


def test_a_teaching_that_is_stopped_changes_nothing(pupil, monkeypatch):
    keep_five(pupil)
    before = {name: value.clone() for name, value in pupil.recognizer.model.state_dict().items()}

    def stop(change):
        if change["new"].get("total"):  # the first step begins
            pupil.view._handle_custom_msg({"kind": "stop teaching"}, [])

    pupil.view.observe(stop, "teaching")
    monkeypatch.setattr(teaching.Trainer, "validate", lambda _: (0.5, 1.0))
    tell(pupil, "teach")
    assert pupil.view.teaching["says"] == "Stopped. The network has not changed."
    assert all(torch.equal(value, before[name]) for name, value in pupil.recognizer.model.state_dict().items())


def test_too_few_lines_to_learn_from_are_said(app):
    write(app, HELLO)
    keep(app, "Größe")
    tell(app, "teach")
    assert "0 of 1 kept lines can be learnt from; keep at least 5" in app.view.teaching["says"]
    with pytest.raises(DataError, match="keep at least 5"):
        teaching.teach(app.recognizer, app.folder, "nowhere", print, threading.Event())
