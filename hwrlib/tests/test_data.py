"""Lines from every source, each error with its row; batches that are whole, seeded and shared out."""

import io
import itertools
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hwrlib import data
from hwrlib.alphabet import IAM, REFERENCE
from hwrlib.data import BucketSampler, DataError, Lines, collate, load_lines

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
        return "the lines"

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_lines("validation") == "the lines"
    assert asked == [(("Teklia/IAM-line",), {"split": "validation"})]


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
    with pytest.raises(DataError, match=r"metadata\.csv.*no column file_name.*image"):
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


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (row("naïve"), "ï"),
        (row("x" * 60), "119"),
        (row("two", png(height=200)), "taller"),
        (row("two", png()[:-60]), ""),
    ],
    ids=["alphabet", "too long", "page", "truncated"],
)
def test_preparing_names_the_row(tmp_path, wrong, reason):
    rows = load_lines("train", parquet(tmp_path / "x.parquet", [row("one"), wrong]))
    with pytest.raises(DataError, match=f"row 1.*{reason}"):
        Lines(rows, IAM)


# Prepared lines


@pytest.fixture(scope="module")
def rows():
    return [{"image": Image.open(io.BytesIO(png(k, 64 + 8 * k))), "text": text} for k, text in enumerate("abcdefg")]


def test_lines_are_prepared_once_and_kept_small(rows, monkeypatch):
    lines, narrow = Lines(rows, IAM), Lines(rows, IAM, squeeze=2.0)
    monkeypatch.setattr(data, "prepare_pixels", None)  # whoever prepares again fails
    assert len(lines) == 7
    for k in range(7):
        pixels, labels, text = lines[k]
        assert pixels.dtype == np.uint8
        assert pixels.shape == (128, lines.widths[k]) == (128, (64 + 8 * k) * 4)
        assert (labels, text) == (IAM.encode("abcdefg"[k]), "abcdefg"[k])
    assert narrow.widths.tolist() == (lines.widths // 2).tolist()


def test_augmentation_depends_on_seed_epoch_and_line_alone(rows):
    first, second = (Lines(rows, IAM, strength=1.0, seed=3) for _ in range(2))
    second[5]  # another order
    assert all(np.array_equal(first[k][0], second[k][0]) for k in range(7))
    second.epoch = 1
    assert not any(np.array_equal(first[k][0], second[k][0]) for k in range(7))
    second.epoch = 0
    assert all(np.array_equal(first[k][0], second[k][0]) for k in range(7))
    other = Lines(rows, IAM, strength=1.0, seed=4)
    assert not all(np.array_equal(first[k][0], other[k][0]) for k in range(7))


def test_extend_and_words(rows):
    lines = Lines(rows, IAM)
    lines.extend(Lines(rows[:2], IAM))
    assert lines.texts == [*"abcdefgab"]
    assert len(lines.widths) == len(lines.labels) == 9
    page = np.full((128, 300), 255, np.uint8)
    page[40:90, 20:120] = page[40:90, 180:280] = 0
    words = Lines([{"image": page, "text": "two words"}], IAM).words()
    assert words.texts == ["two", "words"]
    assert [IAM.decode(labels) for labels in words.labels] == words.texts
    assert words.widths.sum() == 300


def test_pen_strokes_become_lines(tmp_path):
    stroke = [float(n) for x in range(0, 300, 3) for n in (x, 20 * np.sin(x / 5))]
    features = {"strokes": [[datasets.Value("float32")]], "text": datasets.Value("string")}
    strokes = [{"strokes": [stroke, [310.0, 0.0, 330.0, 30.0]], "text": "wave #"}]
    path = parquet(tmp_path / "s.parquet", strokes, datasets.Features(features))
    rendered = data.load_strokes(path, REFERENCE)
    assert rendered[0]["text"] == "wave "
    assert Lines(rendered, REFERENCE).widths[0] > 128


def test_pen_strokes_of_held_out_texts_stay_out_and_a_single_letter_is_a_line(tmp_path):
    bar = [[5.0, 0.0, 5.0, 50.0]]
    ids = {"c04-110z-01": "a", "c04-110-01": "b", "a01-000z-01": "c"}
    features = datasets.Features(
        strokes=[[datasets.Value("float32")]], text=datasets.Value("string"), line_id=datasets.Value("string")
    )
    rows = [{"line_id": line_id, "strokes": bar, "text": text} for line_id, text in ids.items()]
    rendered = data.load_strokes(parquet(tmp_path / "s.parquet", rows, features), REFERENCE)
    assert rendered["text"][:] == ["b", "c"]
    assert Lines(rendered, REFERENCE).widths.tolist() == [128, 128]


# Batches


def test_collate_pads_with_paper_and_keeps_the_widths():
    shapes = [40, 16, 33]
    lines = [(np.full((128, w), 10 * k, np.uint8), [k + 1] * (k + 1), "abc"[k]) for k, w in enumerate(shapes)]
    batch = collate(lines)
    assert batch.images.shape == (3, 1, 128, 40)
    assert batch.widths.tolist() == shapes
    assert batch.labels.tolist() == [1, 2, 2, 3, 3, 3]
    assert batch.label_lengths.tolist() == [1, 2, 3]
    assert batch.texts == ["a", "b", "c"]
    for k, width in enumerate(shapes):
        assert torch.all(batch.images[k, 0, :, :width] == 10 * k / 127.5 - 1)
        assert torch.all(batch.images[k, 0, :, width:] == 1)
    assert collate(lines, multiple=64).images.shape[-1] == 64
    assert torch.equal(collate(lines, multiple=64).images[..., :40], batch.images)
    moved = batch.to("cpu")
    assert torch.equal(moved.images, batch.images)
    assert moved.widths.device.type == "cpu"


WIDTHS = np.random.default_rng(0).integers(200, 2000, 700)


def test_each_line_comes_once_an_epoch_in_batches_of_like_width():
    batches = list(BucketSampler(WIDTHS, 16))
    assert sorted(itertools.chain(*batches)) == list(range(700))
    assert max(map(len, batches)) <= 16
    assert len(batches) == len(BucketSampler(WIDTHS, 16)) == 44
    padded = sum(max(WIDTHS[b]) * len(b) for b in batches) / WIDTHS.sum()
    unsorted = sum(max(WIDTHS[k : k + 16]) * 16 for k in range(0, 700, 16)) / WIDTHS.sum()
    assert padded < 1.1 < 1.5 < unsorted


def test_the_order_is_seeded_and_new_each_epoch():
    first, second, other = BucketSampler(WIDTHS, 16, 1), BucketSampler(WIDTHS, 16, 1), BucketSampler(WIDTHS, 16, 2)
    assert list(first) == list(first) == list(second) != list(other)
    second.resume(1)
    assert list(first) != list(second)
    as_sets = [{frozenset(b) for b in sampler} for sampler in (first, second)]
    assert len(as_sets[0] & as_sets[1]) < 5  # other batches, not the same ones in another order


def test_it_resumes_in_the_middle_of_an_epoch():
    whole, rest = BucketSampler(WIDTHS, 16), BucketSampler(WIDTHS, 16)
    for epoch in (0, 3):
        whole.resume(epoch)
        for start in (0, 17, 43, 44):
            rest.resume(epoch, start)
            assert list(rest) == list(whole)[start:]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("lines", [3, 5, 31, 32, 33, 100, 700])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_processes_share_every_line_exactly_once(processes, lines, batch_size):
    shares = [BucketSampler(WIDTHS[:lines], batch_size, 5, rank, processes) for rank in range(processes)]
    for epoch in range(2):
        for share in shares:
            share.resume(epoch)
        batches = [list(share) for share in shares]
        assert sorted(k for share in batches for batch in share for k in batch) == list(range(lines))
        assert {len(b) for b in batches} == {len(shares[0])}  # as many steps each, or one waits for ever
        assert min(len(b) for share in batches for b in share) >= 1
        if batch_size > 1:
            assert max(len(b) for share in batches for b in share) <= batch_size


def test_fewer_lines_than_processes_are_refused():
    with pytest.raises(DataError, match="too few"):
        BucketSampler([100], 8, rank=0, processes=2)
    with pytest.raises(DataError, match="0 lines"):
        list(BucketSampler([], 8))
