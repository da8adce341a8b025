"""The app: whatever is written or given is read line by line, corrected, kept and learnt from (chapter 7)."""

import base64
import os
import re
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, RLock

import ipywidgets
import numpy as np

from hwrlib import SAMPLE
from hwrlib.app.corrections import count_lines, remove_line, save_line, zip_lines
from hwrlib.app.widgets import DrawingPad, Pictures, ReadingView, sendable, shown_line, shown_picture, strokes_to_line
from hwrlib.files import FAILURES
from hwrlib.images import load_page
from hwrlib.page.lines import NO_WRITING, PageLine
from hwrlib.recognizer import PageReading, Picture, Recognizer, mean_confidence

PICTURES = {"line": SAMPLE / "line.png", "page": SAMPLE / "page.png"}
LOADING = "Loading the network … The pad can be used already."
READY = "Write on the pad, or give a picture of a line or a page."
EMPTY = {"picture": b"", "size": [0, 0], "boxes": [], "lines": [], "mode": "lines", "busy": False, "error": ""}


class ReadingApp(ipywidgets.VBox):
    """A pad and pictures; whatever they get is read at once, line by line, and can be corrected, kept and learnt from.

    Reading and teaching have a thread each, so that they can be stopped. Under Voila each visitor has a folder.

    Arguments:
        load: makes the recognizer while the pad is used already; with a beam for a decoder it shows alternatives.
        folder: where corrected lines are kept; made when the first is.
        poster: a PNG that stands in for the app where no kernel runs.
    """

    _ipython_display_ = None  # of ipywidgets 7, which knows no poster

    def __init__(self, load: Callable[[], Recognizer], folder: str | Path = "my_lines", poster: str | None = None):
        self.folder = self._home = Path(folder)
        self.poster, self.recognizer, self._load = poster, None, load
        half = {"flex": "1 1 360px", "min_width": "0"}
        self.pad, self.pictures, self.view = DrawingPad(layout=half), Pictures(), ReadingView(layout=half)
        self.view.visitors, self.view.status = os.environ.get("SERVER_SOFTWARE", "").startswith("voila/"), LOADING
        super().__init__([self.pictures, ipywidgets.HBox([self.pad, self.view], layout={"flex_flow": "row wrap"})])
        self.add_class("hwr-app")
        if self.view.visitors:
            self.folder = self._home / secrets.token_hex(16)  # until it is known who it is
        self._images: list[np.ndarray] = []  # of the lines in view
        self._kept: dict[str, dict] = {}  # by the line's id: what is shown of a kept line that is read again
        self._saved: list[dict[str, Path]] = []  # the lines' ids and files, of each time that some were kept
        self._picture: tuple[str, Picture, int] | None = None  # its name, as it was given, how far it was turned
        self._lock = RLock()  # two threads and the kernel's own set traits
        self._cancel, self._cancel_teaching = Event(), Event()
        self._reader, self._teacher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._answers = {
            "picture": lambda message, data: self.show(bytes(data[0]), sendable(message["name"])),
            "refused": lambda message, _: self._count(error=sendable(f"{message['name']}: {message['why']}")),
            "sample": lambda message, _: self.show(PICTURES[message["of"]], f"the sample {message['of']} (synthetic)"),
            "again": lambda message, _: self._read_again(message["as"], message.get("turn", 0)),
            "pad": lambda *_: self._on_strokes(),
            "stop": lambda *_: self._cancel.set(),
            "keep": lambda message, _: self._keep(message["number"], message["lines"]),
            "undo": lambda *_: self._undo(),
            "zip": lambda *_: self.view.send({"kind": "zip", "name": "my_lines.zip"}, [zip_lines(self.folder)]),
            "teach": lambda *_: self._start_teaching(),
            "stop teaching": lambda *_: self._cancel_teaching.set(),
            "visitor": lambda message, _: self._welcome(message["name"]),
        }
        self.pad.observe(lambda _: self._on_strokes(), "strokes")
        for widget in (self.pad, self.pictures, self.view):
            widget.on_msg(self._on_message)
        self._count()
        self._reader.submit(self._attempt, self._loaded, "the network")

    def _repr_mimebundle_(self, **_) -> tuple[dict, dict]:
        """The pad's bundle, in whose metadata anywidget tells Colab where to find its widgets, made the app's."""
        bundle, metadata = self.pad._repr_mimebundle_()
        bundle["application/vnd.jupyter.widget-view+json"]["model_id"] = self.model_id
        bundle["text/plain"] = "The app needs a running kernel."
        if self.poster:
            bundle["image/png"] = base64.b64encode(Path(self.poster).read_bytes()).decode()
            alt = "The app with its sample page (synthetic): the lines boxed on the left, their text on the right"
            metadata["image/png"] = {"alt": alt}
        return bundle, metadata

    def show(self, image: Picture, name: str = "the picture") -> None:
        """Read a line or page, any image that :func:`hwrlib.prepare` takes, and show the result or what is wrong."""
        with self._lock:
            self._picture = name, image, 0
            self.pictures.shown, self.pad.layout.display = True, "none"
            self._read_again("", 0)

    def _set(self, widget: ipywidgets.Widget, reading: Event | None = None, **traits) -> None:
        """Set traits that belong together, in one message; not those of a reading that was left for another."""
        with self._lock, widget.hold_sync():
            for name, value in traits.items() if reading in (None, self._cancel) else ():
                setattr(widget, name, value)

    def _attempt(self, work: Callable[[], object], name: str = "", reading: Event | None = None) -> None:
        """Do something; what goes wrong is shown, and what nobody foresaw is raised as well."""
        try:
            work()
        except Exception as error:
            why = sendable(error)
            self._set(self.view, reading, status="", error=why if name in why else f"{name}: {why}")
            if not isinstance(error, FAILURES):
                raise

    def _loaded(self) -> Recognizer:
        if self.recognizer is None:
            self.recognizer = self._load()
            if self.view.status == LOADING and not self.view.busy:
                self.view.status = READY
        return self.recognizer

    def _clear(self, status: str, **traits) -> Event:
        """Empty the view and leave whatever was being read; return what will cancel the next reading."""
        with self._lock:
            self._cancel.set()
            self._cancel, self._images = Event(), []
            self._set(self.view, number=self.view.number + 1, status=status, **(EMPTY | traits))
            return self._cancel

    def _read(self, name: str, read: Callable[[], tuple[np.ndarray | None, Iterable[PageReading]]]) -> None:
        """Empty the view and fill it while something is read: a picture (H, W), or strokes without one."""
        cancel = self._clear(f"Reading {name} …" if self.recognizer else LOADING, busy=True)

        def job() -> None:
            if self._cancel is cancel:
                self._attempt(lambda: self._follow(name, *read(), cancel), name, cancel)
            self._set(self.view, cancel, busy=False)

        self._reader.submit(job)

    def _follow(self, name: str, page: np.ndarray | None, states: Iterable[PageReading], cancel: Event) -> None:
        """Show how far a reading is, until it is done, stopped or left for another."""
        rotation = None
        for state in states:
            with self._lock:  # or another reading might begin between the question and the showing
                if self._cancel is not cancel:
                    return
                if rotation != state.rotation or not state.readings:
                    self._images = [line.image for line in state.lines]
                    picture = shown_picture(name, page, state, self.recognizer.model.width_divisor)
                    self._set(self.view, number=self.view.number + 1, lines=[], **picture)
                    rotation = state.rotation
                    self._picture = None if page is None else (name, page, rotation)
                title = f"{name}, turned by {rotation}°" if rotation else name
                count, stopped = f"{len(state.readings)} of {len(state.lines)} lines", cancel.is_set()
                status = f"Stopped: {count} of {title} were read." if stopped else f"Reading {title}: {count} …"
                lines = list(self.view.lines)
                for k in range(len(lines), len(state.readings)):
                    line = shown_line(k, state.readings[k], self._images[k])
                    lines.append(line | self._kept.get(line["id"], {}))
                self._set(self.view, status=status, lines=lines)
            if stopped:
                return
        if not state.lines:
            raise ValueError(NO_WRITING)
        sure = mean_confidence(state.readings)
        said = "There is no text on it." if sure is None else f"About {sure:.0%} of the characters are right."
        self._set(self.view, cancel, status=f"Read {title}. {said}")

    def _read_strokes(self, strokes: list, rows: list) -> tuple[None, Iterable[PageReading]]:
        """Read each line on the pad, by the row of each stroke."""
        lines = [[stroke for stroke, at in zip(strokes, rows, strict=True) if at == row] for row in sorted(set(rows))]
        images = [strokes_to_line(line) for line in lines]
        lines = [PageLine.whole(image) for image in images]
        return None, [PageReading(lines, self._loaded().read_lines(images))]

    def _on_message(self, widget: ipywidgets.Widget, message: dict, buffers: list) -> None:
        """Do what a front end asks for, in the kernel's thread."""
        widget.send({"kind": "heard"})
        if answer := self._answers.get(message.get("kind")):
            with self._lock:  # the reader adds lines meanwhile
                self._attempt(lambda: answer(message, buffers))

    def _on_strokes(self) -> None:
        strokes, rows, self._picture = self.pad.strokes, list(self.pad.rows), None
        self.pictures.shown, self.pad.layout.display = False, None
        if strokes:
            self._read("your writing", lambda: self._read_strokes(strokes, rows))
        else:
            self._clear(READY if self.recognizer else LOADING)

    def _read_again(self, kind: str, turn: int) -> None:
        """Read the picture as a "line", as a "page" or as what it seems to be (""), turned by some quarters more."""
        if self._picture:
            name, image, rotation = self._picture
            rotation = (rotation + 90 * turn) % 360 if turn or rotation else None
            self._picture = name, image, rotation or 0  # more turns may be asked for before it is read
            self.pictures.kind, how = kind, (kind or None, rotation)
            self._read(name, lambda: (page := load_page(image, name), self._loaded().iter_page(page, *how)))

    def _welcome(self, visitor: str) -> None:
        if self.view.visitors and re.fullmatch("[0-9a-f]{32}", visitor):
            self.folder = self._home / visitor
            self._count()

    def _keep(self, number: int, texts: list[tuple[int, str]]) -> None:
        """Keep lines of the reading in view; what is wrong with one is said beside it."""
        if number != self.view.number:
            return
        lines, done = list(self.view.lines), {}
        for k, text in texts:
            if lines[k]["kept"]:  # by the click before
                continue
            try:
                done[lines[k]["id"]] = save_line(self.folder, self._images[k], text)
                unknown = "".join(sorted(set(text) - set(self.recognizer.model.alphabet.characters)))
                but = f" The network cannot write {unknown}, so it will not learn from this line." if unknown else ""
                about = {"said": f"Kept.{but}", "kept": True}
                self._kept[lines[k]["id"]] = about | {"text": text, "characters": []}
            except FAILURES as error:
                about = {"said": f"Not kept: {sendable(error)}"}
            lines[k] = lines[k] | about
        self._saved += [done] if done else []
        self._count(lines=lines, error="")

    def _undo(self) -> None:
        gone = self._saved[-1] if self._saved else {}
        for line_id, path in gone.items():
            remove_line(path)
            self._kept.pop(line_id, None)
        del self._saved[-1:]
        back = {"said": "Taken back.", "kept": False}
        self._count(lines=[line | back if line["id"] in gone else line for line in self.view.lines], error="")

    def _count(self, **traits) -> None:
        place = "" if self.view.visitors else f" in {self.folder}"
        self._set(self.view, kept=count_lines(self.folder), undoable=bool(self._saved), place=place, **traits)

    def _start_teaching(self) -> None:
        if not self.view.teaching.get("running"):
            self._cancel_teaching.clear()
            self._set(self.view, teaching={"running": True, "says": "Preparing the lines …"}, error="")
            self._teacher.submit(self._attempt, self._teach)

    def _teach(self) -> None:
        from hwrlib.app.teaching import teach  # here, since the pad need not wait for Accelerate

        def on_step(done: int, total: int) -> bool:
            self._set(self.view, teaching={"running": True, "done": done, "total": total, "says": f"step {done}"})
            return self._cancel_teaching.is_set()

        says = ""
        try:
            network = self.folder.with_name(f"{self.folder.name}_network")
            self.recognizer, says = teach(self._loaded(), self.folder, network, on_step)
        finally:
            self._set(self.view, teaching={"running": False, "says": says})
