"""The embedded synthetic sample: what the other modules and the chapters rely on."""

import json
import re

import datasets
import numpy as np
import pytest
from PIL import Image

from hwrlib.alphabet import IAM
from hwrlib.scripts import samples
from hwrlib.scripts.samples import FOLDER

SPLITS = {"train": 500, "validation": 80, "test": 80}
CHARACTERS = set(IAM.characters)


@pytest.fixture(scope="module")
def lines():
    return {split: datasets.Dataset.from_parquet(str(FOLDER / f"{split}.parquet")) for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_its_lines_all_79_characters_and_dark_ink_on_light_paper(lines, split):
    texts = lines[split]["text"][:]
    assert SPLITS[split] <= len(texts) <= SPLITS[split] + 20 and set("".join(texts)) == CHARACTERS
    assert all(15 <= len(text) <= 70 and text == " ".join(text.split()) for text in texts)
    images = [np.asarray(image.convert("L")) for image in lines[split]["image"]]
    assert all(60 <= image.shape[0] <= 140 and image.shape[1] > image.shape[0] for image in images)
    assert all(np.median(image) > 200 > 130 > image.min() for image in images)
    assert 0.6 < np.mean([len(np.unique(image)) > 2 for image in images]) < 0.9  # the others are 1-bit scans


def test_over_thirty_fonts_a_third_of_the_evaluation_lines_in_unseen_ones_and_no_sentence_shared(lines):
    assert all(set(lines[split].column_names) == {"image", "text", "font"} for split in SPLITS)
    fonts = {split: lines[split]["font"][:] for split in SPLITS}
    assert len(set(fonts["train"])) > 30
    for split in ("validation", "test"):
        assert 0.3 < np.mean([font not in fonts["train"] for font in fonts[split]]) < 0.36
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"| {font} |" in readme for names in fonts.values() for font in names)
    sections, seen = samples.read_sentences(), set()
    assert set(sections) == {*SPLITS, "page"}
    for split, paragraphs in sections.items():
        sentences = {part.strip('" ') for text in paragraphs for part in re.split("[.?!]", text)} - {""}
        assert not seen & sentences, split
        seen |= sentences
        if split in SPLITS:
            assert " ".join(lines[split]["text"]) == " ".join(paragraphs)


def test_the_boxes_of_the_page_hold_all_its_ink_and_all_files_are_small():
    page = json.loads((FOLDER / "page.json").read_text(encoding="utf-8"))
    with Image.open(FOLDER / "page.png") as image:
        ink = np.asarray(image.convert("L")) < 110
    assert page["size"] == [*ink.shape[::-1]] and 10 <= len(page["lines"]) <= 12
    assert " ".join(line["text"] for line in page["lines"]) == samples.read_sentences()["page"][0]
    for line in page["lines"]:
        x, y, width, height = line["box"]
        assert min(x, y) >= 0 and x + width <= ink.shape[1] and y + height <= ink.shape[0]
        assert ink[y : y + height, x : x + width].mean() > 0.02
        ink[y : y + height, x : x + width] = False
    assert not ink.any() and sum(path.stat().st_size for path in FOLDER.iterdir()) < 5_000_000
