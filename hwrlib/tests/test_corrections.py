"""Kept lines: readable by everything, never overwritten, whole after a crash and with many writers."""

import csv
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest

from hwrlib import corrections
from hwrlib.corrections import as_zip, keep
from hwrlib.data import load_lines
from hwrlib.images import ImageError, load_grey

ROOT = Path(corrections.__file__).parent.parent
TEXTS = ['"Yes", she said, and left.', "it's 5, 6 or 7", 'a "quoted" end"', "plain", "007", "Grüße, Ångström"]


def line(seed=0):
    image = np.full((40, 300), 255, np.uint8)
    image[8:32, 10 + 7 * seed : 290 : 23] = 0
    return image


def rows(folder):
    with open(folder / "metadata.csv", newline="", encoding="utf-8") as file:
        return [(row["file_name"], row["text"]) for row in csv.DictReader(file)]


def test_kept_lines_come_back_from_load_lines_and_from_datasets(tmp_path):
    folder = tmp_path / "new" / "lines"
    paths = [keep(folder, line(k), text) for k, text in enumerate(TEXTS)]
    assert rows(folder) == [(path.name, text) for path, text in zip(paths, TEXTS, strict=True)]
    loaded = load_lines("train", folder)
    found = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded["text"][:] == found["text"][:] == TEXTS
    for k, (one, other) in enumerate(zip(loaded["image"], found["image"], strict=True)):
        assert (np.asarray(one) == line(k)).all()
        assert (np.asarray(other) == line(k)).all()


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
    [("", "empty"), (" \n ", "empty"), ("one\ntwo", "more than one line"), ("a\x00b", "cannot be printed")],
)
def test_a_text_that_is_none_is_refused_and_leaves_nothing(tmp_path, text, why):
    with pytest.raises(ValueError, match=why):
        keep(tmp_path / "lines", line(), text)
    assert not (tmp_path / "lines").exists()


def test_an_image_that_a_training_would_refuse_is_refused(tmp_path):
    with pytest.raises(ImageError, match="taller than wide"):
        keep(tmp_path / "lines", np.zeros((300, 40), np.uint8), "a")
    assert not (tmp_path / "lines").exists()


def test_the_header_of_a_folder_that_exists_is_followed(tmp_path):
    (tmp_path / "metadata.csv").write_bytes(
        b"\xef\xbb\xbftext,writer,file_name\r\nold,me,old.png\r\n"
    )  # as Excel saves
    path = keep(tmp_path, line(), "new, too")
    with open(tmp_path / "metadata.csv", newline="", encoding="utf-8-sig") as file:
        assert list(csv.DictReader(file))[1] == {"text": "new, too", "writer": "", "file_name": path.name}


def test_a_metadata_file_of_another_kind_is_left_alone(tmp_path):
    (tmp_path / "metadata.csv").write_text("image,label\na.png,1\n")
    with pytest.raises(ValueError, match="file_name and text"):
        keep(tmp_path, line(), "a")
    assert [path.name for path in tmp_path.iterdir()] == ["metadata.csv"]
    assert (tmp_path / "metadata.csv").read_text() == "image,label\na.png,1\n"


def test_wherever_a_crash_tears_the_last_row_all_other_rows_stay_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(corrections.os, "fsync", lambda file: None)  # a hundred times would take long
    text = 'Ü, "b"'
    names = [keep(tmp_path, line(k), text).name for k in range(2)]
    whole = (tmp_path / "metadata.csv").read_bytes()
    second = whole.index(names[1].encode()) - 1
    for end in range(len(whole)):
        (tmp_path / "metadata.csv").write_bytes(whole[:end])
        third = keep(tmp_path, line(2), "next")
        *found, last = rows(tmp_path)
        assert last == (third.name, "next")
        if end >= second:
            assert found.pop(0) == (names[0], text)
        # Cut behind a quote of its text, a row looks whole: it is shorter then, but no mixture of two.
        assert all(name in names and text.startswith(part) for name, part in found)
        assert len(found) < 2
        third.unlink()


def test_a_row_without_its_line_end_stays(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,by hand")  # as many editors save
    keep(tmp_path, line(), "b")
    assert [text for _, text in rows(tmp_path)] == ["by hand", "b"]


def test_a_crash_between_image_and_row_leaves_a_folder_that_loads(tmp_path, monkeypatch):
    keep(tmp_path, line(), "a")

    def die(path, row):
        raise KeyboardInterrupt  # as if the kernel had been stopped

    with monkeypatch.context() as patch:
        patch.setattr(corrections, "_append", die)
        with pytest.raises(KeyboardInterrupt):
            keep(tmp_path, line(1), "b")
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert load_lines("train", tmp_path)["text"][:] == ["a"]
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path.parent / "cache"))
    assert found["train"]["text"][:] == ["a"]


def test_a_full_disk_is_said_and_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    keep(tmp_path, line(), "a")

    def full(file):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(corrections.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            keep(tmp_path, line(1), "b")
    keep(tmp_path, line(2), "c")
    assert load_lines("train", tmp_path)["text"][:] == ["a", "c"]


WRITER = """
import pathlib, sys, time
import numpy as np
from hwrlib.corrections import keep
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
    assert (folder / "metadata.csv").read_bytes().count(b"file_name") == 1
    assert len(load_lines("train", folder)) == 30


def test_the_zip_holds_what_was_kept_and_loads_elsewhere(tmp_path):
    for k, text in enumerate(TEXTS):
        keep(tmp_path / "a", line(k), text)
    with open(tmp_path / "a" / "metadata.csv", "ab") as file:
        file.write(b'"torn.png","not whole')
    with zipfile.ZipFile(io.BytesIO(as_zip(tmp_path / "a"))) as archive:
        archive.extractall(tmp_path / "b")
    assert load_lines("train", tmp_path / "b")["text"][:] == TEXTS


def test_a_zip_of_nothing_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no line has been kept"):
        as_zip(tmp_path / "nowhere")
