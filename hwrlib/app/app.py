"""The app: whatever is written or given is read line by line, corrected, kept and learnt from (chapter 7)."""

import base64
import functools
import io
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import ipywidgets
import numpy as np
from PIL import Image

from hwrlib import SAMPLE
from hwrlib.app.corrections import as_zip, count, forget, keep
from hwrlib.app.widgets import DrawingPad, Pictures, ReadingView, strokes_to_line
from hwrlib.ctc import Reading
from hwrlib.image_files import load_page
from hwrlib.images import prepare_pixels
from hwrlib.page.lines import NO_WRITING
from hwrlib.page.places import turn_back
from hwrlib.recognizer import PageReading, Recognizer

FAILURES = (ValueError, OSError, RuntimeError, MemoryError)  # what bad images, full disks and full memory raise
WIDEST = 1000  # pixels of a page as shown
LOADING = "Loading the network … The pad can be used already."
POSTER = "The app with its sample page (synthetic): the lines boxed on the left, their text on the right"
READY = "Write on the pad, or give a picture of a line or a page."


class ReadingApp(ipywidgets.VBox):
    """A pad and pictures; whatever they get is read at once, line by line, and can be corrected, kept and learnt from.

    Everything stays in the kernel. What is a line and what a page is decided by :meth:`hwrlib.Recognizer.iter_page`.
    Reading and teaching have a thread each, so that they can be stopped. Under Voila each visitor has a folder.
    Chapter 7: notebooks/07_read_your_handwriting.ipynb.

    Arguments:
        recognizer: with a beam for a decoder it shows alternatives; or a function that loads one, behind the pad.
        folder: where corrected lines are kept; made when the first is. See :func:`hwrlib.app.corrections.keep`.
        poster: a PNG that stands in for the app where no kernel runs.
    """

    _ipython_display_ = None  # of ipywidgets 7, which knows no poster

    def __init__(
        self,
        recognizer: Recognizer | Callable[[], Recognizer],
        folder: str | Path = "my_lines",
        poster: str | Path | None = None,
    ):
        self.folder = self._home = Path(folder)
        self.poster, self.recognizer = poster, None
        half = {"flex": "1 1 360px", "min_width": "0"}
        self.pad, self.pictures, self.view = DrawingPad(layout=half), Pictures(), ReadingView(layout=half)
        super().__init__([self.pictures, ipywidgets.HBox([self.pad, self.view], layout={"flex_flow": "row wrap"})])
        self.add_class("hwr-app")
        self._images: list[np.ndarray] = []  # of the lines in view
        self._keeps: list[list[tuple[int, int, Path]]] = []  # reading, line and file, of each time that some were kept
        self._picture: tuple[str, np.ndarray] | None = None
        self._quarters = 0
        self._lock = threading.RLock()  # two threads and the kernel's own set traits
        self._cancel = self._cancel_teaching = threading.Event()
        self._reader, self._teacher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._jobs: list[Future] = []
        self.view.visitors = os.environ.get("SERVER_SOFTWARE", "").startswith("voila/")
        self.pad.observe(self._on_strokes, "strokes")
        for widget in (self.pad, self.pictures, self.view):
            widget.on_msg(self._on_message)
        self._count()
        if isinstance(recognizer, Recognizer):
            self.recognizer, self.view.status = recognizer, READY
        else:
            self.view.status = LOADING
            self._submit(self._reader, lambda: self._attempt("the network", lambda: self._load(recognizer)))

    def _repr_mimebundle_(self, **_) -> tuple[dict, dict]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        bundle = {"application/vnd.jupyter.widget-view+json": view, "text/plain": "The app needs a running kernel."}
        if self.poster:
            bundle["image/png"] = base64.b64encode(Path(self.poster).read_bytes()).decode()
        return bundle, {"image/png": {"alt": POSTER}} if self.poster else {}

    def wait(self) -> None:
        """Wait until all that was given has been read and learnt; raise what went wrong unforeseen."""
        while self._jobs:
            self._jobs.pop(0).result()

    def _submit(self, thread: ThreadPoolExecutor, work: Callable[[], None]) -> None:
        self._jobs = [job for job in self._jobs if not job.done() or job.exception()] + [thread.submit(work)]

    def show(self, image: str | Path | bytes | np.ndarray | Image.Image, name: str = "the picture") -> None:
        """Read a line or page, any image that :func:`hwrlib.prepare` takes, and show the result or what is wrong."""
        self._picture = None
        self._set(self.pictures, shown=True, kind="")
        self.pad.layout.display = "none"
        self._read(name, lambda cancel: self._read_picture(name, load_page(image), None, cancel))

    def _set(self, widget: ipywidgets.Widget, **traits) -> None:
        """Set traits that belong together, in one message."""
        with self._lock, widget.hold_sync():
            for name, value in traits.items():
                setattr(widget, name, value)

    # Reading, in its thread

    def _read(self, name: str, read: Callable[[threading.Event], None]) -> None:
        """Read anew: the view is emptied, whatever was being read is left."""
        with self._lock:
            self._cancel.set()
            self._cancel = cancel = threading.Event()
        number = self.view.number + 1
        self._images = []
        status = f"Reading {name} …" if self.recognizer else LOADING
        empty = {"error": "", "mode": "lines", "picture": b"", "size": [0, 0], "boxes": [], "lines": []}
        self._set(self.view, status=status, busy=True, number=number, **empty)

        def job() -> None:
            if not cancel.is_set():
                self._attempt(name, lambda: read(cancel))
            if self._cancel is cancel:
                self._set(self.view, busy=False)

        self._submit(self._reader, job)

    def _attempt(self, name: str, work: Callable[[], None]) -> None:
        """Do something and say what went wrong; what nobody foresaw is raised as well."""
        try:
            work()
        except Exception as error:
            self._set(self.view, status="", busy=False, error=f"{name}: {_why(error)}")
            if not isinstance(error, FAILURES):
                raise

    def _load(self, load: Callable[[], Recognizer]) -> None:
        self.recognizer = load()
        if self.view.status == LOADING:
            self._set(self.view, status=READY)

    def _loaded(self) -> Recognizer:
        if self.recognizer is None:
            raise RuntimeError("the network could not be loaded; start the app again")
        return self.recognizer

    def _read_picture(self, name: str, page: np.ndarray, quarters: int | None, cancel: threading.Event) -> None:
        recognizer, state, tried = self._loaded(), PageReading([], []), None
        self._picture = name, page
        for state in recognizer.iter_page(page, self.pictures.kind or None, quarters):
            with self._lock:  # or a new picture might come between the question and the showing
                if cancel.is_set():
                    break
                self._quarters = state.quarters
                self._show_state(name, page, state, anew=tried != state.quarters or not state.readings)
                tried = state.quarters
        self._finish(_turned(name, state.quarters), len(state.readings), len(state.lines), cancel)

    def _show_state(self, name: str, page: np.ndarray, state: PageReading, anew: bool) -> None:
        if anew:
            turned = np.ascontiguousarray(np.rot90(page, -state.quarters))
            self._images = [line.image for line in state.lines]
            back = (4 - state.quarters) % 4
            boxes = [list(turn_back(line.box, page.shape, back)) for line in state.lines]
            small = Image.fromarray(turned)
            small.thumbnail((WIDEST, 4 * WIDEST))
            shown = {"mode": "page", "picture": _encoded(small, "JPEG"), "size": turned.shape[::-1], "boxes": boxes}
            self._set(self.view, number=self.view.number + 1, lines=[], **shown)
        if len(state.lines) == 1 and state.readings:
            self._show_lines(self._images, state.readings)
        elif state.readings:
            new = [_line(reading) for reading in state.readings[len(self.view.lines) :]]
            self._set(self.view, lines=[*self.view.lines, *new])
        name = _turned(name, state.quarters)
        self._set(self.view, status=f"Reading {name}: {len(state.readings)} of {len(state.lines)} lines …")

    def _show_lines(self, images: list[np.ndarray], readings: list[Reading]) -> None:
        """Lines alone; a single one as the network sees it."""
        self._images, shown = images, {"picture": b"", "size": [0, 0]}
        if len(images) == 1:
            pixels = prepare_pixels(images[0], width_divisor=self._loaded().model.width_divisor)
            shown = {"picture": _encoded(Image.fromarray(pixels), "PNG"), "size": list(pixels.shape[::-1])}
        lines = [_line(reading) for reading in readings]
        self._set(self.view, mode="lines", boxes=[[0, 0, 0, 0]] * len(lines), lines=lines, **shown)

    def _read_strokes(self, strokes: list, rows: list, cancel: threading.Event) -> None:
        recognizer = self._loaded()
        rows = rows if len(rows) == len(strokes) else [0] * len(strokes)
        lines = [[stroke for stroke, at in zip(strokes, rows, strict=True) if at == row] for row in sorted(set(rows))]
        images = [strokes_to_line(line) for line in lines]
        readings = recognizer.read_lines(images)
        with self._lock:
            if not cancel.is_set():
                self._show_lines(images, readings)
            self._finish("your writing", len(readings), len(readings), cancel)

    def _finish(self, name: str, read: int, found: int, cancel: threading.Event) -> None:
        if self._cancel is not cancel:  # something else is being read already
            return
        if cancel.is_set():
            self._set(self.view, status=f"Stopped: {read} of {found} lines of {name} were read.")
        elif not found:
            raise ValueError(NO_WRITING)
        else:
            sure = np.mean([line["confidence"] for line in self.view.lines])
            self._set(self.view, status=f"Read {name}. About {sure:.0%} of the characters are right.")

    # What the front ends ask for, in the kernel's thread

    def _on_strokes(self, change) -> None:
        strokes, rows = change["new"], list(self.pad.rows)
        if strokes:
            self._read("your writing", lambda cancel: self._read_strokes(strokes, rows, cancel))
        else:
            self._clear()

    def _clear(self) -> None:
        self._cancel.set()
        self._images, self._cancel = [], threading.Event()
        empty = {"picture": b"", "size": [0, 0], "boxes": [], "lines": [], "error": "", "busy": False}
        status = READY if self.recognizer else LOADING
        self._set(self.view, number=self.view.number + 1, status=status, **empty)

    def _on_message(self, widget: ipywidgets.Widget, message: dict, buffers: list) -> None:
        kind = message.get("kind")
        if kind == "picture" and buffers:
            self.show(bytes(buffers[0]), _printable(message.get("name")))
        elif kind == "refused":
            self._clear()
            self._set(self.view, status="", error=_printable(f"{message.get('name')}: {message.get('why')}"))
        elif kind == "sample" and message.get("of") == "page":
            self.show(SAMPLE / "page.png", "the sample page (synthetic)")
        elif kind == "sample":
            from hwrlib.data import EXAMPLE, load_lines  # here, as it takes a second that the pad need not wait for

            line = load_lines("validation", "sample")[EXAMPLE - 1]["image"]
            self.show(line, f"line {EXAMPLE} of the sample (synthetic)")
        elif kind == "again" and self._picture:
            self._again(str(message.get("as", "")), int(message.get("turn", 0)))
        elif kind == "pad":
            self.pad.layout.display = None
            self._set(self.pictures, shown=False)
            self._on_strokes({"new": self.pad.strokes})
        elif kind == "stop":
            self._cancel.set()
        elif kind == "stop teaching":
            self._cancel_teaching.set()
        elif kind == "visitor" and self.view.visitors and re.fullmatch("[0-9a-f]{32}", str(message.get("name"))):
            self.folder = self._home / message["name"]
            self._count()
        elif kind in ("keep", "undo", "zip", "teach"):
            work = {
                "keep": lambda: self._keep(message),
                "undo": self._undo,
                "zip": self._send_zip,
                "teach": self._teach,
            }
            self._try(work[kind])
        widget.send({"kind": "heard"})

    def _try(self, work: Callable[[], None]) -> None:
        try:
            self._set(self.view, error="")
            work()
        except FAILURES as error:
            self._set(self.view, error=_why(error))

    def _again(self, kind: str, turn: int) -> None:
        name, page = self._picture
        kept = kind if kind in ("line", "page") else ""
        quarters = (self._quarters + turn) % 4 if turn or self._quarters else None
        self._set(self.pictures, kind=kept)
        self._read(name, lambda cancel: self._read_picture(name, page, quarters, cancel))

    def _keep(self, message: dict) -> None:
        """Keep lines of the reading in view; what is wrong with one is said beside it."""
        if message.get("number") != self.view.number:
            return
        lines, done = list(self.view.lines), []
        for k, text in message["lines"]:
            try:
                path = keep(self.folder, self._images[k], text)
            except FAILURES as error:
                lines[k] = lines[k] | {"said": f"Not kept: {_why(error)}"}
                continue
            done.append((self.view.number, k, path))
            unknown = "".join(sorted(set(text) - set(self.recognizer.model.alphabet.characters)))
            said = (
                f"Kept. The network cannot write {unknown}, so it will not learn from this line."
                if unknown
                else "Kept."
            )
            lines[k] = lines[k] | {"said": said, "kept": True}
        self._keeps += [done] if done else []
        self._set(self.view, lines=lines)
        self._count()

    def _undo(self) -> None:
        lines = list(self.view.lines)
        for number, k, path in self._keeps.pop() if self._keeps else []:
            forget(path)
            if number == self.view.number:
                lines[k] = lines[k] | {"said": "Taken back.", "kept": False}
        self._set(self.view, lines=lines)
        self._count()

    def _count(self) -> None:
        place = "" if self.view.visitors else f" in {self.folder}"
        self._set(self.view, kept=count(self.folder), undoable=bool(self._keeps), place=place)

    def _send_zip(self) -> None:
        self.view.send({"kind": "zip", "name": "my_lines.zip"}, buffers=[as_zip(self.folder)])

    # Teaching, in its thread

    def _teach(self) -> None:
        if self.view.teaching.get("running"):
            return
        self._cancel_teaching = threading.Event()
        self._set(self.view, teaching={"running": True, "says": "Preparing the lines …"})
        self._submit(self._teacher, functools.partial(self._attempt_teaching, self._cancel_teaching))

    def _attempt_teaching(self, stop: threading.Event) -> None:
        from hwrlib.app.teaching import teach  # here, since the pad need not wait for Accelerate

        network = self.folder.with_name(f"{self.folder.name}_network")

        def tell(done: int, total: int) -> None:
            self._set(self.view, teaching={"running": True, "done": done, "total": total, "says": f"step {done}"})

        says = "The teaching went wrong."
        try:
            lesson = teach(self._loaded(), self.folder, network, tell, stop)
            says = lesson.says() if lesson else "Stopped. The network has not changed."
            self.recognizer = lesson.recognizer if lesson else self.recognizer
        except FAILURES as error:
            says = _why(error)
        finally:
            self._set(self.view, teaching={"running": False, "says": says})


def _line(reading: Reading) -> dict:
    """A reading as the front end shows it."""
    characters = [[c.text, round(c.confidence, 3), *c.columns] for c in reading.characters]
    others = list(dict.fromkeys(text for text, _ in reading.alternatives if text != reading.text))
    shown = {"text": reading.text, "confidence": reading.confidence, "characters": characters, "alternatives": others}
    return shown | {"kept": False, "said": ""}


def _turned(name: str, quarters: int) -> str:
    return f"{name}, turned by {90 * quarters}°" if quarters else name


def _encoded(image: Image.Image, kind: str) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **({"quality": 65} if kind == "JPEG" else {"optimize": True}))
    return data.getvalue()


def _why(error: Exception) -> str:
    why = str(error).removeprefix("the bytes").removeprefix(":").strip()  # how hwrlib.images calls what was sent
    return _printable(why or type(error).__name__)


def _printable(text: object) -> str:
    """A text from outside without lone surrogates, which no message can carry."""
    return str(text).encode(errors="replace").decode()
