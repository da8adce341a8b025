"""The pad's rendering, and the reading app without a browser: what its callbacks show for what comes in."""

import base64
import dataclasses
import datetime
import io
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from hwrlib.alphabet import IAM
from hwrlib.app import widgets
from hwrlib.app.views import line_html, page_html
from hwrlib.app.widgets import DrawingPad, ReadingApp, strokes_to_line
from hwrlib.beam import PrefixBeam
from hwrlib.ctc import Character, Reading, frames
from hwrlib.data import load_lines
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


def png(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def scribble(height, width):
    """Paper with rows of strokes."""
    page = np.full((height, width), 240, np.uint8)
    for top in range(height // 8, height - 40, 90):
        for x in range(40, width - 60, 23):
            page[top : top + 36, x : x + 4] = 30
    return page


@pytest.fixture(scope="module")
def recognizer():
    torch.manual_seed(0)
    model = CRNN(IAM, width_divisor=8.0)  # untrained: what is tested here is not what it reads
    with torch.no_grad():
        model(torch.rand(2, 1, 128, 64) * 2 - 1)
        model.fc.weight.mul_(20)
        model.fc.bias.zero_()
    return Recognizer(model, "no", PrefixBeam(width=4))


@pytest.fixture
def app(recognizer, tmp_path, monkeypatch):
    monkeypatch.setattr("hwrlib.recognizer.SURE", 0.0)  # what an untrained network reads is never sure: turn no page
    return ReadingApp(recognizer, tmp_path / "kept" / "my_lines")


def upload(app, name, content):
    """What ipywidgets does when the browser sends a file; version 7 has a dictionary for its value, 8 a tuple."""
    if isinstance(app.upload.value, dict):
        app.upload.set_trait("value", {name: {"metadata": {"name": name}, "content": content}})
    else:
        file = {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content)}
        app.upload.set_trait("value", ({**file, "last_modified": datetime.datetime.now(datetime.UTC)},))


def fields(app):
    return [row.children[0].value for row in app.lines.children]


# The pad


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


def test_the_pad_carries_its_front_end():
    state = DrawingPad(strokes=[[1, 2]]).get_state()
    assert "pointerdown" in state["_esm"]
    assert "touch-action: none" in state["_css"]
    assert state["strokes"] == [[1, 2]]


# What is shown


def test_characters_are_shaded_underlined_named_and_escaped():
    characters = (Character("<", 0.95, 1, 2), Character("&", 0.7, 3, 4), Character('"', 0.2, 5, 6))
    reading = Reading('<&"', -2.0, 0.7, characters, (("<b>", -3.21),))
    shown = line_html(np.full((128, 80), 255, np.uint8), reading)
    spans = re.findall(r'<span class="(.*?)" style="background: (.*?)" title="(.*?)">(.*?)</span>', shown)
    assert [span[3] for span in spans] == ["&lt;", "&amp;", "&quot;"]
    assert [span[0] for span in spans] == ["", "hwr-dotted", "hwr-wavy"]
    assert ["95%" in spans[0][2], "70%" in spans[1][2], "20%" in spans[2][2]] == [True] * 3
    alphas = [float(re.search(r"([\d.]+)\)", span[1])[1]) for span in spans]
    assert alphas == sorted(alphas)
    assert "&lt;b&gt;" in shown
    assert "-3.2" in shown
    assert "<b>" not in shown.replace("<b>This", "")


def test_a_line_is_shown_as_the_network_sees_it():
    pixels = prepare_pixels(scribble(100, 900))
    shown = line_html(pixels, Reading("", 0.0, 1.0, ()))
    data = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", shown)[1])
    assert (np.asarray(Image.open(io.BytesIO(data))) == pixels).all()
    assert "nothing was read" in shown


def test_each_character_is_drawn_over_its_columns_and_the_last_one_inside_the_picture():
    pixels = np.full((128, 81), 255, np.uint8)
    last = Character("b", 0.5, frames(81) - 1, frames(81))
    shown = line_html(pixels, Reading("ab", -1.0, 0.9, (Character("a", 0.9, 3, 5), last)))
    _, _, width, height = map(int, re.search(r'viewBox="(\d+) (\d+) (\d+) (\d+)"', shown).groups())
    drawn = [(int(x), int(w)) for x, w in re.findall(r'<rect x="(\d+)" width="(\d+)"', shown)]
    assert (width, height) == (81, 128)
    assert drawn == [(12, 12), (72, 8)]


def test_the_columns_of_what_is_really_read_lie_in_the_picture(app, recognizer):
    app.show(scribble(100, 900))
    width = int(re.search(r'viewBox="0 0 (\d+) 128"', app.result.value)[1])
    ends = [int(x) + int(w) for x, w in re.findall(r'<rect x="(\d+)" width="(\d+)"', app.result.value)]
    assert ends
    assert max(ends) <= width


def test_a_page_has_a_box_and_a_text_for_each_line_and_stays_light():
    page = np.random.default_rng(0).integers(180, 255, (3000, 2400), dtype=np.uint8)
    readings = [Reading(f"<line> {k}", -1.0, 0.9, (), box=(100, 100 + 200 * k, 2000, 90)) for k in range(12)]
    shown = page_html(page, readings)
    assert shown.count('class="hwr-box"') == 12
    assert shown.count("<title>&lt;line&gt; 7</title>") == 1
    assert 'viewBox="0 -106 2400 3106"' in shown
    assert "<line>" not in shown
    data = base64.b64decode(re.search(r"data:image/jpeg;base64,([^\"]+)", shown)[1])
    assert Image.open(io.BytesIO(data)).width == 1000


# The app


def test_it_begins_with_a_sample_read(app, recognizer):
    expected = recognizer.read(load_lines("validation", "sample")[0]["image"])
    assert fields(app) == [expected.text]
    assert "data:image/png" in app.result.value
    assert "The best texts" in app.result.value
    assert re.search(r"Read line 1 .* in \d+\.\d\d s", app.note.value)
    assert not app.folder.exists()


def test_strokes_are_read_and_clearing_clears(app, recognizer):
    app.pad.strokes = HELLO
    assert fields(app) == [recognizer.read(strokes_to_line(HELLO)).text]
    assert "your writing" in app.note.value
    app.pad.strokes = []
    assert app.result.value == app.note.value == ""
    assert app.lines.children == ()


def test_a_wide_upload_is_a_line_and_another_a_page(app, recognizer):
    upload(app, "line.png", png(scribble(100, 900)))
    assert fields(app) == [recognizer.read(scribble(100, 900)).text]
    assert not app.upload.value  # so that the same file can come again
    upload(app, "page.png", png(scribble(500, 900)))
    assert fields(app) == [reading.text for reading in recognizer.read_page(scribble(500, 900))]
    assert app.result.value.count('class="hwr-box"') == len(fields(app)) > 1
    assert "Read page.png" in app.note.value


def test_a_picture_in_which_one_line_is_found_is_a_line(app, recognizer):
    picture = np.full((300, 900), 240, np.uint8)
    picture[80:180] = scribble(100, 900)
    assert len(find_lines(picture)) == 1
    upload(app, "line.png", png(picture))
    assert fields(app) == [recognizer.read(picture).text]
    assert app.lines.children[0].children[0].description == "Line"
    assert "data:image/png" in app.result.value


BAD_TAG = struct.pack("<2sHIHHHIIHHIII", b"II", 42, 8, 2, 256, 3, 1, 50, 257, 99, 2**31, 2**31, 0)


def test_a_page_that_was_turned_is_kept_upright(app, recognizer, monkeypatch):
    page = np.ascontiguousarray(np.rot90(scribble(500, 900)))
    readings = [dataclasses.replace(r, rotation=90) for r in recognizer.read_page(scribble(500, 900))]
    monkeypatch.setattr(recognizer, "read_page", lambda _: readings)
    app.show(page)
    app.lines.children[0].children[1].click()
    (kept,) = app.folder.glob("*.png")
    assert (load_page(kept) == find_lines(scribble(500, 900))[0].image).all()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no image", "no image that can be read"),
        (b"", "empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (png(scribble(100, 900))[:-200], "damaged"),
        (BAD_TAG, ""),
        (png(np.full((500, 500), 255, np.uint8)), "no writing"),
    ],
)
def test_an_upload_that_cannot_be_read_says_why_and_the_next_one_is_read(app, content, why):
    upload(app, "<i>.png", content)
    assert 'role="alert"' in app.result.value
    assert why in app.result.value
    assert "&lt;i&gt;.png: " in app.result.value
    assert app.lines.children == ()
    upload(app, "line.png", png(scribble(100, 900)))
    assert "Read line.png" in app.note.value


def test_no_memory_for_an_image_is_said_and_the_next_one_is_read(app, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("no memory for 9 GB")

    with monkeypatch.context() as patch:
        patch.setattr(widgets, "prepare_pixels", fail)
        upload(app, "line.png", png(scribble(100, 900)))
    assert "line.png: no memory for 9 GB" in app.result.value
    upload(app, "line.png", png(scribble(100, 900)))
    assert "Read line.png" in app.note.value


def test_strokes_that_cannot_be_drawn_say_why(app):
    app.pad.strokes = [[1, 2, 3]]
    assert "stroke 0" in app.result.value


def test_a_corrected_line_is_kept_once_and_downloaded(app):
    app.pad.strokes = HELLO
    field, button, said = app.lines.children[0].children
    field.value = 'hello, "you"'
    button.click()
    assert "Kept as" in said.value
    assert field.disabled
    assert button.disabled
    kept = load_lines("train", app.folder)
    assert kept["text"][:] == ['hello, "you"']
    assert (np.asarray(kept["image"][0]) == strokes_to_line(HELLO)).all()
    app.download.click()
    assert 'download="my_lines.zip"' in app.file.value
    data = base64.b64decode(re.search(r"base64,([^\"]+)", app.file.value)[1])
    assert "metadata.jsonl" in zipfile.ZipFile(io.BytesIO(data)).namelist()


def test_each_line_of_a_page_is_kept_with_its_own_image(app):
    upload(app, "page.png", png(scribble(500, 900)))
    for k, row in enumerate(app.lines.children):
        row.children[0].value = f"line {k}"
        row.children[1].click()
    kept = load_lines("train", app.folder)
    assert kept["text"][:] == [f"line {k}" for k in range(len(app.lines.children))]
    assert all(image.height < 150 for image in kept["image"])


def test_an_empty_correction_and_an_empty_folder_are_said(app):
    field, button, said = app.lines.children[0].children
    field.value = " "
    button.click()
    assert "the text is empty" in said.value
    assert not button.disabled
    app.download.click()
    assert "no line has been kept" in app.file.value


def test_a_folder_that_names_a_file_outside_it_is_not_downloaded(app):
    app.folder.mkdir(parents=True)
    (app.folder / "metadata.jsonl").write_text('{"file_name": "/etc/passwd", "text": "a"}\n')
    app.download.click()
    assert "row 0: the file name &#x27;/etc/passwd&#x27; leads out of" in app.file.value
    assert "base64" not in app.file.value
