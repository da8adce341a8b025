"""Read an archive: many pages on many cores or machines with Ray Data, each exactly once, whatever dies (chapter 9)."""

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from hwrlib.archive.formats import ReadPage, plain_words, write_page
from hwrlib.archive.sources import Item, Page, open_item
from hwrlib.checkpoints import write_whole
from hwrlib.ctc import Reading
from hwrlib.recognizer import Recognizer, expected_right

OBJECT_STORE = 256 * 2**20  # bytes, on this machine: what passes through it are names and texts, no pictures
PART = 500  # pages in one parquet file
PART_SECONDS = 30  # after which what was read is written: a driver that is killed loses no more
BUSY_MACHINE = {"RAY_agent_register_timeout_ms": "300000", "RAY_worker_niceness": "0"}  # Ray's own: 15, the last to run
ATTEMPTED = ".attempts"  # folder of the output: a mark for each page that is being read
ATTEMPTS = 3  # a page that workers have died of so often is broken
BOX = pa.list_(pa.int32())
WORD = pa.struct([("text", pa.string()), ("confidence", pa.float32()), ("box", BOX)])
LINE = pa.struct([*WORD, ("rotation", pa.int16()), ("words", pa.list_(WORD))])
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("text", pa.string()),
        ("confidence", pa.float32()),
        ("lines", pa.list_(LINE)),
        ("model", pa.string()),
        ("seconds", pa.float32()),
        ("error", pa.string()),
        ("worker", pa.string()),
    ]
)


def read_archive(
    items: list[Item],
    output: str | Path,
    make_recognizer: Callable[[], Recognizer],
    model: str,
    formats: tuple[str, ...] = (),
    workers: int | None = None,
    address: str | None = None,
) -> Iterator[dict]:
    """Read all pages of an archive that are not in its output yet, and yield each as it comes.

    The pages go to parquet files in the output, which this process alone writes, each whole or not at all. So no page
    is there twice, and what a killed run has not written is read again by the next. A page's files in other formats are
    written by its worker, before. Chapter 9: notebooks/09_read_an_archive.ipynb.

    Arguments:
        items: from :func:`hwrlib.archive.sources.find_items`; on a cluster, in a folder that all machines see.
        output: a folder, made where it is missing; likewise.
        make_recognizer: called once in each worker, for its first page.
        model: what tells its weights and decoder from others: pages read by another are read again.
        formats: of ``hwrlib.archive.formats.FORMATS``: one more file a page in each of them.
        workers: processes that read; one for each GPU that Ray finds, or for each CPU, where left out.
        address: of a Ray cluster, or "auto"; this machine alone where left out.

    Yields:
        a page as a dict with the columns of ``SCHEMA``; ``error`` is None where it could be read. A file whose pages
        are all in the output is yielded as its path alone.

    Raises:
        OSError: the output could not be written.
        ModuleNotFoundError: no Ray: ``pip install "ray[data]"``.
    """
    output = Path(output)
    shutil.rmtree(output / ATTEMPTED, ignore_errors=True)  # of a run that was killed
    (output / ATTEMPTED).mkdir(parents=True, exist_ok=True)
    done = {
        (row["path"], row["sha256"]) for row in read_rows(output, ["path", "sha256", "model"]) if row["model"] == model
    }
    pages, started = [], time.monotonic()
    try:
        for row in _ray_rows(items, workers, address, (make_recognizer, model, str(output), formats, done)):
            if "sha256" in row:
                pages.append(row)
                if len(pages) == PART or time.monotonic() - started > PART_SECONDS:
                    write_part(output, pages)
                    pages, started = [], time.monotonic()
            yield row
    finally:
        write_part(output, pages)
        shutil.rmtree(output / ATTEMPTED, ignore_errors=True)


def read_rows(output: str | Path, columns: list[str] | None = None) -> list[dict]:
    """The pages in an output of :func:`read_archive`, in the order in which they were read.

    Arguments:
        output: the folder.
        columns: of ``SCHEMA``; all where left out.
    """
    parts = sorted(Path(output).glob("pages-*.parquet"))
    return [row for part in parts for row in pq.read_table(part, columns=columns).to_pylist()]


def write_part(output: Path, pages: list[dict]) -> None:
    """Write pages as one parquet file that is there whole or not at all."""
    if pages:
        table = pa.Table.from_pylist(pages, schema=SCHEMA)
        write_whole(output / f"pages-{time.time_ns()}.parquet", lambda new: pq.write_table(table, new))


class Reader:
    """One worker: it loads the network once, for the first page, then reads the pages of one item after the other.

    Arguments:
        make_recognizer, model, output, formats: as for :func:`read_archive`.
        done: (path, sha256) of the pages that are in the output.
    """

    def __init__(
        self,
        make_recognizer: Callable[[], Recognizer],
        model: str,
        output: str,
        formats: tuple[str, ...],
        done: frozenset[tuple[str, str]],
    ):
        self.recognizer, self.model, self.done = functools.cache(make_recognizer), model, done
        self.output, self.formats = Path(output), formats
        self.name = f"{platform.node()}:{os.getpid()}"

    def __call__(self, row: dict) -> Iterator[dict]:
        """The pages of an item, as JSON: Ray would guess another type for a page without lines."""
        item, count = Item(**row), 0
        for page in open_item(item):
            if (page.name, page.sha256) not in self.done:
                count += 1
                yield {"json": json.dumps(self.read(page))}
        yield {"json": json.dumps({"path": item.name, "pages": count})}

    def read(self, page: Page) -> dict:
        """A page as a row of the output, its files in the other formats written."""
        recognizer = self.recognizer()  # outside of try: where the network cannot be loaded, no page is broken
        start, readings, error = time.perf_counter(), [], None
        try:
            if isinstance(page.pixels, Exception):
                raise page.pixels
            with _attempt(self.output / ATTEMPTED / hashlib.sha256(f"{page.name} {page.sha256}".encode()).hexdigest()):
                readings = recognizer.read_page(page.pixels)
                for name in self.formats:
                    write_page(ReadPage(page.name, page.pixels, readings), name, self.output)
        except Exception as caught:  # noqa: BLE001 - whatever it is: one page must not end the reading of all others
            error = str(caught) or type(caught).__name__
        characters = sum(len(reading.text) for reading in readings)
        return {
            "path": page.name,
            "sha256": page.sha256,
            "text": "\n".join(reading.text for reading in readings),
            "confidence": expected_right(readings) / characters if characters else None,
            "lines": [_line(reading) for reading in readings],
            "model": self.model,
            "seconds": time.perf_counter() - start,
            "error": error,
            "worker": self.name,
        }


def show_progress(rows: Iterator[dict], total: int, low: float = 0.8) -> Iterator[dict]:
    """Pass rows of :func:`read_archive` on, with a bar: share, expected end, pages a minute, unsure lines.

    Arguments:
        rows: as they come.
        total: number of items.
        low: the confidence under which a line is counted.
    """
    begin, pages, unsure, broken = time.monotonic(), 0, 0, 0
    with tqdm(total=total, unit="file", dynamic_ncols=True) as bar:
        for row in rows:
            if "sha256" in row:
                pages += 1
                broken += row["error"] is not None
                unsure += sum(line["confidence"] < low for line in row["lines"])
                rate = 60 * pages / (time.monotonic() - begin)
                bar.set_postfix_str(f"{rate:.0f} pages/min, {unsure} lines under {low:.0%} sure, {broken} pages broken")
            else:
                bar.update()
            yield row


def _line(reading: Reading) -> dict:
    about = {name: getattr(reading, name) for name in ("text", "confidence", "box", "rotation")}
    return about | {"words": plain_words(reading)}


@contextlib.contextmanager
def _attempt(mark: Path) -> Iterator[None]:
    """Leave a mark while a page is read: one of which workers die again and again is given up."""
    if mark.exists() and (died := mark.stat().st_size) >= ATTEMPTS:
        raise RuntimeError(f"{died} workers died while they read this page")
    with mark.open("ab") as file:
        file.write(b".")
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)  # a worker that outlives a killed driver may be at the same page


def start_ray(address: str | None = None, workers: int | None = None) -> bool:
    """Start Ray on this machine, or join a cluster; False where it runs already.

    Arguments:
        address: of a cluster, or "auto"; this machine alone where left out.
        workers: CPUs that Ray may use here; all where left out.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about an archive leaves the machine
    for name, value in BUSY_MACHINE.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False
    package = Path(__file__).parents[1]
    if address:
        ray.init(address, runtime_env={"py_modules": [str(package)]}, log_to_driver=False)
        return True
    paths = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for the workers; for a runtime_env Ray would start more
    ray.init(
        "local",
        num_cpus=workers,
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return True


def _ray_rows(items: list[Item], workers: int | None, address: str | None, arguments: tuple) -> Iterator[dict]:
    """The rows that all readers make, in the order in which they are done."""
    own = start_ray(address, workers)
    import ray

    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        found = ray.cluster_resources()
        gpus = int(found.get("GPU", 0))
        workers = workers or gpus or int(found["CPU"])
        a_task = min(16, max(1, len(items) // (8 * workers)))  # items that one task reads; few of them end together
        rows = [item._asdict() for item in items]
        data = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // a_task))
        pool, gpu = ray.data.ActorPoolStrategy(size=min(workers, len(rows))), 1 if gpus else None
        data = data.flat_map(Reader, fn_constructor_args=arguments, compute=pool, num_cpus=1, num_gpus=gpu)
        for row in data.iter_rows():
            yield json.loads(row["json"])
    finally:
        if own:
            ray.shutdown()
