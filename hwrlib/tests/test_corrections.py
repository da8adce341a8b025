"""Kept lines: readable by everything, never overwritten, whole after a crash and with many writers."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest

from hwrlib.app import corrections
from hwrlib.app.corrections import as_zip, count, forget, keep
from hwrlib.data import DataError, load_lines
from hwrlib.image_files import ImageError, load_grey

ROOT = Path(corrections.__file__).parent.parent.parent
TEXTS = ['"Yes", she said, and left.', "it's 5, 6 or 7", 'a "quoted" end"', "plain", "007", "Grüße, Ångström", "\\n"]
TEXTS += ["NaN", "null", "NA", "None", "nan", "true", "1e5", "-", "[]", "{}", "1958-03-04"]


def line(seed=0):
    image = np.full((40, 300), 255, np.uint8)
    image[8:32, 10 + 7 * seed : 290 : 23] = 0
    return image


def imagefolder(folder, cache):
    """The folder as `datasets` reads it, without hwrlib."""
    return datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(cache))["train"]


def rows(folder):
    with open(folder / "metadata.jsonl", encoding="utf-8") as file:
        return [(row["file_name"], row["text"]) for row in map(json.loads, file)]


def test_kept_lines_come_back_from_load_lines_and_from_datasets(tmp_path):
    folder = tmp_path / "new" / "lines"
    paths = [keep(folder, line(k), text) for k, text in enumerate(TEXTS)]
    assert rows(folder) == [(path.name, text) for path, text in zip(paths, TEXTS, strict=True)]
    loaded, found = load_lines("train", folder), imagefolder(folder, tmp_path / "cache")
    assert loaded["text"][:] == found["text"][:] == TEXTS
    for k, (one, other) in enumerate(zip(loaded["image"], found["image"], strict=True)):
        assert (np.asarray(one) == line(k)).all()
        assert (np.asarray(other) == line(k)).all()


@pytest.mark.parametrize("text", ["NaN", "null", "NA", "007", "true"])
def test_a_lone_text_that_looks_like_a_value_stays_a_text(tmp_path, text):
    keep(tmp_path / "lines", line(), text)
    assert load_lines("train", tmp_path / "lines")["text"][:] == [text]
    assert imagefolder(tmp_path / "lines", tmp_path / "cache")["text"][:] == [text]


def test_the_image_is_kept_in_grey_and_in_its_own_size(tmp_path):
    colour = np.dstack([line(), line(), line() // 2 + 100]).astype(np.uint8)
    kept = load_grey(keep(tmp_path, colour, "a"))
    assert kept.shape == (40, 300)
    assert np.abs(kept - load_grey(colour)).max() <= 0.5


def test_the_same_line_twice_is_two_lines(tmp_path):
    assert keep(tmp_path, line(), "a") != keep(tmp_path, line(), "a")
    assert [text for _, text in rows(tmp_path)] == ["a", "a"]


def test_white_space_is_tidied(tmp_path):
    keep(tmp_path, line(), "  two\tparts\u00a0here \n")
    assert rows(tmp_path)[0][1] == "two parts here"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("one\ntwo", "more than one line"),
        ("one\u2028two", "more than one line"),
        ("one\rtwo", "more than one line"),
        ("a\x00b", "cannot be printed"),
        ("a\ud83d", "cannot be printed"),
    ],
)
def test_a_text_that_is_none_is_refused_and_leaves_nothing(tmp_path, text, why):
    with pytest.raises(ValueError, match=why):
        keep(tmp_path / "lines", line(), text)
    assert not (tmp_path / "lines").exists()


def test_an_image_that_a_training_would_refuse_is_refused(tmp_path):
    with pytest.raises(ImageError, match="taller than wide"):
        keep(tmp_path / "lines", np.zeros((300, 40), np.uint8), "a")
    assert not (tmp_path / "lines").exists()


# What others wrote


OTHERS = {
    "well formed": b"file_name,text\na.png,by hand\n",
    "CR alone": b"file_name,text\ra.png,one\rb.png,two\r",
    "Latin-1": b"file_name,text\na.png,Gr\xfc\xdfe\n",
    "empty last field": b"file_name,text,note\na.png,one,\nb.png,two,",
    "no line end": b"file_name,text\na.png,by hand",
    "torn": b'file_name,text\na.png,one\n"b.png","not whole',
    "other columns": b"image,label\na.png,1\n",
    "empty": b"",
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS.keys())
def test_a_csv_is_left_as_it_is(tmp_path, content):
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"rows are in metadata\.csv, .* another folder"):
        keep(tmp_path, line(), "a")
    assert (tmp_path / "metadata.csv").read_bytes() == content
    assert not [*tmp_path.glob("*.png"), *tmp_path.glob("*.jsonl")]


ROW = b'{"file_name": "a.png", "text": "one"}\n'


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (ROW.replace(b"\n", b"\r") * 2, "row 0: Extra data"),
        (ROW + b'{"file_name": "b.png", "text": "Gr\xfc\xdfe"}\n', "row 1: it is not UTF-8"),
        (ROW + b'{"file_name": "b.png", "text": ', "row 1: Expecting value"),
        (ROW + b'{"file_name": "b.png", "label": 1}\n', "row 1: no text"),
        (ROW + b'{"file_name": "../b.png", "text": "two"}\n', "row 1: .* leads out of"),
        ("{}".encode("utf-16"), "row 0"),
    ],
    ids=["CR alone", "Latin-1", "torn", "another kind", "outside", "UTF-16"],
)
def test_rows_that_cannot_be_read_are_left_as_they_are(tmp_path, content, why):
    (tmp_path / "metadata.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=rf"metadata\.jsonl, {why}"):
        keep(tmp_path, line(), "a")
    assert (tmp_path / "metadata.jsonl").read_bytes() == content
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    "content",
    [
        ROW.removesuffix(b"\n"),  # as many editors save
        b"\xef\xbb\xbf" + ROW.replace(b"\n", b"\r\n"),
        ROW + b'{"text": "", "writer": "me", "file_name": "gone.png"}',
        ROW + b"\n",
        b"",
    ],
    ids=["no line end", "Windows", "an empty text and a column", "an empty line", "empty"],
)
def test_rows_of_others_stay_to_the_last_byte(tmp_path, content):
    (tmp_path / "metadata.jsonl").write_bytes(content)
    path = keep(tmp_path, line(), "new")
    before, after = content, (tmp_path / "metadata.jsonl").read_bytes()
    assert after.startswith(before)
    assert json.loads(after[len(before) :]) == {"file_name": path.name, "text": "new"}
    assert after.endswith(b"}\n")


def test_a_link_in_the_folder_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("stays")
    folder = tmp_path / "lines"
    folder.mkdir()
    (folder / ".metadata.jsonl.new").symlink_to(tmp_path / "precious")
    keep(folder, line(), "a")
    assert (tmp_path / "precious").read_text() == "stays"
    assert load_lines("train", folder)["text"][:] == ["a"]


# Crashes, full disks, many writers


def test_wherever_a_crash_comes_all_rows_are_whole(tmp_path, monkeypatch):
    keep(tmp_path, line(), "a")
    before = (tmp_path / "metadata.jsonl").read_bytes()
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(corrections.os, name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            keep(tmp_path, line(1), "b")
        assert (tmp_path / "metadata.jsonl").read_bytes() == before
        assert load_lines("train", tmp_path)["text"][:] == ["a"]
    keep(tmp_path, line(2), "c")
    assert load_lines("train", tmp_path)["text"][:] == ["a", "c"]
    assert imagefolder(tmp_path, tmp_path.parent / "cache")["text"][:] == ["a", "c"]


def test_a_full_disk_is_said_and_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    keep(tmp_path, line(), "a")

    def full(file):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(corrections.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            keep(tmp_path, line(1), "b")
    assert len(list(tmp_path.glob("*.png"))) == 1
    keep(tmp_path, line(2), "c")
    assert load_lines("train", tmp_path)["text"][:] == ["a", "c"]


WRITER = """
import pathlib, sys, time
import numpy as np
from hwrlib.app.corrections import keep
folder, writer = pathlib.Path(sys.argv[1]), sys.argv[2]
(folder / f"ready {writer}").touch()
while len(list(folder.glob("ready *"))) < 2:
    time.sleep(0.001)
for k in range(15):
    keep(folder / "lines", np.full((40, 300), 255, np.uint8), f'writer {writer}, line "{k}"')
"""


def test_processes_that_keep_at_once_lose_nothing(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, str(k)], cwd=ROOT) for k in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    folder = tmp_path / "lines"
    assert sorted(t for _, t in rows(folder)) == sorted(f'writer {w}, line "{k}"' for w in range(2) for k in range(15))
    assert len({name for name, _ in rows(folder)}) == 30
    assert len(load_lines("train", folder)) == 30


def test_the_zip_holds_what_was_kept_and_loads_elsewhere(tmp_path):
    for k, text in enumerate(TEXTS):
        keep(tmp_path / "a", line(k), text)
    with zipfile.ZipFile(io.BytesIO(as_zip(tmp_path / "a"))) as archive:
        assert sorted(archive.namelist()) == sorted(["metadata.jsonl", *(name for name, _ in rows(tmp_path / "a"))])
        archive.extractall(tmp_path / "b")
    assert load_lines("train", tmp_path / "b")["text"][:] == TEXTS


def test_a_zip_of_nothing_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no line has been kept"):
        as_zip(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "link.png", "linked/secret.png", "C:/secret.png"])
def test_nothing_outside_the_folder_is_packed(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(b"secret")
    keep(tmp_path / "lines", line(), "a")
    (tmp_path / "lines" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "lines" / "linked").symlink_to(tmp_path, target_is_directory=True)
    with open(tmp_path / "lines" / "metadata.jsonl", "a") as file:
        file.write(json.dumps({"file_name": name, "text": "b"}) + "\n")
    with pytest.raises(DataError, match=r"metadata\.jsonl, row 1: .* leads out of"):
        as_zip(tmp_path / "lines")


def test_rows_that_are_a_link_are_not_packed(tmp_path):
    keep(tmp_path / "a", line(), "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metadata.jsonl").symlink_to(tmp_path / "a" / "metadata.jsonl")
    with pytest.raises(DataError, match="leads out of"):
        as_zip(tmp_path / "b")


def test_an_image_that_is_gone_or_a_pipe_is_named(tmp_path):
    path = keep(tmp_path, line(), "a")
    path.unlink()
    for make in (lambda path: None, os.mkfifo):
        make(path)
        with pytest.raises(FileNotFoundError, match=path.name):
            as_zip(tmp_path)


def test_the_lines_are_counted_and_the_last_taken_back(tmp_path):
    assert count(tmp_path / "lines") == 0
    paths = [keep(tmp_path / "lines", line(k), text) for k, text in enumerate(TEXTS)]
    assert count(tmp_path / "lines") == len(TEXTS)
    forget(paths[1])
    assert [text for _, text in rows(tmp_path / "lines")] == [TEXTS[0], *TEXTS[2:]]
    assert not paths[1].exists()
    with pytest.raises(DataError, match="no row of"):
        forget(paths[1])
    assert count(tmp_path / "lines") == len(TEXTS) - 1


def test_rows_of_others_stay_when_a_line_is_taken_back(tmp_path):
    content = b"\xef\xbb\xbf" + ROW.replace(b"\n", b"\r\n")
    (tmp_path / "metadata.jsonl").write_bytes(content)
    forget(keep(tmp_path, line(), "new"))
    assert (tmp_path / "metadata.jsonl").read_bytes() == content
