"""Many pages: each exactly once, whatever is broken, and whoever is killed."""

import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hwrlib.__main__ import main
from hwrlib.archive.bulk import (
    ATTEMPTED,
    ATTEMPTS,
    SCHEMA,
    Reader,
    read_archive,
    read_rows,
    show_progress,
    start_ray,
    write_part,
)
from hwrlib.archive.sources import find_items
from hwrlib.ctc import Character, Reading
from hwrlib.data import DataError, load_lines

HERE = Path(__file__).resolve().parents[2]


class Stub:
    """Reads a page as its brightness, slowly; what is tested here is not what is read."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def read_page(self, pixels):
        time.sleep(self.seconds)
        text = str(int(pixels[0, 0]))
        letters = tuple(Character(c, 0.5, k, k + 1, box=(k, 0, 1, 9)) for k, c in enumerate(text))
        return [Reading(text, 0.0, 0.5, letters, box=(0, 0, 9, 9))]


@pytest.fixture
def archive(tmp_path):
    """Six pages in five files, one of them broken."""
    folder = tmp_path / "archive"
    (folder / "box").mkdir(parents=True)
    for k in range(3):
        Image.new("L", (30, 20), k).save(folder / "box" / f"{k}.png")
    Image.new("L", (30, 20), 3).save(folder / "two.tif", save_all=True, append_images=[Image.new("L", (30, 20), 4)])
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no more of it")
    return folder


PAGES = ["box/0.png", "box/1.png", "box/2.png", "broken.jpg", "two.tif", "two.tif#2"]


def reader(output, formats=(), done=frozenset(), recognizer=None):
    (output / ATTEMPTED).mkdir(parents=True, exist_ok=True)
    return Reader(lambda: recognizer or Stub(), "m", str(output), formats, done)


def rows_of(reader, archive):
    return [json.loads(row["json"]) for item in find_items(archive) for row in reader(item._asdict())]


def test_a_worker_makes_a_row_a_page_and_its_files(archive, tmp_path):
    rows = rows_of(reader(tmp_path / "out", ("text", "json")), archive)
    pages = [row for row in rows if "sha256" in row]
    assert sorted(row["path"] for row in pages) == PAGES
    assert [row["pages"] for row in rows if "sha256" not in row] == [1, 1, 1, 1, 2]
    texts = {row["path"]: row["text"] for row in pages}
    assert texts == {
        "box/0.png": "0",
        "box/1.png": "1",
        "box/2.png": "2",
        "broken.jpg": "",
        "two.tif": "3",
        "two.tif#2": "4",
    }
    errors = [row["error"] for row in pages if row["error"]]
    assert len(errors) == 1 and errors[0].startswith("broken.jpg")
    assert all(len(row["sha256"]) == 64 and row["model"] == "m" and row["seconds"] >= 0 for row in pages)
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.txt"))
    assert files == ["box/0.png.txt", "box/1.png.txt", "box/2.png.txt", "two.tif-2.txt", "two.tif.txt"]
    assert (tmp_path / "out" / "two.tif-2.txt").read_text() == "4\n"
    write_part(tmp_path / "out", pages)
    (one, *_) = read_rows(tmp_path / "out")
    assert list(one) == SCHEMA.names
    assert one["lines"][0]["words"] == [{"text": "0", "confidence": 0.5, "box": [0, 0, 1, 9]}]


def test_pages_that_are_there_are_not_read_again_but_changed_ones_are(archive, tmp_path):
    pages = [row for row in rows_of(reader(tmp_path / "out"), archive) if "sha256" in row]
    done = frozenset((row["path"], row["sha256"]) for row in pages)
    assert not [row for row in rows_of(reader(tmp_path / "out", done=done), archive) if "sha256" in row]
    Image.new("L", (30, 20), 77).save(archive / "box" / "1.png")
    (row,) = [row for row in rows_of(reader(tmp_path / "out", done=done), archive) if "sha256" in row]
    assert (row["path"], row["text"]) == ("box/1.png", "77")


def test_photos_of_a_phone_are_read(archive, tmp_path, capsys):
    heif = pytest.importorskip("pillow_heif", reason="pip install pillow-heif to read HEIC photos")
    heif.register_heif_opener()
    for name, level in (("a.heic", 40), ("b.HEIF", 200)):
        Image.new("RGB", (64, 32), (level, level, level)).save(archive / name, "HEIF")
    (archive / "c.heic").write_bytes((archive / "a.heic").read_bytes()[:300])
    pages = {row["path"]: row for row in rows_of(reader(tmp_path / "out"), archive) if "sha256" in row}
    assert sorted(pages) == ["a.heic", "b.HEIF", *PAGES[:4], "c.heic", *PAGES[4:]]
    assert int(pages["a.heic"]["text"]) == pytest.approx(40, abs=3)
    assert int(pages["b.HEIF"]["text"]) == pytest.approx(200, abs=3)
    assert pages["c.heic"]["error"].startswith("c.heic: this is")
    load_lines("validation", "sample")[0]["image"].convert("RGB").save(tmp_path / "line.heic", "HEIF", quality=90)
    assert main(["read", str(tmp_path / "line.heic"), "--decoder", "greedy", "--precision", "no"]) == 0
    assert len(capsys.readouterr().out) > 10


def test_whatever_a_page_raises_is_its_error(archive, tmp_path):
    class Failing(Stub):
        def read_page(self, pixels):
            raise KeyError("unheard of")

    pages = [row for row in rows_of(reader(tmp_path / "out", recognizer=Failing()), archive) if "sha256" in row]
    assert all(row["error"] for row in pages) and len(pages) == 6
    assert not list((tmp_path / "out" / ATTEMPTED).iterdir())


def test_a_page_of_which_workers_died_is_given_up(archive, tmp_path):
    class Watching(Stub):
        def read_page(self, pixels):
            (self.mark,) = (tmp_path / "out" / ATTEMPTED).iterdir()  # there while the page is read
            return super().read_page(pixels)

    (item,) = find_items(archive / "box" / "1.png")
    watching = Watching()
    worker = reader(tmp_path / "out", recognizer=watching)
    first, _ = worker(item._asdict())
    assert json.loads(first["json"])["error"] is None
    watching.mark.write_bytes(b"." * ATTEMPTS)  # as it is after so many kills
    first, _ = worker(item._asdict())
    assert json.loads(first["json"])["error"] == f"{ATTEMPTS} workers died while they read this page"


@pytest.mark.parametrize("layout", ["image", "bytes"])
def test_a_data_set_is_read_row_by_row(tmp_path, layout):
    images = []
    for k in range(5):
        Image.new("L", (30, 20), k).save(tmp_path / "one.png")
        data = (tmp_path / "one.png").read_bytes()
        images.append({"bytes": data, "path": None} if layout == "image" else data)
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table({"image": images, "text": list("abcde")}), folder / "train-0.parquet", row_group_size=2)
    assert [item.row_group for item in find_items(folder)] == [0, 1, 2]
    pages = [row for row in rows_of(reader(tmp_path / "out"), folder) if "sha256" in row]
    assert [(row["path"], row["text"]) for row in pages] == [(f"train-0.parquet/{k}", str(k)) for k in range(5)]


def test_a_source_can_be_a_list_a_file_or_nothing_of_use(archive, tmp_path):
    listed = tmp_path / "pages.txt"
    listed.write_text(f"{archive}/box/0.png\n\n{archive}/two.tif\n")
    assert [item.path for item in find_items(listed)] == [f"{archive}/box/0.png", f"{archive}/two.tif"]
    assert [item.name for item in find_items(archive / "two.tif")] == ["two.tif"]
    listed.write_text("a.png\nb.png\na.png\n")
    with pytest.raises(DataError, match=r"a\.png is listed twice"):
        find_items(listed)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "no.parquet")
    with pytest.raises(DataError, match="no column image, but text"):
        find_items(tmp_path / "no.parquet")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_items(tmp_path / "nowhere")


def test_the_bar_counts_pages_broken_ones_and_unsure_lines(archive, tmp_path, capsys):
    rows = rows_of(reader(tmp_path / "out"), archive)
    assert list(show_progress(iter(rows), 5)) == rows
    shown = capsys.readouterr().err
    assert "5/5" in shown and "5 lines under 80% sure, 1 pages broken" in shown and "pages/min" in shown


@pytest.fixture(scope="module")
def ray():
    module = pytest.importorskip("ray")
    module.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    start_ray(workers=2)
    yield module
    module.shutdown()


class Deadly(Stub):
    """Dies of a page, as of one that takes all memory."""

    def read_page(self, pixels):
        if pixels[0, 0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read_page(pixels)


def test_killed_workers_lose_no_page_and_double_none_and_a_page_that_kills_them_is_given_up(ray, archive, tmp_path):
    for k in range(3, 12):
        Image.new("L", (30, 20), k).save(archive / "box" / f"{k}.png")
    make, killed = functools.partial(Deadly, 0.3), set()
    for row in read_archive(find_items(archive), tmp_path / "out", make, "m", workers=2):
        worker = int(row["worker"].rpartition(":")[2]) if "sha256" in row and row["error"] is None else None
        if worker and len(killed) < 2 and worker not in killed and psutil.pid_exists(worker):
            os.kill(worker, signal.SIGKILL)
            killed.add(worker)
    rows = read_rows(tmp_path / "out")
    assert len(killed) == 2
    assert sorted(row["path"] for row in rows) == sorted([*PAGES, *(f"box/{k}.png" for k in range(3, 12))])
    errors = {row["path"]: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"box/1.png", "broken.jpg"}
    assert errors["box/1.png"] == f"{ATTEMPTS} workers died while they read this page"
    other = list(read_archive(find_items(archive), tmp_path / "out", Stub, "another model", workers=1))
    assert sum("sha256" in row for row in other) == 15


DRIVER = """
import sys
from hwrlib.archive import bulk
from hwrlib.archive.sources import find_items
from hwrlib.tests.test_archive import Stub
import functools
bulk.PART_SECONDS = 0
if __name__ == "__main__":
    for row in bulk.read_archive(find_items(sys.argv[1]), sys.argv[2], functools.partial(Stub, 0.3), "m", workers=2):
        print(row["path"], flush=True)
"""


def test_a_killed_driver_is_followed_by_one_that_reads_the_rest(ray, archive, tmp_path):
    for k in range(3, 12):
        Image.new("L", (30, 20), k).save(archive / "box" / f"{k}.png")
    command = [sys.executable, "-c", DRIVER, str(archive), str(tmp_path / "out")]
    driver = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True)
    family = psutil.Process(driver.pid)
    for _ in itertools.islice(driver.stdout, 8):
        pass
    children = family.children(recursive=True)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    before = read_rows(tmp_path / "out")
    assert 2 <= len(before) < 15
    for process in children:  # without their driver, Ray's processes end by themselves, but only after some seconds
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    rows = [row for row in read_archive(find_items(archive), tmp_path / "out", Stub, "m", workers=1) if "sha256" in row]
    assert len(rows) == 15 - len(before)
    assert sorted(row["path"] for row in read_rows(tmp_path / "out")) == sorted(
        {*PAGES, *(f"box/{k}.png" for k in range(12))}
    )


def test_a_half_written_part_is_no_part(tmp_path):
    (tmp_path / "pages-1.parquet.new").write_bytes(b"PAR1 cut off")
    assert read_rows(tmp_path) == []
    write_part(tmp_path, [])
    assert not list(tmp_path.glob("*.parquet"))
