"""Read your own handwriting in a notebook: a drawing pad, uploads, and corrections kept (chapter 7)."""

import html
import time
from pathlib import Path

import anywidget
import ipywidgets
import numpy as np
import traitlets
from PIL import Image

from hwrlib.app.corrections import as_zip, keep
from hwrlib.app.views import download_html, error_html, line_html, page_html
from hwrlib.data import SAMPLE, load_lines
from hwrlib.images import load_page, prepare_pixels
from hwrlib.page.lines import NO_WRITING, find_lines
from hwrlib.recognizer import Recognizer, is_line
from hwrlib.strokes import render_strokes

FAILURES = (ValueError, OSError, RuntimeError, MemoryError)  # what bad images, full disks and full memory raise


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

    What is at least five times as wide as high is read as a line, and so is a picture in which one line is found; all
    else is a page. Everything stays in the kernel.
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

    def _show(self, read, name: str) -> None:
        self.note.value = _status(f"Reading {name} …")
        begin = time.perf_counter()
        try:
            self.result.value, self.lines.children = read()
        except FAILURES as error:
            self.result.value, self.lines.children = error_html(f"{name}: {_why(error)}"), []
            self.note.value = ""
        else:
            self.note.value = _status(f"Read {name} in {time.perf_counter() - begin:.2f} s.")

    def _read(self, page: np.ndarray):
        if is_line(page):
            return self._read_line(page)
        lines = find_lines(page)  # not read_page: each line's own image is wanted, to be kept
        if not lines:
            raise ValueError(NO_WRITING)
        if len(lines) == 1:
            return self._read_line(lines[0].image)
        readings = self.recognizer.read_found(lines)
        rows = [
            self._correction(line.image, reading.text, f"Line {k}")
            for k, (line, reading) in enumerate(zip(lines, readings, strict=True), 1)
        ]
        return page_html(page, readings), rows

    def _read_line(self, line: np.ndarray):
        pixels = prepare_pixels(line, width_divisor=self.recognizer.model.width_divisor)
        reading = self.recognizer.read_prepared([pixels])[0]
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
            self._show(lambda: self._read_line(strokes_to_line(change["new"])), "your writing")
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
    return str(error).removeprefix("the bytes: ")  # how hwrlib.images calls an upload
