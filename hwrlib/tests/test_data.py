"""Lines from every source, each error with its row, and hostile files; lines held out."""

import csv
import io
import json
import os
import pickle

import datasets
import numpy as np
import pytest
from PIL import Image

from hwrlib.alphabet import REFERENCE
from hwrlib.data import (
    METADATA,
    DataError,
    LineImage,
    hold_out,
    load_lines,
    load_strokes,
    training_lines,
)
from hwrlib.metadata import inside, read_metadata

IMAGE = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
FEATURES = datasets.Features(image=IMAGE, text=datasets.Value("string"))


@pytest.fixture(autouse=True, scope="module")
def quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def png(seed=0, width=96, height=32):
    pixels = np.full((height, width), 255, np.uint8)
    rng = np.random.default_rng(seed)
    for x in rng.integers(4, width - 4, 6):
        pixels[8:24, x : x + 2] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def parquet(path, rows, features=FEATURES):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(path))
    return path


def row(text, image=None):
    return {"image": {"bytes": png() if image is None else image, "path": "a.png"}, "text": text}


def imagefolder(folder, rows, kind, names=("a.png", "b.png")):
    folder.mkdir(parents=True)
    for seed, name in enumerate(names):
        (folder / name).write_bytes(png(seed))
    if kind == "csv":
        content = "file_name,text\n" + "".join(f'{name},"{text}"\n' for name, text in rows)
    else:
        content = "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in rows)
    (folder / f"metadata.{kind}").write_text(content, encoding="utf-8")
    return folder


# Where lines come from


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_embedded_sample(split):
    lines = load_lines(split, "sample")
    assert len(lines) >= 80
    assert isinstance(lines[0]["image"], Image.Image)
    assert all(lines["text"])


def test_the_hub_is_asked_for_iam_and_for_nothing_else(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return datasets.Dataset.from_list([row("one")], FEATURES).cast_column("image", datasets.Image())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    lines = load_lines("validation")
    assert asked == [(("Teklia/IAM-line",), {"split": "validation"})]
    assert (lines["text"][:], lines[0]["image"].size) == (["one"], (96, 32))
    assert isinstance(lines.features["image"], LineImage)


def test_a_hub_that_fails_is_not_replaced_by_other_lines(monkeypatch):
    def load_dataset(*arguments, **options):
        raise ConnectionError("the hub cannot be reached")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        load_lines("train", "iam")


def test_a_local_copy_of_the_hub(tmp_path):
    for number, text in enumerate(["one", "two"]):
        parquet(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", [row(text)])
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [row("three")])
    for source in (tmp_path, str(tmp_path), tmp_path / "data"):
        lines = load_lines("train", source)
        assert lines["text"][:] == ["one", "two"]
        assert lines[0]["image"].size == (96, 32)
    assert load_lines("test", tmp_path)["text"][:] == ["three"]
    with pytest.raises(FileNotFoundError, match="validation"):
        load_lines("validation", tmp_path)


def test_a_parquet_file_by_name_with_columns_of_its_own(tmp_path):
    features = datasets.Features(FEATURES | {"writer": datasets.Value("int32")})
    path = parquet(tmp_path / "mine.parquet", [row("one") | {"writer": 7}], features)
    lines = load_lines("train", path)
    assert lines[0]["text"] == "one"
    assert lines[0]["writer"] == 7


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_folder_of_images(tmp_path, kind):
    rows = [("b.png", 'Größe, "here"' if kind == "jsonl" else "Größe, here"), ("a.png", "NA")]
    imagefolder(tmp_path / "whole", rows, kind)
    imagefolder(tmp_path / "splits" / "train", rows, kind)
    for folder in (tmp_path / "whole", tmp_path / "splits"):
        lines = load_lines("train", folder)
        assert lines["text"][:] == [text for _, text in rows]
        assert np.array_equal(np.asarray(lines[0]["image"]), np.asarray(Image.open(io.BytesIO(png(1)))))
    with pytest.raises(FileNotFoundError, match="test"):
        load_lines("test", tmp_path / "splits")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_transcripts_of_digits_stay_text(tmp_path, kind):
    lines = load_lines("train", imagefolder(tmp_path / "f", [("a.png", "007"), ("b.png", "1.50")], kind))
    assert lines["text"][:] == ["007", "1.50"]


# What is wrong with them


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*sample"):
        load_lines("train", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"metadata\.csv"):
        load_lines("train", tmp_path)


def test_a_missing_column_is_named_and_so_are_those_there(tmp_path):
    features = datasets.Features(image=IMAGE, transcript=datasets.Value("string"))
    path = parquet(tmp_path / "x.parquet", [{"image": row("")["image"], "transcript": "one"}], features)
    with pytest.raises(DataError, match=r"no column text.*transcript"):
        load_lines("train", path)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "metadata.csv").write_text("image,text\na.png,x\n")
    with pytest.raises(DataError, match=r"metadata\.csv, row 0: no text in its columns file_name and text.*'image'"):
        load_lines("train", tmp_path / "f")


@pytest.mark.parametrize(
    "wrong",
    [
        row(""),
        row("  \t"),
        {"image": row("")["image"], "text": None},
        row("two", b"no image"),
        row("two", b"not\x89PNG"),
        {"image": None, "text": "two"},
        {"image": {"bytes": None, "path": None}, "text": "two"},
        {"image": {"bytes": None, "path": "gone.png"}, "text": "two"},
    ],
    ids=["empty text", "blank text", "no text", "text file", "bad image", "no image", "no bytes", "no file"],
)
def test_a_row_of_a_parquet_that_cannot_be_used_is_named(tmp_path, wrong):
    with pytest.raises(DataError, match=r"x\.parquet.*row 1"):
        load_lines("train", parquet(tmp_path / "x.parquet", [row("one"), wrong, row("three")]))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("wrong", [("b.png", ""), ("gone.png", "two"), ("broken.png", "two")])
def test_a_row_of_an_image_folder_that_cannot_be_used_is_named(tmp_path, kind, wrong):
    folder = imagefolder(tmp_path / "f", [("a.png", "one"), wrong], kind)
    (folder / "broken.png").write_bytes(b"")
    with pytest.raises(DataError, match="row 1"):
        load_lines("train", folder)


@pytest.mark.parametrize("second", [{"file_name": "b.png"}, {"file_name": "b.png", "text": None}])
def test_a_row_of_jsonl_without_text_is_named(tmp_path, second):
    folder = imagefolder(tmp_path / "f", [], "jsonl")
    rows = [{"file_name": "a.png", "text": "one"}, second]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="row 1"):
        load_lines("train", folder)


def test_metadata_without_a_row_are_refused(tmp_path):
    with pytest.raises(DataError):
        load_lines("train", imagefolder(tmp_path / "f", [], "csv"))


# Pen strokes


def test_pen_strokes_become_lines(tmp_path):
    stroke = [float(n) for x in range(0, 300, 3) for n in (x, 20 * np.sin(x / 5))]
    features = {"strokes": [[datasets.Value("float32")]], "text": datasets.Value("string")}
    strokes = [{"strokes": [stroke, [310.0, 0.0, 330.0, 30.0]], "text": "wave #"}]
    path = parquet(tmp_path / "s.parquet", strokes, datasets.Features(features))
    rendered = load_strokes(path, REFERENCE)
    assert rendered[0]["text"] == "wave "
    assert rendered[0]["image"].height == 128 < rendered[0]["image"].width


def test_pen_strokes_of_held_out_texts_stay_out_and_a_single_letter_is_a_line(tmp_path):
    bar = [[5.0, 0.0, 5.0, 50.0]]
    ids = {"c04-110z-01": "a", "c04-110-01": "b", "a01-000z-01": "c"}
    features = datasets.Features(
        strokes=[[datasets.Value("float32")]], text=datasets.Value("string"), line_id=datasets.Value("string")
    )
    rows = [{"line_id": line_id, "strokes": bar, "text": text} for line_id, text in ids.items()]
    rendered = load_strokes(parquet(tmp_path / "s.parquet", rows, features), REFERENCE)
    assert rendered["text"][:] == ["b", "c"]
    assert [image.size for image in rendered["image"]] == [(128, 128)] * 2


def test_strokes_that_cannot_be_drawn_name_their_row(tmp_path):
    features = datasets.Features(strokes=[[datasets.Value("float32")]], text=datasets.Value("string"))
    rows = [{"strokes": [[0.0, 0.0, 5.0, 50.0]], "text": "a"}, {"strokes": [[1.0, 2.0, 3.0]], "text": "b"}]
    with pytest.raises(DataError, match=r"s\.parquet, row 1: stroke 0"):
        load_strokes(parquet(tmp_path / "s.parquet", rows, features), REFERENCE)
    with pytest.raises(DataError, match="no column strokes"):
        load_strokes(parquet(tmp_path / "x.parquet", [row("one")]), REFERENCE)


# Who decodes


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 32\n%%EndComments\n{} loop\n"


@pytest.fixture
def ghostscript(monkeypatch):
    """Fails the test where Pillow is about to run a PostScript program."""
    from PIL import EpsImagePlugin

    def run(*_, **__):
        pytest.fail("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)


@pytest.mark.usefixtures("ghostscript")
def test_a_program_in_postscript_is_no_image(tmp_path):
    with pytest.raises(DataError, match=r"x\.parquet, row 1.*PostScript"):
        load_lines("train", parquet(tmp_path / "x.parquet", [row("one"), row("two", EPS)]))
    folder = imagefolder(tmp_path / "f", [("a.png", "one"), ("eps.png", "two")], "csv")
    (folder / "eps.png").write_bytes(EPS)
    with pytest.raises(DataError, match=r"metadata\.csv, row 1.*PostScript"):
        load_lines("train", folder)


@pytest.mark.usefixtures("ghostscript")
def test_no_other_column_is_decoded(tmp_path):
    features = datasets.Features(FEATURES | {"photo": datasets.Image(), "writer": datasets.Value("int32")})
    rows = [row("one") | {"photo": {"bytes": EPS, "path": "a.png"}, "writer": 7}]
    lines = load_lines("train", parquet(tmp_path / "x.parquet", rows, features))
    assert set(lines.column_names) == {"image", "text", "writer"}
    assert lines[0]["writer"] == 7


def test_images_are_never_decoded_by_datasets(tmp_path, monkeypatch):
    def decode(*_, **__):
        pytest.fail("datasets decoded an image")

    monkeypatch.setattr(datasets.Image, "decode_example", decode)
    folder = imagefolder(tmp_path / "f", [("a.png", "one"), ("b.png", "two")], "csv")
    for lines in (
        load_lines("train", folder),
        load_lines("train", parquet(tmp_path / "x.parquet", [row("one"), row("two", png(1))])),
    ):
        both = datasets.concatenate_datasets([lines, lines.select([0])])
        ways = [lines, lines.select([1, 0]), both, lines.select_columns(["image"]), pickle.loads(pickle.dumps(lines))]
        ways += [lines.filter(lambda text: True, input_columns="text"), lines.shuffle(seed=0)]
        for some in ways:
            assert isinstance(some[0]["image"], Image.Image)
            assert [image.size for image in some["image"]] == [(96, 32)] * len(some)
            assert [line["image"].size for line in some] == [(96, 32)] * len(some)


def test_texts_are_had_without_decoding_an_image(tmp_path, monkeypatch):
    lines = load_lines("train", parquet(tmp_path / "x.parquet", [row("one"), row("two")]))
    monkeypatch.setattr(LineImage, "decode_example", None)
    assert lines["text"][:] == list(lines["text"]) == ["one", "two"]


def test_undecoded_bytes_are_had_by_a_cast(tmp_path):
    lines = load_lines("train", parquet(tmp_path / "x.parquet", [row("one")]))
    undecoded = lines.cast_column("image", datasets.Image(decode=False))
    assert undecoded[0]["image"]["bytes"] == undecoded["image"][0]["bytes"] == png()


def test_an_image_outside_a_parquet_is_not_looked_for(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    for path in (str(tmp_path / "a.png"), "a.png", "https://example.com/a.png"):
        wrong = {"image": {"bytes": None, "path": path}, "text": "two"}
        with pytest.raises(DataError, match=r"row 1.*no image"):
            load_lines("train", parquet(tmp_path / "x.parquet", [row("one"), wrong]))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_parquet_is_named(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet cannot be read as parquet"):
        load_lines("train", tmp_path / "x.parquet")


def test_a_column_of_numbers_is_no_column_of_images(tmp_path):
    path = parquet(tmp_path / "x.parquet", [{"image": 1, "text": "one"}], None)
    with pytest.raises(DataError, match=r"x\.parquet: the column image holds no images"):
        load_lines("train", path)


# Metadata from strangers


def metadata(folder, kind, *names, text="two"):
    """A folder whose first row is sound; the others have these file names."""
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(png())
    rows = [("a.png", "one"), *((name, text) for name in names)]
    with open(folder / f"metadata.{kind}", "w", newline="", encoding="utf-8") as file:
        if kind == "csv":
            csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("file_name", "text"), *rows])
        else:
            file.writelines(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in rows)
    return folder


OUTSIDE = ["../secret.png", "sub/../../secret.png", "..", "/etc/passwd", "C:secret.png", "C:/a.png", "..\\secret.png"]
OUTSIDE += ["\\\\host\\share\\a.png", "//host/share/a.png", "a\0.png"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_name_never_leads_outside(tmp_path, kind, name):
    (tmp_path / "secret.png").write_bytes(png())
    folder = metadata(tmp_path / "f", kind, name)
    with pytest.raises(DataError, match=rf"metadata\.{kind}, row 1: .* leads out of"):
        load_lines("train", folder)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_link_never_leads_outside(tmp_path, kind):
    (tmp_path / "secret.png").write_bytes(png())
    folder = metadata(tmp_path / "f", kind, "link.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"row 1: the file name 'link\.png' leads out of"):
        load_lines("train", folder)
    metadata(folder, kind, "folder/secret.png")
    (folder / "folder").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(DataError, match=r"row 1: .* leads out of"):
        load_lines("train", folder)


def test_links_and_folders_that_stay_inside_are_followed(tmp_path):
    folder = metadata(tmp_path / "f", "jsonl", "link.png", "sub/b.png", "./a.png")
    (folder / "sub").mkdir()
    (folder / "sub" / "b.png").write_bytes(png(1))
    (folder / "link.png").symlink_to(folder / "a.png")
    (tmp_path / "elsewhere").symlink_to(folder, target_is_directory=True)
    for place in (folder, tmp_path / "elsewhere"):
        assert [image.size for image in load_lines("train", place)["image"]] == [(96, 32)] * 4
    assert inside(folder, "sub/b.png") == folder / "sub" / "b.png"


def test_a_circle_of_links_a_pipe_and_a_folder_are_no_images(tmp_path):
    folder = metadata(tmp_path / "f", "jsonl", "b.png")
    makers = [lambda p: p.symlink_to(p), os.mkfifo, lambda p: p.mkdir()]
    for make in makers:
        make(folder / "b.png")
        with pytest.raises(DataError, match=r"row 1 \('two'\).*no such file"):
            load_lines("train", folder)
        (folder / "b.png").rmdir() if (folder / "b.png").is_dir() else (folder / "b.png").unlink()


TEXTS = [
    "NaN",
    "null",
    "NA",
    "None",
    "007",
    "true",
    "1958-03-04",
    'say "hi", she said',
    "a\u2028b",
    "lone\rcr",
    "end\\",
]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_texts_come_back_as_written(tmp_path, kind):
    for text in TEXTS:
        assert load_lines("train", metadata(tmp_path / "f", kind, "a.png", text=text))["text"][:] == ["one", text]


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_csv_is_read_whatever_ends_its_lines(tmp_path, end):
    folder = metadata(tmp_path / "f", "csv")
    content = end.join(["\ufefftext,writer,file_name", '"one, two",me,a.png', 'three "3",me,a.png'])
    (folder / "metadata.csv").write_bytes(content.encode())
    assert load_lines("train", folder)["text"][:] == ["one, two", 'three "3"']


@pytest.mark.parametrize(
    ("kind", "second", "why"),
    [
        ("csv", b"a.png,Gr\xfc\xdfe", "not UTF-8"),
        ("csv", b"a.png,Hello, world", "double quotes"),
        ("csv", b"a.png", "no text"),
        ("csv", b'a.png,"not closed', "unexpected end"),
        ("csv", b'a.png,"Hello" she said', "expected after"),
        ("csv", b'a.png,"' + b"x" * 200_000 + b'"', "field larger"),
        ("jsonl", b'{"file_name": "a.png", "text": "Gr\xfc"}', "not UTF-8"),
        ("jsonl", b'{"file_name": "a.png", "text": "\\ud83d"}', "not UTF-8"),
        ("jsonl", b'{"file_name": "a.png", "te', "Unterminated"),
        ("jsonl", b'{"file_name": "a.png", "text": 7}', "no text"),
        ("jsonl", b'["a.png", "two"]', "no text"),
        ("jsonl", b"[" * 100_000, "recursion"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, kind, second, why):
    folder = metadata(tmp_path / "f", kind)
    with open(folder / f"metadata.{kind}", "ab") as file:
        file.write(second + b"\n")
    with pytest.raises(DataError, match=rf"metadata\.{kind}, row 1: .*{why}"):
        read_metadata(folder / f"metadata.{kind}")


def test_two_metadata_files_are_one_too_many(tmp_path):
    for kind in ("csv", "jsonl"):
        metadata(tmp_path / "f", kind)
    with pytest.raises(DataError, match=f"both {' and '.join(METADATA)}"):
        load_lines("train", tmp_path / "f")


# Held out


@pytest.mark.parametrize(("count", "held"), [(2, 1), (4, 1), (5, 1), (9, 1), (10, 2), (23, 4)])
def test_every_fifth_line_is_held_out_and_at_least_one(count, held):
    texts = [str(k) for k in range(count)]
    kept, out = hold_out(datasets.Dataset.from_dict({"text": texts}))
    assert len(out) == held
    assert sorted([*kept["text"], *out["text"]]) == sorted(texts)


def test_one_line_cannot_be_split():
    with pytest.raises(DataError, match="1 line"):
        hold_out(datasets.Dataset.from_dict({"text": ["a"]}))


def test_lines_to_train_on_come_with_those_to_validate_on(tmp_path):
    one = parquet(tmp_path / "one" / "train.parquet", [row(text) for text in "abcdefghij"]).parent
    assert [len(part) for part in training_lines(one)] == [8, 2]
    parquet(one / "validation.parquet", [row("k")])
    assert [len(part) for part in training_lines(one)] == [10, 1]
    with pytest.raises(FileNotFoundError):
        training_lines(tmp_path / "none")
