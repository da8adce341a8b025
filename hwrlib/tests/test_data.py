"""Lines from every source, each error with its row, and hostile files; lines held out; files written whole."""

import csv
import io
import json
import os
import pickle
import sys

import datasets
import numpy as np
import pytest
from PIL import Image

from hwrlib.data import hold_out, load_lines, training_lines
from hwrlib.files import DataError, inside, read_metadata, write_whole
from hwrlib.tests.conftest import encoded, strokes

IMAGE = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
FEATURES = datasets.Features(image=IMAGE, text=datasets.Value("string"))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 32\n%%EndComments\n{} loop\n"


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """Fails the test where Pillow is about to run a PostScript program, or `datasets` to decode an image."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("datasets decoded an image"))


def png(seed=0):
    return encoded(strokes(96, seed=seed))


def parquet(path, rows, features=FEATURES):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(path))
    return path


def row(text, image=None):
    return {"image": {"bytes": png() if image is None else image, "path": "a.png"}, "text": text}


def folder_of(folder, kind, *rows):
    """A folder of a.png and b.png with these rows of a name and a text."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("a.png", "b.png")):
        (folder / name).write_bytes(png(seed))
    with open(folder / f"metadata.{kind}", "w", newline="", encoding="utf-8") as file:
        if kind == "csv":
            csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("file_name", "text"), *rows])
        else:
            file.writelines(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in rows)
    return folder


def refused(source, reason, error=DataError, split="train"):
    with pytest.raises(error, match=reason):
        load_lines(split, source)


def test_the_hub_is_asked_for_iam_and_for_nothing_else(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        if len(asked) > 1:
            raise ConnectionError("the hub cannot be reached")
        return datasets.Dataset.from_list([row("one")], FEATURES).cast_column("image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    lines = load_lines("validation")
    assert asked == [(("Teklia/IAM-line",), {"split": "validation"})]
    assert lines[0]["image"].size == (96, 32)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        load_lines("train", "iam")


def test_a_local_copy_of_the_hub_or_a_parquet_file_by_name_which_keeps_columns_but_no_other_images(tmp_path, capfd):
    for number, text in enumerate(["one", "two"]):
        parquet(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", [row(text)])
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [row("three")])
    for source in (tmp_path, str(tmp_path), tmp_path / "data"):
        lines = load_lines("train", source)
        assert lines["text"][:] == ["one", "two"] and lines[0]["image"].size == (96, 32)
    assert load_lines("test", tmp_path)["text"][:] == ["three"]
    refused(tmp_path, "validation", FileNotFoundError, "validation")
    features = datasets.Features(FEATURES | {"photo": datasets.Image(), "writer": datasets.Value("int32")})
    rows = [row("one") | {"photo": {"bytes": EPS, "path": "a.png"}, "writer": 7}]
    path = parquet(tmp_path / "x.parquet", rows, features)
    capfd.readouterr()
    lines = load_lines("train", path)
    assert set(lines.column_names) == {"image", "text", "writer", "origin"}
    assert (lines[0]["writer"], lines[0]["origin"]) == (7, f"{path}, row 0")
    assert capfd.readouterr() == ("", "")  # no bar of progress where a command prints


def test_a_folder_of_images(tmp_path):
    rows = [("b.png", 'Größe, "here"'), ("a.png", "007")]
    for kind in ("csv", "jsonl"):
        splits = folder_of(tmp_path / kind / "splits" / "train", kind, *rows).parent
        for folder in (folder_of(tmp_path / kind / "whole", kind, *rows), splits):
            lines = load_lines("train", folder)
            assert lines["text"][:] == ['Größe, "here"', "007"]
            assert np.array_equal(lines[0]["image"], Image.open(io.BytesIO(png(1))))
        refused(splits, "test", FileNotFoundError, "test")


def test_our_rooms_decode_images_whatever_becomes_of_the_lines(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "f", "csv", ("a.png", "one"), ("b.png", "two"))
    path = parquet(tmp_path / "x.parquet", [row("one"), row("two", png(1))])
    for lines in (load_lines("train", folder), load_lines("train", path)):
        both = datasets.concatenate_datasets([lines, lines.select([0])])
        ways = [lines, lines.select([1, 0]), both, lines.select_columns(["image"]), pickle.loads(pickle.dumps(lines))]
        ways += [lines.filter(lambda text: True, input_columns="text"), lines.shuffle(seed=0)]
        for some in ways:
            assert {image.size for image in some["image"]} | {line["image"].size for line in some} == {(96, 32)}
        with monkeypatch.context() as patch:  # texts are had without decoding an image
            patch.setattr("hwrlib.data.LineImage.decode_example", None)
            assert lines["text"][:] == list(lines["text"]) == ["one", "two"]


def test_a_source_that_is_not_there_lacks_a_column_or_is_no_parquet_is_named(tmp_path):
    refused(tmp_path / "nowhere", r"nowhere.*sample", FileNotFoundError)
    refused(tmp_path, r"metadata\.csv", FileNotFoundError)
    if sys.platform == "linux":  # others take no such name
        folder = folder_of(tmp_path / os.fsdecode(b"caf\xe9"), "csv", ("a.png", "one"))
        refused(folder, r"caf\\xe9.*not UTF-8: rename")
    for kind in ("csv", "jsonl"):
        refused(folder_of(tmp_path / kind, kind), rf"metadata\.{kind}: no line in it")
        folder_of(tmp_path / "f", kind, ("a.png", "one"))
    refused(tmp_path / "f", r"both metadata\.jsonl and metadata\.csv")
    features = datasets.Features(image=IMAGE, transcript=datasets.Value("string"))
    path = parquet(tmp_path / "x.parquet", [{"image": row("")["image"], "transcript": "one"}], features)
    refused(path, r"x\.parquet: no text in it.*transcript")
    path = parquet(tmp_path / "z.parquet", [{"image": row("")["image"], "text": ["one", "two"]}], None)
    refused(path, r"z\.parquet: no text in it")
    path = parquet(tmp_path / "y.parquet", [{"image": 1, "text": "one"}], None)
    refused(path, r"y\.parquet: the column image holds no images")
    for content in (b"", b"PAR1", b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(content)
        refused(path, r"y\.parquet cannot be read as parquet")


def test_all_rows_without_text_or_image_are_named_or_left_out_and_damaged_images_when_asked_for(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png())
    wrong = [row(""), row("  \t"), {"image": row("")["image"], "text": None}, {"image": None, "text": "two"}]
    for path in (None, "gone.png", str(tmp_path / "a.png"), "https://example.com/a.png"):  # none is looked for
        wrong.append({"image": {"bytes": None, "path": path}, "text": "two"})
    path = parquet(tmp_path / "x.parquet", [row("one"), *wrong, row("three")])
    refused(path, "(?s)" + ".*".join(rf"{path}, row {number}: " for number in range(1, 9)))
    kept = load_lines("train", path, skip_bad=True)
    assert kept["origin"][:] == [f"{path}, row 0", f"{path}, row 9"]
    assert capsys.readouterr().err.count("left out: ") == 8
    folder = folder_of(tmp_path / "f", "csv", ("a.png", ""), ("gone.png", "two"), ("pipe", "three"), ("circle", "four"))
    os.mkfifo(folder / "pipe")
    (folder / "circle").symlink_to(folder / "circle")
    refused(folder, r"(?s)metadata\.csv, row 0: .*empty.*row 1: .*gone\.png.*row 2: .*row 3: ")
    assert [len(part) for part in training_lines(path.parent / "x.parquet", skip_bad=True)] == [2, 2]
    folder = folder_of(tmp_path / "f", "csv", ("a.png", "one"), ("b.png", "two"))
    (folder / "b.png").write_bytes(EPS)
    with pytest.raises(ValueError, match=r"b\.png.*PostScript"):
        load_lines("train", folder)[1]
    path = parquet(tmp_path / "x.parquet", [row("two", b"no image")])
    with pytest.raises(ValueError, match=r"a\.png: this is no image"):
        load_lines("train", path)[0]


def test_a_file_name_never_leads_outside_but_links_that_stay_inside_are_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    outside = ["../secret.png", "sub/../../secret.png", "..", "/etc/passwd", "C:secret.png", "link.png"]
    outside += ["..\\secret.png", "\\\\host\\share\\a.png", "//host/share/a.png", "a\0.png", "sub/secret.png"]
    folder = folder_of(tmp_path / "outside", "csv")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "sub").symlink_to(tmp_path, target_is_directory=True)
    for name in outside:
        folder_of(folder, "csv", ("a.png", "one"), (name, "two"))
        refused(folder, r"metadata\.csv, row 1: .* leads out of")
    names = ("a.png", "link.png", "sub/b.png", "sub\\c.png", "./b.png")
    folder = folder_of(tmp_path / "f", "jsonl", *((name, "one") for name in names))
    folder_of(folder / "sub", "csv")
    (folder / "sub" / "c.png").write_bytes(png(1))
    (folder / "link.png").symlink_to(folder / "a.png")
    (tmp_path / "elsewhere").symlink_to(folder, target_is_directory=True)
    for place in (folder, tmp_path / "elsewhere"):
        assert [image.size for image in load_lines("train", place)["image"]] == [(96, 32)] * 5
    assert inside(folder, "sub/b.png") == inside(folder, "sub\\b.png") == folder / "sub" / "b.png"


def test_texts_come_back_as_written_and_csv_however_it_was_saved_and_a_row_that_cannot_be_read_is_named(tmp_path):
    texts = ["NaN", "null", "007", "1958-03-04", 'say "hi", she said', "a\u2028b", "lone\rcr", "end\\", "a; b\tc"]
    for kind in ("csv", "jsonl"):
        for text in texts:
            assert read_metadata(folder_of(tmp_path, kind, ("a.png", text)) / f"metadata.{kind}")[0][1] == text
    rows = [["text", "writer", "file_name"], ["one, two; three", "me", "a.png"], ['Größe "3"', "me", "b.png"]]
    for end in ("\r", "\r\n", "\n"):
        for mark in (",", ";", "\t"):
            for code in ("utf-8", "utf-8-sig", "utf-16"):
                content = io.StringIO()
                csv.writer(content, delimiter=mark, lineterminator=end).writerows(rows)
                (tmp_path / "metadata.csv").write_bytes(content.getvalue().encode(code))
                found = read_metadata(tmp_path / "metadata.csv")
                assert found == [(tmp_path / "a.png", "one, two; three"), (tmp_path / "b.png", 'Größe "3"')]
    wrong = [("csv", b"b.png,Gr\xfc\xdfe", "not UTF-8"), ("csv", b"b.png,Hello, world", "double quotes")]
    wrong += [("csv", b"b.png", "a text"), ("csv", b'b.png,"not closed', "unexpected end")]
    wrong += [("csv", b'b.png,"Hello" she said', "expected after"), ("csv", b"x" * 200_000, "field larger")]
    wrong += [("jsonl", b'{"file_name": "b.png", "text": "Gr\xfc"}', "not UTF-8")]
    wrong += [("jsonl", b'{"file_name": "b.png", "text": "\\ud83d"}', "not UTF-8")]
    wrong += [("jsonl", b'{"file_name": "b.png", "te', "Unterminated"), ("jsonl", b"[" * 100_000, "recursion")]
    wrong += [("jsonl", b'{"file_name": "b.png", "text": 7}', "a text"), ("jsonl", b'["b.png", "two"]', "a text")]
    wrong += [("csv", b"a.png,two", "another text in row 0"), ("jsonl", b'{"file_name": "b.png"}', "a text")]
    for kind, second, why in wrong:
        path = folder_of(tmp_path, kind, ("a.png", "one")) / f"metadata.{kind}"
        with open(path, "ab") as file:
            file.write(second + b"\n")
        with pytest.raises(DataError, match=rf"metadata\.{kind}, row 1: .*{why}"):
            read_metadata(path)


def test_every_fifth_line_is_held_out_and_keeps_its_origin(tmp_path):
    for count, held in ((2, 1), (4, 1), (5, 1), (9, 1), (10, 2), (23, 4)):
        texts = [str(k) for k in range(count)]
        kept, out = hold_out(datasets.Dataset.from_dict({"text": texts}))
        assert len(out) == held and {*kept["text"], *out["text"]} == {*texts}
    with pytest.raises(DataError, match="1 line"):
        hold_out(datasets.Dataset.from_dict({"text": ["a"]}))
    one = parquet(tmp_path / "one" / "train.parquet", [row(text) for text in "abcdefghij"]).parent
    kept, out = training_lines(one)
    assert (len(kept), len(out), kept[4]["origin"]) == (8, 2, f"{one / 'train.parquet'}, row 5")
    parquet(one / "validation.parquet", [row("k")])
    assert [len(part) for part in training_lines(one)] == [10, 1]


def test_a_file_or_folder_is_written_whole_or_not_at_all(tmp_path):
    path, folder = tmp_path / "a.txt", tmp_path / "best"

    def fail(new):
        new.write_text("half")
        raise OSError("No space left on device")

    for text in ("old", "new"):
        write_whole(path, lambda new, text=text: new.write_text(text))
        write_whole(folder, lambda new, text=text: (new.mkdir(), (new / "x").write_text(text)))
        assert path.read_text() == (folder / "x").read_text() == text
    for target in (path, folder):
        with pytest.raises(OSError, match=r"could not be written \(No space left on device\); is the disk full"):
            write_whole(target, fail)
    assert path.read_text() == "new" and sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "best"]
