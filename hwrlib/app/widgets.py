"""Read your own handwriting in a notebook: a drawing pad, uploads, and corrections kept (chapter 7)."""

import html
import time
from collections.abc import Callable
from pathlib import Path

import anywidget
import ipywidgets
import numpy as np
import traitlets
from PIL import Image

from hwrlib.app.corrections import as_zip, keep
from hwrlib.app.views import download_html, error_html, line_html, page_html
from hwrlib.ctc import Reading
from hwrlib.data import SAMPLE, load_lines
from hwrlib.image_files import load_page
from hwrlib.images import prepare_pixels
from hwrlib.page.lines import NO_WRITING, crop_line, find_lines
from hwrlib.recognizer import Recognizer
from hwrlib.strokes import render_strokes

FAILURES = (ValueError, OSError, RuntimeError, MemoryError)  # what bad images, full disks and full memory raise

Shown = tuple[str, list[ipywidgets.Widget]]  # a result as HTML, and a row to correct each of its lines


class DrawingPad(anywidget.AnyWidget):
    """A pad to write one line on, with mouse, pen or finger.

    ``strokes`` holds what was written: for each time the pen was down a flat list x0, y0, x1, y1, ... in pixels, y
    downwards. It changes when the pen has rested for 0.4 s, and on undo and clear; setting it draws. Control+Z takes a
    stroke back, Escape clears. The front end is pad.js and pad.css.
    Chapter 7: notebooks/07_read_your_handwriting.ipynb.
    """

    _esm = Path(__file__).parent / "pad.js"
    _css = Path(__file__).parent / "pad.css"
    strokes = traitlets.List().tag(sync=True)


class _Typical:
    """Stands in for a random generator: every draw is the middle of its range, so it draws with the typical pen."""

    def uniform(self, low, high, size=None):
        middle = (low + high) / 2
        return middle if size is None else np.full(size, middle)

    def standard_normal(self, size):
        return np.zeros(size)


def strokes_to_line(strokes: list[list[float]]) -> np.ndarray:
    """Draw the strokes of a pad as a line: like the training's own lines, with its typical pen and no chance in it.

    Chapter 7: notebooks/07_read_your_handwriting.ipynb.

    Arguments:
        strokes: as for :func:`hwrlib.strokes.render_strokes`, which also says what is raised.

    Returns:
        uint8 array (128, W), paper 255, W at least 128.

    >>> strokes_to_line([[0, 0, 0, 100], [50, 50, 120, 50]]).shape
    (128, 152)
    """
    return render_strokes(strokes, _Typical())


class ReadingApp(ipywidgets.VBox):
    """A pad and an upload button; whatever they get is read and shown at once, and can be corrected and kept.

    Everything stays in the kernel. What is a line and what a page is decided by :meth:`hwrlib.Recognizer.read_page`.
    Chapter 7: notebooks/07_read_your_handwriting.ipynb.

    Arguments:
        recognizer: with a beam for a decoder it shows alternatives.
        folder: where corrected lines are kept; made when the first is. See :func:`hwrlib.app.corrections.keep`.
    """

    def __init__(self, recognizer: Recognizer, folder: str | Path = "my_lines"):
        self.recognizer, self.folder = recognizer, Path(folder)
        self.pad = DrawingPad()
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="Upload an image")
        self.upload.layout.width = "auto"
        self.line, self.page = _button("Sample line"), _button("Sample page")
        self.note, self.result, self.lines = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.VBox()
        self.download, self.file = _button("Download the kept lines"), ipywidgets.HTML()
        hint = ipywidgets.HTML("Write one line on the pad, or upload the image of a line or of a whole page.")
        inputs, outputs = _row(self.upload, self.line, self.page), _row(self.download, self.file)
        super().__init__([hint, self.pad, inputs, self.note, self.result, self.lines, outputs])
        self.pad.observe(self._on_strokes, "strokes")
        self.upload.observe(self._on_upload, "value")
        self.line.on_click(self._on_sample_line)
        self.page.on_click(self._on_sample_page)
        self.download.on_click(self._on_download)
        self._on_sample_line()

    def show(self, image: str | Path | bytes | np.ndarray | Image.Image, name: str = "the image") -> None:
        """Read a line or page, any image that :func:`hwrlib.prepare` takes, and show the result or what is wrong."""
        self._show(lambda: self._read(load_page(image)), name)

    def _show(self, read: Callable[[], Shown], name: str) -> None:
        self.note.value = _status(f"Reading {name} …")
        begin = time.perf_counter()
        try:
            self.result.value, self.lines.children = read()
        except FAILURES as error:
            self.result.value, self.lines.children = error_html(f"{name}: {_why(error)}"), []
            self.note.value = ""
        else:
            self.note.value = _status(f"Read {name} in {time.perf_counter() - begin:.2f} s.")

    def _read(self, page: np.ndarray) -> Shown:
        readings = self.recognizer.read_page(page)
        if not readings:
            raise ValueError(NO_WRITING)
        upright = np.ascontiguousarray(np.rot90(page, -readings[0].rotation // 90))
        if len(readings) == 1:
            return self._line(upright, readings[0])
        # Each line is found again: what is kept is its own image, which a reading does not hold.
        rows = [
            self._correction(line.image, reading.text, f"Line {k}")
            for k, (line, reading) in enumerate(zip(find_lines(upright), readings, strict=True), 1)
        ]
        return page_html(page, readings), rows

    def _read_strokes(self, strokes: list[list[float]]) -> Shown:
        line = strokes_to_line(strokes)
        return self._line(line, self.recognizer.read(line))

    def _line(self, image: np.ndarray, reading: Reading) -> Shown:
        crop = crop_line(image)  # as the recognizer has read it
        line = image if crop is None else crop
        pixels = prepare_pixels(line, width_divisor=self.recognizer.model.width_divisor)
        return line_html(pixels, reading), [self._correction(line, reading.text, "Line")]

    def _correction(self, image: np.ndarray, text: str, label: str) -> ipywidgets.HBox:
        """A line's text to correct, with a button that keeps it."""
        field = ipywidgets.Text(value=text, description=label, layout={"flex": "1 1 300px"})
        field.style.description_width = "initial"
        button, said = _button("Keep"), ipywidgets.HTML()

        def on_click(_):
            try:
                path = keep(self.folder, image, field.value)
            except FAILURES as error:
                said.value = error_html(_why(error))
            else:
                said.value = _status(f"Kept as {path}")
                field.disabled = button.disabled = True  # an image has one text; later changes go to metadata.jsonl

        button.on_click(on_click)
        return _row(field, button, said)

    def _on_strokes(self, change) -> None:
        if change["new"]:
            self._show(lambda: self._read_strokes(change["new"]), "your writing")
        else:
            self.note.value, self.result.value, self.lines.children = "", "", []

    def _on_upload(self, change) -> None:
        files = change["new"]  # ipywidgets 7: a dictionary by name, 8: a tuple
        for file in files.values() if isinstance(files, dict) else files:
            self.show(bytes(file["content"]), file.get("name") or file["metadata"]["name"])
        if files:
            self.upload.set_trait("value", type(files)())  # so that the same file can come again

    def _on_sample_line(self, _=None) -> None:
        self.show(load_lines("validation", "sample")[0]["image"], "line 1 of the sample (synthetic)")

    def _on_sample_page(self, _=None) -> None:
        self.show(SAMPLE / "page.png", "the sample page (synthetic)")

    def _on_download(self, _=None) -> None:
        try:
            self.file.value = download_html(as_zip(self.folder), f"{self.folder.name}.zip")
        except FAILURES as error:
            self.file.value = error_html(_why(error))


def _button(description: str) -> ipywidgets.Button:
    return ipywidgets.Button(description=description, layout={"width": "auto"})


def _row(*children) -> ipywidgets.HBox:
    return ipywidgets.HBox(children, layout={"flex_flow": "row wrap"})


def _status(message: str) -> str:
    return f'<span role="status" aria-live="polite">{html.escape(message)}</span>'


def _why(error: Exception) -> str:
    return str(error).removeprefix("the bytes").removeprefix(":").strip()  # how hwrlib.images calls an upload
