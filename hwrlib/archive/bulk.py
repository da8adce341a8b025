"""Read an archive: many pages on many cores or machines with Ray Data, each exactly once, whatever dies (chapter 9)."""

import dataclasses
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
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from hwrlib.archive.formats import close_spaces, page_file, plain_words, write_page
from hwrlib.archive.sources import Item, Page, open_item
from hwrlib.files import one_run, write_whole
from hwrlib.recognizer import Recognizer, mean_confidence

OBJECT_STORE = 256 * 2**20  # bytes, on this machine: what passes through it are names and texts, no pictures
PART_SECONDS = 30  # after which what was read is written: a driver that is killed loses no more
ENVIRONMENT = {"RAY_agent_register_timeout_ms": "300000", "RAY_worker_niceness": "0"}  # Ray's own: 15, the last to run
ENVIRONMENT |= {"RAY_USAGE_STATS_ENABLED": "0"}  # nothing leaves the machine
ATTEMPTED = ".attempts"  # folder of the output: a mark for each page that is being read
ATTEMPTS = 3  # a page that workers have died of so often is broken
TEXT, SHARE = pa.string(), pa.float32()
WORD = pa.struct({"text": TEXT, "confidence": SHARE, "box": pa.list_(pa.int32())})
LINE = pa.struct([*WORD, ("rotation", pa.int16()), ("words", pa.list_(WORD))])
FIELDS = {"path": TEXT, "sha256": TEXT, "text": TEXT, "confidence": SHARE, "lines": pa.list_(LINE)}
SCHEMA = pa.schema(FIELDS | {"model": TEXT, "seconds": SHARE, "error": TEXT, "worker": TEXT})


def read_archive(
    items: list[Item],
    output: str | Path,
    make_recognizer: Callable[[], Recognizer],
    model: str,
    formats: tuple[str, ...] = (),
    workers: int | None = None,
    address: str | None = None,
) -> Iterator[dict]:
    """Read all pages of an archive that are not in its output yet, and yield each as it comes, as a row of ``SCHEMA``.

    The rows go to parquet files in the output, which this process alone writes, each whole or not at all. So no page is
    there twice unless it changed, and what a killed run has not written is read again by the next; so is a page with an
    error, or one that lacks a file in another format, which its worker writes before. A source file that is done with
    is yielded as its path alone. A RuntimeError says that another run writes there, or that Ray is not there or fails.

    Arguments:
        items, output: from :func:`hwrlib.archive.sources.find_items`, and a folder; both where all machines see them.
        make_recognizer: called once in each worker, for its first page.
        model: what tells its weights and decoder from others: pages read by another are read again.
        formats: of ``hwrlib.archive.FORMATS``: one more file a page in each of them.
        workers: processes that read; one for each GPU that Ray finds, or for each CPU, where left out; 0: this process
            reads, without Ray.
        address: as for :func:`start_ray`.
    """
    output = Path(output).resolve()
    with one_run(output):
        shutil.rmtree(output / ATTEMPTED, ignore_errors=True)  # of a run that was killed
        (output / ATTEMPTED).mkdir()
        _drop_errors(output)
        rows = read_rows(output, ["path", "sha256", "model"])
        stored = {(row["path"], row["sha256"]) for row in rows if row["model"] == model}
        done = {page for page in stored if all(page_file(page[0], name, output).exists() for name in formats)}
        pages, started = [], time.monotonic()
        try:
            for row in _ray_rows(items, workers, address, (make_recognizer, model, output, formats, done)):
                if "sha256" in row and (row["path"], row["sha256"]) not in stored:
                    pages.append(row)
                    if time.monotonic() - started > PART_SECONDS:
                        write_part(output, pages)
                        pages, started = [], time.monotonic()
                yield row
        finally:
            write_part(output, pages)
            shutil.rmtree(output / ATTEMPTED, ignore_errors=True)


def read_rows(output: str | Path, columns: list[str] | None = None) -> list[dict]:
    """The pages in an output of :func:`read_archive`, in the order in which they were read; all columns or some."""
    parts = sorted(Path(output).glob("pages-*.parquet"))
    return [row for part in parts for row in pq.read_table(part, columns=columns).to_pylist()]


def write_part(output: Path, pages: list[dict]) -> None:
    """Write pages as one parquet file that is there whole or not at all."""
    if pages:
        table = pa.Table.from_pylist(pages, schema=SCHEMA)
        write_whole(output / f"pages-{time.time_ns()}.parquet", lambda new: pq.write_table(table, new))


def _drop_errors(output: Path) -> None:
    """Take the pages out that could not be read: they are tried again."""
    for part in output.glob("pages-*.parquet"):
        errors = pq.read_table(part, columns=["error"])["error"]
        if errors.null_count < len(errors):
            sound = pq.read_table(part).filter(pc.field("error").is_null())
            write_whole(part, lambda new, sound=sound: pq.write_table(sound, new))


@dataclasses.dataclass
class Reader:
    """One worker: it loads the network once, for the first page, then reads the pages of one item after the other."""

    make_recognizer: Callable[[], Recognizer]
    model: str
    output: Path
    formats: tuple[str, ...]
    done: set[tuple[str, str]]  # (path, sha256) of pages

    def __post_init__(self):
        self.recognizer = functools.cache(self.make_recognizer)

    def __call__(self, row: dict) -> Iterator[dict]:
        """The pages of an item. All pass as JSON: Ray would guess another type for a page without lines."""
        item = Item(*json.loads(row["json"]))
        for page in open_item(item):
            if (page.name, page.sha256) not in self.done:
                yield {"json": json.dumps(self.read(page))}
        yield {"json": json.dumps({"path": item.name})}

    def read(self, page: Page) -> dict:
        """A page as a row of the output, its files in the other formats written."""
        recognizer = self.recognizer()  # outside of try: where the network cannot be loaded, no page is broken
        start, error = time.perf_counter(), None
        mark = self.output / ATTEMPTED / hashlib.sha256(f"{page.name} {page.sha256}".encode()).hexdigest()
        try:
            if isinstance(page.pixels, Exception):
                raise page.pixels
            if mark.exists() and (died := mark.stat().st_size) >= ATTEMPTS:
                raise RuntimeError(f"{died} workers died while they read this page")
            with mark.open("ab") as file:
                file.write(b".")
            page = dataclasses.replace(page, readings=recognizer.read_page(page.pixels))
            for name in self.formats:
                write_page(page, name, self.output)
        except Exception as caught:  # noqa: BLE001 - whatever it is: one page must not end the reading of all others
            error = str(caught) or type(caught).__name__
        mark.unlink(missing_ok=True)
        readings, names = list(map(close_spaces, page.readings)), ("text", "confidence", "box", "rotation")
        return {
            "path": page.name,
            "sha256": page.sha256,
            "text": "\n".join(reading.text for reading in readings),
            "confidence": mean_confidence(readings),
            "lines": [{name: getattr(r, name) for name in names} | {"words": plain_words(r)} for r in readings],
            "model": self.model,
            "seconds": time.perf_counter() - start,
            "error": error,
            "worker": f"{platform.node()}:{os.getpid()}",
        }


def show_progress(rows: Iterator[dict], total: int) -> Iterator[dict]:
    """Pass rows of :func:`read_archive` on, with a bar that counts broken pages and lines that are not sure."""
    begin, pages, unsure, broken = time.monotonic(), 0, 0, 0
    with tqdm(total=total, unit="file", dynamic_ncols=True) as bar:
        for row in rows:
            if "sha256" in row:
                pages, broken = pages + 1, broken + (row["error"] is not None)
                unsure += sum(line["confidence"] < 0.8 for line in row["lines"])
                rate = 60 * pages / (time.monotonic() - begin)
                bar.set_postfix_str(f"{rate:.0f} pages/min, {unsure} lines under 80% sure, {broken} pages broken")
            else:
                bar.update()
            yield row


def start_ray(address: str | None = None, workers: int | None = None) -> bool:
    """Join the Ray cluster at an address ("auto" finds it) or start Ray here, for so many CPUs; False where it runs."""
    package = Path(__file__).parents[1]
    options = {"address": address, "runtime_env": {"py_modules": [str(package)]}}
    if not address:
        options = {"address": "local", "num_cpus": workers, "object_store_memory": OBJECT_STORE}
        options |= {"include_dashboard": False, "logging_level": logging.ERROR}
        # The workers find the module by this; for a runtime_env Ray would start more processes.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray

        if ray.is_initialized():
            return False
        ray.init(**options, log_to_driver=False)
    except ImportError as error:
        raise RuntimeError('an archive is read with Ray: pip install "ray[data]"') from error
    except Exception as error:  # bare ones too, where a part of Ray is too slow
        raise RuntimeError(f"Ray did not start ({error}); try again, or with fewer --workers") from error
    return True


def _ray_rows(items: list[Item], workers: int | None, address: str | None, reader: tuple) -> Iterator[dict]:
    """The rows that all readers make, in the order in which they are done."""
    if workers == 0:
        read = Reader(*reader)
        yield from (json.loads(row["json"]) for item in items for row in read({"json": json.dumps(item)}))
        return
    own = start_ray(address, workers)
    import ray

    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        found = ray.cluster_resources()
        gpus = int(found.get("GPU", 0))
        workers = workers or gpus or int(found["CPU"])
        a_task = min(16, max(1, len(items) // (8 * workers)))  # items that one task reads; few of them end together
        rows = [{"json": json.dumps(item)} for item in items]
        data = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // a_task))
        pool, gpu = ray.data.ActorPoolStrategy(size=min(workers, len(rows))), 1 if gpus else None
        data = data.flat_map(Reader, fn_constructor_args=reader, compute=pool, num_cpus=1, num_gpus=gpu)
        for row in data.iter_rows():
            yield json.loads(row["json"])
    except ray.exceptions.RayError as error:  # the last line that names an error says what was wrong in a worker
        said = str(error).strip().splitlines()
        why = next((line for line in reversed(said) if "Error: " in line), said[-1])
        raise RuntimeError(f"Ray ended ({why}); what was read is kept: mend this, and run it again") from error
    finally:
        if own:
            ray.shutdown()
