"""The three widgets of the app, each a class here and a front end in JavaScript, and what they show (chapter 7)."""

import hashlib
import io
from pathlib import Path
from types import SimpleNamespace

import anywidget
import numpy as np
import traitlets
from PIL import Image

from hwrlib.ctc import Reading
from hwrlib.images import prepare_pixels
from hwrlib.page.lines import turn_back
from hwrlib.recognizer import PageReading
from hwrlib.strokes import render_strokes

HERE = Path(__file__).parent
SHOWN_WIDTH = 1000  # pixels of a page as shown
TYPICAL = SimpleNamespace(  # in place of a random generator: every draw is the middle of its range
    uniform=lambda low, high, size=None: (low + high) / 2 if size is None else np.full(size, (low + high) / 2),
    standard_normal=np.zeros,
)


def _front(name: str) -> str:
    return (HERE / "common.js").read_text(encoding="utf-8") + (HERE / f"{name}.js").read_text(encoding="utf-8")


class DrawingPad(anywidget.AnyWidget):
    """A pad to write on, line by line, with mouse, pen or finger (pad.js); its traits change when the pen rests."""

    _esm = _front("pad")
    _css = HERE / "app.css"
    strokes = traitlets.List().tag(sync=True)  # [x0, y0, x1, y1, ...] for each time the pen was down, in px
    rows = traitlets.List().tag(sync=True)  # the line of each stroke, from 0


class Pictures(anywidget.AnyWidget):
    """Buttons to choose, drop, paste or take a picture, which the browser shrinks before it sends it (pictures.js)."""

    _esm = _front("pictures")
    _css = HERE / "app.css"
    shown = traitlets.Bool(False).tag(sync=True)  # whether a picture is what was read last
    kind = traitlets.Unicode().tag(sync=True)  # how it is read: "line", "page" or "" for whatever it seems to be


class ReadingView(anywidget.AnyWidget):
    """What was read, line by line, and what can be done with it (reading.js)."""

    _esm = _front("reading")
    _css = HERE / "app.css"
    status = traitlets.Unicode().tag(sync=True)
    error = traitlets.Unicode().tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    number = traitlets.Int(0).tag(sync=True)  # of the reading: an answer to an older one is none
    mode = traitlets.Unicode().tag(sync=True)  # "page", or "lines" for lines alone
    picture = traitlets.Bytes(b"").tag(sync=True)
    size = traitlets.List([0, 0]).tag(sync=True)  # width and height in whose pixels boxes and columns are
    boxes = traitlets.List().tag(sync=True)  # one a line that was found, read or not yet
    lines = traitlets.List().tag(sync=True)  # those that have been read
    kept = traitlets.Int(0).tag(sync=True)
    undoable = traitlets.Bool(False).tag(sync=True)
    place = traitlets.Unicode().tag(sync=True)
    visitors = traitlets.Bool(False).tag(sync=True)  # whether each visitor has a folder of his own
    teaching = traitlets.Dict().tag(sync=True)


def sendable(what: object) -> str:
    """A text from outside, or what an error says, without lone surrogates, which no message can carry."""
    return (str(what) or type(what).__name__).encode(errors="replace").decode()


def shown_line(number: int, reading: Reading, image: np.ndarray) -> dict:
    """A reading as an item of the view's ``lines``; its ``id`` is the same where the same line is read again."""
    characters = [[c.text, round(c.confidence, 3), *c.columns] for c in reading.characters]
    others = list(dict.fromkeys(text for text, _ in reading.alternatives if text != reading.text))
    shown = {"text": reading.text, "confidence": reading.confidence, "characters": characters, "alternatives": others}
    return shown | {"id": f"{number} {hashlib.sha256(image.tobytes()).hexdigest()}", "kept": False, "said": ""}


def shown_picture(name: str, page: np.ndarray | None, state: PageReading, width_divisor: float) -> dict:
    """Traits of the view: a page, turned as it is read, and its lines' boxes; or one line as the network sees it."""
    mode, boxes, size, file = "lines", [[0, 0, 0, 0]] * len(state.lines), [0, 0], io.BytesIO()
    if len(state.lines) == 1:
        image = Image.fromarray(prepare_pixels(state.lines[0].image, width_divisor=width_divisor, name=name))
        size = [*image.size]
        image.save(file, "PNG", optimize=True)
    elif page is not None:
        image = Image.fromarray(np.rot90(page, -state.rotation // 90))
        mode, size = "page", [*image.size]
        boxes = [list(turn_back(line.box, page.shape, -state.rotation % 360)) for line in state.lines]
        image.thumbnail((SHOWN_WIDTH, 4 * SHOWN_WIDTH))
        image.save(file, "JPEG", quality=65, optimize=True)
    return {"mode": mode, "picture": file.getvalue(), "boxes": boxes, "size": size}


def strokes_to_line(strokes: list[list[float]]) -> np.ndarray:
    """Draw strokes as :func:`hwrlib.strokes.render_strokes` does, with a typical pen, by no chance: uint8 (128, W)."""
    return render_strokes(strokes, TYPICAL)
