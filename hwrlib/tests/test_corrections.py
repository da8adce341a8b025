"""Kept lines: readable by everything, never overwritten, whole after a crash and with many writers."""

import io
import json
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest

import hwrlib
from hwrlib.app.corrections import remove_line, save_line, zip_lines
from hwrlib.data import load_lines
from hwrlib.files import DataError
from hwrlib.images import ImageError
from hwrlib.tests.conftest import strokes

TEXTS = ['"Yes", she said, and left.', 'a "quoted" end"', "Grüße", "\\n", "  two\tparts\u00a0here \n", "007", "NaN"]
LINE = strokes(300)
ROW = b'{"file_name": "a.png", "text": "one"}\n'


def rows(folder):
    return [(row["file_name"], row["text"]) for row in map(json.loads, open(folder / "metadata.jsonl", "rb"))]


def test_kept_lines_come_back_from_load_lines_from_datasets_and_from_the_zip(tmp_path):
    folder, texts = tmp_path / "new" / "lines", [" ".join(text.split()) for text in TEXTS]
    paths = [save_line(folder, np.dstack([strokes(300, seed=k)] * 3), text) for k, text in enumerate(TEXTS)]
    assert rows(folder) == [(path.name, text) for path, text in zip(paths, texts, strict=True)]
    loaded = load_lines("train", folder)
    found = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded["text"][:] == found["text"][:] == texts
    for k, (one, other) in enumerate(zip(loaded["image"], found["image"], strict=True)):
        assert (np.asarray(one) == strokes(300, seed=k)).all() and (np.asarray(other) == np.asarray(one)).all()
    with zipfile.ZipFile(io.BytesIO(zip_lines(folder))) as archive:
        assert sorted(archive.namelist()) == sorted(["metadata.jsonl", *(path.name for path in paths)])
        archive.extractall(tmp_path / "elsewhere")
    assert load_lines("train", tmp_path / "elsewhere")["text"][:] == texts


def test_a_text_or_an_image_that_is_none_is_refused_and_leaves_nothing(tmp_path):
    for text in ("", " \n ", "one\ntwo", "one\u2028two", "one\rtwo", "a\x00b", "a\ud83d"):
        with pytest.raises(ValueError, match=r"empty or more than one line|cannot be printed"):
            save_line(tmp_path / "lines", LINE, text)
    with pytest.raises(ImageError, match="taller than wide"):
        save_line(tmp_path / "lines", np.zeros((300, 40), np.uint8), "a")
    assert not (tmp_path / "lines").exists()


def test_rows_of_others_stay_to_the_last_byte_also_those_that_cannot_be_read(tmp_path):
    wrong = [
        ROW.decode().encode("utf-16"),
        ROW.replace(b"\n", b"\r") * 2,
        ROW + b'{"file_name": "../b.png", "text": "two"}\n',
    ]
    for second in (b'"text": "Gr\xfc\xdfe"}\n', b'"text": ', b'"label": 1}\n'):
        wrong.append(ROW + b'{"file_name": "b.png", ' + second)
    cases = [(content, "metadata.jsonl", r"metadata\.jsonl, row") for content in wrong]
    for content, name, why in [*cases, (b"file_name,text\na.png,by hand", "metadata.csv", "another folder")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=why):
            save_line(tmp_path, LINE, "a")
        assert (tmp_path / name).read_bytes() == content and not list(tmp_path.glob("*.png"))
    (tmp_path / "metadata.csv").unlink()
    windows = b"\xef\xbb\xbf" + ROW.replace(b"\n", b"\r\n")
    another = b'{"text": "two", "writer": "me", "file_name": "gone.png"}'
    for content in (b"", ROW, windows, ROW + another + b"\n", ROW + b"\n"):
        for kept in {content, content.rstrip()}:  # many editors save no line end
            (tmp_path / "metadata.jsonl").write_bytes(kept)
            path = save_line(tmp_path, LINE, "new")
            after = (tmp_path / "metadata.jsonl").read_bytes()
            assert after.startswith(kept) and json.loads(after[len(kept) :]) == {"file_name": path.name, "text": "new"}
            remove_line(path)
            assert (tmp_path / "metadata.jsonl").read_bytes() in (kept, kept + b"\n") and not path.exists()


def test_a_full_disk_is_said_and_leaves_the_folder_as_it_was(tmp_path):
    save_line(tmp_path, LINE, "a" * 2000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (10, 1000):  # room for nothing, and for the image but not for the rows
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OSError, match="large"):
                save_line(tmp_path, LINE, "b")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert len(list(tmp_path.glob("*.png"))) == 1
    save_line(tmp_path, LINE, "c")
    assert load_lines("train", tmp_path)["text"][:] == ["a" * 2000, "c"]


WRITER = """
import pathlib, sys
import numpy as np
from hwrlib.app.corrections import remove_line, save_line
folder, writer = pathlib.Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
input()
for k in range(15):
    save_line(folder / "lines", np.full((40, 300), 255, np.uint8), f'writer {writer}, line "{k}"')
    remove_line(save_line(folder / "lines", np.full((40, 300), 255, np.uint8), "taken back"))
"""


def test_processes_that_keep_at_once_lose_nothing(tmp_path):
    root, folder, pipe = Path(hwrlib.__file__).parent.parent, tmp_path / "lines", subprocess.PIPE
    command, options = [sys.executable, "-c", WRITER, tmp_path], {"cwd": root, "stdin": pipe, "stdout": pipe}
    writers = [subprocess.Popen([*command, str(k)], text=True, **options) for k in range(2)]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 2
    for writer in writers:
        print(file=writer.stdin, flush=True)
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert sorted(t for _, t in rows(folder)) == sorted(f'writer {w}, line "{k}"' for w in range(2) for k in range(15))
    assert {name for name, _ in rows(folder)} == {path.name for path in folder.glob("*.png")}


def test_nothing_outside_the_folder_and_nothing_that_is_gone_is_packed(tmp_path):
    with pytest.raises(FileNotFoundError, match="no line has been kept"):
        zip_lines(tmp_path / "lines")
    (tmp_path / "secret.png").write_bytes(b"secret")
    save_line(tmp_path / "lines", LINE, "a")
    content = (tmp_path / "lines" / "metadata.jsonl").read_text()
    (tmp_path / "lines" / "link.png").symlink_to(tmp_path / "secret.png")
    row = json.dumps({"file_name": "link.png", "text": "b"})
    (tmp_path / "lines" / "metadata.jsonl").write_text(f"{content}{row}\n")
    with pytest.raises(DataError, match=r"metadata\.jsonl, row \d: .* leads out of"):
        zip_lines(tmp_path / "lines")
    (tmp_path / "lines" / "metadata.jsonl").write_bytes(ROW)
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        zip_lines(tmp_path / "lines")
