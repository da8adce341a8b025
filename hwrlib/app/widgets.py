"""The three widgets of the app, each a class here and a front end in JavaScript (chapter 7)."""

from pathlib import Path

import anywidget
import numpy as np
import traitlets

from hwrlib.strokes import render_strokes

HERE = Path(__file__).parent


def _front(name: str) -> str:
    return (HERE / "common.js").read_text(encoding="utf-8") + (HERE / f"{name}.js").read_text(encoding="utf-8")


class DrawingPad(anywidget.AnyWidget):
    """A pad to write on, line by line, with mouse, pen or finger (pad.js); its traits change when the pen has rested.

    Chapter 7: notebooks/07_read_your_handwriting.ipynb.
    """

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


class _Typical:
    """Stands in for a random generator: every draw is the middle of its range."""

    def uniform(self, low, high, size=None):
        return (low + high) / 2 if size is None else np.full(size, (low + high) / 2)

    def standard_normal(self, size):
        return np.zeros(size)


def strokes_to_line(strokes: list[list[float]]) -> np.ndarray:
    """Draw strokes as :func:`hwrlib.strokes.render_strokes` does, with the typical pen and no chance: uint8 (128, W).

    Chapter 7: notebooks/07_read_your_handwriting.ipynb.

    >>> strokes_to_line([[0, 0, 0, 100], [50, 50, 120, 50]]).shape
    (128, 152)
    """
    return render_strokes(strokes, _Typical())
