"""Where pages come from, and many of them: each exactly once, whatever is broken, and whoever is killed."""

import contextlib
import functools
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pypdfium2
import pytest
from fpdf import FPDF
from PIL import Image

from hwrlib import WEIGHTS
from hwrlib.__main__ import main
from hwrlib.archive.bulk import SCHEMA, read_archive, read_rows, start_ray
from hwrlib.archive.sources import Item, find_items, iter_pages, open_item
from hwrlib.ctc import Character, Reading
from hwrlib.files import DataError
from hwrlib.model import weights_version
from hwrlib.tests.conftest import encoded

HERE = Path(__file__).resolve().parents[2]
PAGES = ["box/0.png", "box/1.png", "box/2.png", "broken.jpg", "two.tif", "two.tif#2"]


class Stub:
    """Reads a page as its brightness, slowly; what is tested here is not what is read."""

    def __init__(self, seconds=0.0, deadly=None, endless=()):
        self.seconds, self.deadly, self.endless = seconds, deadly, endless

    def read_page(self, pixels):
        time.sleep(600 if pixels[0, 0] in self.endless else self.seconds)
        if pixels[0, 0] == self.deadly:  # as a page does that takes all memory
            os.kill(os.getpid(), signal.SIGKILL)
        text, corners = str(int(pixels[0, 0])), ((0, 0), (9, 0), (9, 9), (0, 9))
        letters = tuple(Character(c, 0.5, k, k + 1, box=(k, 0, 1, 9)) for k, c in enumerate(text))
        return [Reading(text, 0.0, 0.5, letters, box=(0, 0, 9, 9), baseline=corners[2:], outline=corners)]


def grey(level):
    return Image.new("L", (30, 20), level)


@pytest.fixture
def archive(tmp_path):
    """Six pages in five files, one of them broken."""
    (tmp_path / "archive" / "box").mkdir(parents=True)
    for k in range(3):
        grey(k).save(tmp_path / "archive" / "box" / f"{k}.png")
    grey(3).save(tmp_path / "archive" / "two.tif", save_all=True, append_images=[grey(4)])
    (tmp_path / "archive" / "broken.jpg").write_bytes(b"\xff\xd8\xff no more of it")
    return tmp_path / "archive"


def read(archive, output, formats=(), recognizer=None, model="m"):
    """The rows of pages that one run reads."""
    items, make = find_items(archive, output), lambda: recognizer or Stub()
    rows = list(read_archive(items, output, make, model, formats, workers=0))
    assert sum("sha256" not in row for row in rows) == len(items)
    return {row["path"]: row for row in rows if "sha256" in row}


def test_each_page_becomes_a_row_and_files(archive, tmp_path):
    pages = read(archive, tmp_path / "out", ("text", "json"))
    assert sorted(pages) == PAGES and [pages[name]["text"] for name in PAGES] == ["0", "1", "2", "", "3", "4"]
    assert pages["broken.jpg"]["error"].startswith("broken.jpg") and pages["two.tif#2"]["error"] is None
    assert all(len(row["sha256"]) == 64 and row["model"] == "m" and row["seconds"] >= 0 for row in pages.values())
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.txt"))
    assert files == ["box/0.png.txt", "box/1.png.txt", "box/2.png.txt", "two.tif-2.txt", "two.tif.txt"]
    stored = read_rows(tmp_path / "out")
    assert sorted(row["path"] for row in stored) == PAGES and list(stored[0]) == SCHEMA.names
    assert stored[0]["lines"][0]["words"] == [{"text": "0", "confidence": 0.5, "box": [0, 0, 1, 9]}]


def test_a_second_run_reads_what_changed_failed_or_lacks_a_file_but_not_at_once(archive, tmp_path):
    out = tmp_path / "out"
    (out / "two.tif.txt").mkdir(parents=True)  # it cannot be written
    (out / "two.tif.txt" / "full").touch()
    assert read(archive, out, ("text",))["two.tif"]["error"]
    assert list(read(archive, out, ("text",))) == ["broken.jpg", "two.tif"]
    (out / "two.tif.txt" / "full").unlink()
    (out / "two.tif.txt").rmdir()
    assert read(archive, out, ("text",))["two.tif"]["error"] is None and (out / "two.tif.txt").read_text() == "3\n"
    grey(77).save(archive / "box" / "1.png")
    assert [row["text"] for row in read(archive, out, ("text",)).values()] == ["77", ""]
    assert list(read(archive, out, ("text", "json"))) == PAGES and (out / "two.tif-2.json").exists()
    assert sorted(row["path"] for row in read_rows(out)) == sorted([*PAGES, "box/1.png"])  # the old one and the new
    (out / "pages-1.parquet.new").write_bytes(b"PAR1 cut off")  # no part: it is half-written
    with filelock.FileLock(out / ".lock"), pytest.raises(RuntimeError, match="another run is using"):
        read(archive, out, model="another")
    assert len(read(archive, out, model="another")) == 6


@pytest.mark.parametrize("output", ["result", "."])
def test_an_output_in_the_source_is_no_page_of_it(archive, output):
    grey(0).save(archive / "own.v1.pdf")
    for _ in range(2):
        read(archive, archive / output, ("text", "pdf"))
    assert sorted(row["path"] for row in read_rows(archive / output)) == sorted([*PAGES, "own.v1.pdf"])
    assert sorted(item.name for item in find_items(archive)) == sorted([*PAGES[:-1], "own.v1.pdf"])  # for another


def test_the_command_reads_an_archive_and_says_which_pages_are_broken_or_blank(archive, tmp_path, capsys):
    command = ["archive", str(archive), str(tmp_path / "out"), "--workers", "0", "--format", "text"]
    command += ["--decoder", "greedy", "--precision", "fp32"]
    assert main(command) == 1
    said = [row for row in capsys.readouterr().err.splitlines() if row.startswith("hwrlib: ")]
    assert said.pop(3).startswith("hwrlib: broken.jpg: this is no image")
    assert said == [f"hwrlib: {name}: no writing was found" for name in PAGES if name != "broken.jpg"]
    assert {row["model"] for row in read_rows(tmp_path / "out")} == {f"{weights_version(WEIGHTS)}-greedy"}
    (archive / "broken.jpg").unlink()
    assert main(command) == 0 and "hwrlib: " not in capsys.readouterr().err


def test_a_package_that_is_missing_is_named_in_one_sentence(monkeypatch):
    for name in ("ray", "pypdfium2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeError, match=r'pip install "ray\[data\]"'):
        start_ray()
    (page,) = iter_pages(b"%PDF-1.7", "a.pdf")
    assert "a.pdf: this is a PDF: pip install pypdfium2" in str(page.pixels)


def test_what_is_in_a_folder_is_read_or_said(archive, tmp_path, capsys):
    picture = (archive / "box" / "0.png").read_bytes()
    for name in ("a.jfif", "b.JPE", "c.jp2", "d.svg", "e", "._f.png", "dir.png/g.png", "__MACOSX/h.png", ".x/i.png"):
        (archive / name).parent.mkdir(exist_ok=True)
        (archive / name).write_bytes(picture)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "j.png").write_bytes(picture)
    (archive / "link").symlink_to(tmp_path / "linked")
    (tmp_path / "linked" / "circle").symlink_to(archive)
    names = [item.name for item in find_items(archive)]
    assert sorted(names) == sorted([*PAGES[:-1], "a.jfif", "b.JPE", "dir.png/g.png", "link/j.png"])
    assert "1 of .jp2, 1 of .svg, 1 of none" in capsys.readouterr().err
    (archive / "box" / "pages-1.parquet").touch()
    assert "box/0.png" not in [item.name for item in find_items(archive)]
    assert "box: left out" in capsys.readouterr().err


def test_a_name_that_is_no_utf_8_is_spelt_out(archive, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (archive / "box" / "0.png").rename(archive / name)
    except OSError:
        pytest.skip("this file system takes none")
    pages = read(archive, tmp_path / "out", ("alto",))
    assert pages["caf\\xe9.png"]["text"] == "0" and (tmp_path / "out" / "caf\\xe9.png.alto.xml").exists()
    (tmp_path / "pages.txt").write_bytes(os.fsencode(archive / name))
    assert next(open_item(find_items(tmp_path / "pages.txt")[0])).pixels.shape == (20, 30)


def test_a_source_can_be_a_data_set_a_list_a_file_or_nothing_of_use(archive, tmp_path):
    images = [(archive / "box" / f"{k}.png").read_bytes() for k in range(3)]
    for layout in (images, [{"bytes": data, "path": None} for data in images]):
        pq.write_table(pa.table({"image": layout}), archive / "train-0.parquet", row_group_size=2)
        items = find_items(archive / "train-0.parquet")
        assert [item.row_group for item in items] == [0, 1]
        pages = [page for item in items for page in open_item(item)]
        assert [(page.name, page.pixels[0, 0]) for page in pages] == [(f"train-0.parquet/{k}", k) for k in range(3)]
    pq.write_table(pa.table({"image": [f"{archive}/box/0.png"]}), archive / "train-0.parquet")  # no row names a file
    (page,) = open_item(find_items(archive / "train-0.parquet")[0])
    assert "empty" in str(page.pixels)
    listed = tmp_path / "pages.txt"
    listed.write_text(f"{archive}/box/0.png\n\n{archive}/two.tif\n")
    assert find_items(listed) == [Item(name, name) for name in (f"{archive}/box/0.png", f"{archive}/two.tif")]
    assert find_items(archive / "two.tif") == [Item("two.tif", str(archive / "two.tif"))]
    listed.write_text("a.png\nb.png\nb/../a.png\n")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "no.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 cut off")
    wrong = {"pages.txt": r"a\.png is listed twice", "no.parquet": "no column image, but text"}
    wrong |= {"cut.parquet": r"cut\.parquet cannot be read as parquet"}
    for name, why in (wrong | {"nowhere": "nowhere: no such file", "empty": "empty: no image"}).items():
        with pytest.raises(DataError if name in wrong else FileNotFoundError, match=why):
            find_items(tmp_path / name)


def pdf(*sizes, picture=None):
    """A PDF of pages so many points large."""
    made = FPDF(unit="pt")
    for size in sizes:
        made.add_page(format=size)
        if picture is not None:
            made.image(picture, 0, 0, *size)
    return bytes(made.output())


def test_the_pages_of_a_pdf_are_drawn_at_200_dpi_or_as_fine_as_their_picture_with_their_forms():
    line = Image.fromarray(np.tile(np.repeat(np.array([[0, 255]], np.uint8), 50, axis=1), (50, 1)))
    first, second = iter_pages(b"\n\n junk of a mail \n" + pdf((72, 36), (36, 72), picture=line), "two.pdf")
    assert (first.pixels.shape, second.pixels.shape) == ((100, 200), (200, 100))
    assert (first.name, second.name, first.dpi) == ("two.pdf", "two.pdf#2", 200)
    assert first.pixels[50, 40] < 10 and first.pixels[50, 160] > 245
    (fine,) = iter_pages(pdf((24, 12), picture=line.resize((400, 200))), "fine.pdf")
    assert fine.pixels.shape == (200, 400) and fine.dpi == pytest.approx(1200)
    for options, said in (({"dpi": (300, 300)}, 300), ({"dpi": (72, 72)}, None), ({}, None)):  # 72: as cameras write
        assert next(iter_pages(encoded(grey(0), "TIFF", **options), "a.tif")).dpi == said
    form = b"""%PDF-1.7
    1 0 obj <</Type/Catalog /Pages 2 0 R /AcroForm <</Fields [4 0 R]>> >> endobj
    2 0 obj <</Type/Pages /Kids [3 0 R] /Count 1>> endobj
    3 0 obj <</Type/Page /Parent 2 0 R /MediaBox [0 0 72 36] /Rotate 90 /Annots [4 0 R]>> endobj
    4 0 obj <</Type/Annot /Subtype/Widget /FT/Tx /T(a) /V(b) /F 4 /Rect [0 0 72 36] /AP <</N 5 0 R>> >> endobj
    5 0 obj <</Type/XObject /Subtype/Form /BBox [0 0 72 36] /Length 24>> stream
0 0 0 rg 0 0 72 36 re f \nendstream endobj
    trailer <</Root 1 0 R>>"""
    (page,) = iter_pages(form, "form.pdf")
    assert page.pixels.shape == (200, 100) and page.pixels.max() < 10


def test_what_is_wrong_with_a_file_is_said_before_anything_is_drawn():
    (error,) = iter_pages(pdf((72, 72))[:200], "cut.pdf")
    assert re.match(r"cut\.pdf cannot be opened", str(error.pixels))
    pypdfium2.PdfDocument.new().save(none := io.BytesIO())
    (error,) = iter_pages(none.getvalue(), "none.pdf")  # a PDF without pages
    assert re.match(r"none\.pdf cannot be opened", str(error.pixels))
    fine, huge = iter_pages(pdf((72, 72), (14_000, 14_000)), "huge.pdf")
    assert fine.pixels.shape == (200, 200) and re.match(r"huge\.pdf, page 2, .*38889 x 38889", str(huge.pixels))
    (many,) = iter_pages(pdf(*[(72, 72)] * 1001), "many.pdf")
    assert "1,001 pages" in str(many.pixels)
    bomb = pdf((72, 72), picture=Image.new("L", (10, 10))).replace(b"/Width 10", b"/Width 90000")
    (error,) = iter_pages(bomb.replace(b"/Height 10", b"/Height 90000"), "bomb.pdf")
    assert re.match(r"bomb\.pdf, page 1, .*90000 x 90000", str(error.pixels)), error
    (error,) = iter_pages(b"no image", "nowhere.png")
    assert str(error.pixels).count("nowhere.png") == 1 and "bytes" not in str(error.pixels)


@pytest.fixture(scope="module")
def ray():
    import ray as module

    module.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    start_ray(workers=2)
    yield module
    module.shutdown()


def test_killed_workers_lose_no_page_and_double_none_and_a_page_that_kills_them_is_given_up(ray, archive, tmp_path):
    for k in range(3, 12):
        grey(k).save(archive / "box" / f"{k}.png")
    make, killed = functools.partial(Stub, 0.3, deadly=1), set()
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
    assert errors["box/1.png"] == "3 workers died while they read this page"


def test_a_network_that_cannot_be_loaded_or_a_ray_that_does_not_start_is_said(ray, archive, tmp_path, monkeypatch):
    def without_weights():
        raise DataError("model.safetensors: no weights of this network")

    def init(*_, **__):
        raise Exception("The current node timed out during startup.")

    with pytest.raises(RuntimeError, match=r"^Ray ended \(.*no weights of this network\); what was read is kept"):
        list(read_archive(find_items(archive), tmp_path / "out", without_weights, "m", workers=1))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RuntimeError, match="Ray did not start"):
        start_ray()


DRIVER = """
import functools, sys
from hwrlib.archive import bulk
from hwrlib.archive.sources import find_items
from hwrlib.tests.test_archive import Stub
bulk.PART_SECONDS = 0
if __name__ == "__main__":
    make = functools.partial(Stub, endless=(8, 9))
    for row in bulk.read_archive(find_items(sys.argv[1]), sys.argv[2], make, "m", workers=2):
        print(row["path"], flush=True)
"""


def test_a_killed_driver_is_followed_by_one_that_reads_the_rest(ray, archive, tmp_path):
    for k in range(3, 12):
        grey(k).save(archive / "box" / f"{k}.png")
    command = [sys.executable, "-c", DRIVER, str(archive), str(tmp_path / "out")]
    driver = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True)
    for _ in itertools.islice(driver.stdout, 8):
        pass
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    before = {row["path"] for row in read_rows(tmp_path / "out") if row["error"] is None}
    assert len(before) >= 2 and before.isdisjoint({"box/8.png", "box/9.png"})
    for process in children:  # without their driver, Ray's processes end by themselves, but only after some seconds
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    rows = list(read_archive(find_items(archive), tmp_path / "out", Stub, "m", workers=1))
    pages = {*PAGES, *(f"box/{k}.png" for k in range(12))}
    assert {row["path"] for row in rows if "sha256" in row} == pages - before
    assert sorted(row["path"] for row in read_rows(tmp_path / "out")) == sorted(pages)
