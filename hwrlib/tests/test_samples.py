"""The embedded synthetic sample: what the other modules and the chapters rely on."""

import io
import json
import re
from pathlib import Path

import datasets
import matplotlib
import numpy as np
import pytest
from PIL import Image

from hwrlib.scripts import samples
from hwrlib.scripts.samples import FOLDER

SPLITS = {"train": 500, "validation": 80, "test": 80}
CHARACTERS = set(" !\"#&'()*+,-./0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    files = {split: str(FOLDER / f"{split}.parquet") for split in SPLITS}
    return datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("split", SPLITS)
def test_split_has_its_lines_and_all_79_characters(lines, split):
    texts = lines[split]["text"]
    assert SPLITS[split] <= len(texts) <= SPLITS[split] + 20
    assert set("".join(texts)) == CHARACTERS
    assert all(15 <= len(text) <= 70 and text == " ".join(text.split()) for text in texts)
    assert set(lines[split].column_names) == {"image", "text", "font"}


@pytest.mark.parametrize("split", SPLITS)
def test_every_image_decodes_to_dark_ink_on_light_paper(lines, split):
    for row in lines[split]:
        image = np.asarray(row["image"].convert("L"))
        height, width = image.shape
        assert 60 <= height <= 140
        assert width > height
        assert np.median(image) > 200 > 130 > image.min(), row["text"]


def test_some_lines_are_one_bit_scans_and_most_are_not(lines):
    grey = [len(np.unique(np.asarray(image.convert("L")))) > 2 for image in lines["train"]["image"]]
    assert 0.6 < np.mean(grey) < 0.9


def test_over_thirty_fonts_and_a_third_of_the_evaluation_lines_in_unseen_ones(lines):
    fonts = {split: lines[split]["font"] for split in SPLITS}
    assert len(set(fonts["train"])) > 30
    for split in ("validation", "test"):
        unseen = np.mean([font not in set(fonts["train"]) for font in fonts[split]])
        assert 0.3 < unseen < 0.36
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"| {font} |" in readme for font in {*fonts["train"], *fonts["validation"], *fonts["test"]})


def test_splits_share_no_paragraph_no_sentence_and_no_line(lines):
    sections = samples.read_sentences()
    assert set(sections) == {*SPLITS, "page"}
    seen = set()
    for split, paragraphs in sections.items():
        parts = [part.strip('" ') for text in paragraphs for part in re.split("[.?!]", text)]
        sentences = {part for part in parts if part}
        assert not seen & sentences, split
        seen |= sentences
    texts = [set(lines[split]["text"]) for split in SPLITS]
    assert sum(map(len, texts)) == len(set.union(*texts))


def test_lines_of_the_files_are_the_lines_of_the_sentences(lines):
    for split, paragraphs in samples.read_sentences().items():
        if split in SPLITS:
            assert " ".join(lines[split]["text"]) == " ".join(paragraphs)


def test_wrap_keeps_the_text_and_never_makes_a_line_too_long():
    text = " ".join(["word"] * 60)
    for length in (24, 42, 200):
        wrapped = samples.wrap(text, length)
        assert " ".join(wrapped) == text
        assert max(map(len, wrapped)) <= 70


def test_page_boxes_lie_inside_the_page_and_hold_the_ink():
    page = json.loads((FOLDER / "page.json").read_text(encoding="utf-8"))
    with Image.open(FOLDER / "page.png") as image:
        assert list(image.size) == page["size"]
        grey = np.asarray(image.convert("L"))
    assert 10 <= len(page["lines"]) <= 12
    assert " ".join(line["text"] for line in page["lines"]) == samples.read_sentences()["page"][0]
    ink = grey < 110
    for line in page["lines"]:
        x, y, width, height = line["box"]
        assert x >= 0
        assert y >= 0
        assert x + width <= grey.shape[1]
        assert y + height <= grey.shape[0]
        assert ink[y : y + height, x : x + width].mean() > 0.02
        ink[y : y + height, x : x + width] = False
    assert not ink.any()


def test_same_seed_gives_the_same_image_bytes():
    ink = np.zeros((80, 300), np.float32)
    ink[30:50, 20:280] = 1
    first, second = (samples.encode(samples.scan(ink, np.random.default_rng(3))) for _ in range(2))
    assert first == second
    assert Image.open(io.BytesIO(first)).size == (300, 80)


def test_number_lines_are_those_of_the_seed_in_iams_characters_and_spacing():
    rng = np.random.default_rng(samples.NUMBERS_SEED)
    texts = [samples.number_line(rng, ["word", "other"]) for _ in range(200)]
    assert texts[:2] == [
        "other other word Fig. 33 Fig. 22",
        "Quinilvan's Fig. 2 word word & Zelshawjen Garlan and Woodwal",
    ]
    assert set("".join(texts)) <= CHARACTERS
    assert max(map(len, texts)) <= 64
    assert not any("  " in text or text != text.strip() for text in texts)
    assert np.mean([any(c.isdigit() for c in text) for text in texts]) > 0.7
    assert any(re.search(r"[A-Z][a-z]+ \d+ , \d{4}", text) for text in texts)


def test_number_lines_are_written_with_their_images(tmp_path, monkeypatch):
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    monkeypatch.setattr(samples, "FONTS", {"train": "one"})
    for name, count in (("few", 2), ("more", 3)):
        samples.write_numbers(tmp_path / f"{name}.parquet", count, {"one": (font, CHARACTERS)})
    few, more = (datasets.Dataset.from_parquet(str(tmp_path / f"{name}.parquet")) for name in ("few", "more"))
    assert (len(few), len(more)) == (2, 3)
    assert few["text"][:] == more["text"][:2]
    assert few[1]["image"].tobytes() == more[1]["image"].tobytes()
    assert set(few.column_names) == {"image", "text"}


def test_everything_stays_under_five_megabytes():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 5_000_000
