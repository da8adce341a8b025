"""Prepared lines and batches: whole, seeded, shared out; words are cut only where the gaps leave no doubt."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from hwrlib import batches
from hwrlib.alphabet import IAM
from hwrlib.batches import AugmentedLines, BucketSampler, PreparedLine, collate, cut_words, prepare_lines, rehearse
from hwrlib.data import DataError
from hwrlib.images import to_tensor


def png(seed=0, width=96, height=32):
    pixels = np.full((height, width), 255, np.uint8)
    rng = np.random.default_rng(seed)
    for x in rng.integers(4, width - 4, 6):
        pixels[8:24, x : x + 2] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def widths(lines):
    return [line.pixels.shape[1] for line in lines]


# Prepared lines


@pytest.fixture(scope="module")
def rows():
    return [{"image": Image.open(io.BytesIO(png(k, 64 + 8 * k))), "text": text} for k, text in enumerate("abcdefg")]


def test_lines_are_prepared_once_and_kept_small(rows):
    lines, narrow = prepare_lines(rows, IAM), prepare_lines(rows, IAM, width_divisor=2.0)
    assert len(lines) == 7
    for k, line in enumerate(lines):
        assert line.pixels.dtype == np.uint8
        assert line.pixels.shape == (128, (64 + 8 * k) * 4)
        assert (line.labels, line.text) == (IAM.encode("abcdefg"[k]), "abcdefg"[k])
    assert widths(narrow) == [width // 2 for width in widths(lines)]


@pytest.mark.parametrize(
    ("image", "text", "reason"),
    [(png(), "naïve", "ï"), (png(), "x" * 60, "119"), (png(height=200), "two", "taller"), (png()[:-60], "two", "")],
    ids=["alphabet", "too long", "page", "truncated"],
)
def test_preparing_names_the_row(image, text, reason):
    with pytest.raises(DataError, match=f"row 1.*{reason}"):
        prepare_lines([{"image": png(), "text": "one"}, {"image": image, "text": text}], IAM)


def test_augmentation_depends_on_seed_epoch_and_line_alone(rows):
    lines = prepare_lines(rows, IAM)
    first, second = (AugmentedLines(lines, strength=1.0, seed=3) for _ in range(2))

    def alike(one, other):
        return [np.array_equal(one[k].pixels, other[k].pixels) for k in range(7)]

    assert len(first) == 7
    second[5]  # another order
    assert all(alike(first, second))
    second.epoch = 1
    assert not any(alike(first, second))
    second.epoch = 0
    assert all(alike(first, second))
    assert not all(alike(first, AugmentedLines(lines, strength=1.0, seed=4)))
    assert all(alike(lines, AugmentedLines(lines, strength=0)))
    assert [first[k].text for k in range(7)] == [*"abcdefg"]
    assert [first[k].labels for k in range(7)] == [line.labels for line in lines]


def test_augmentation_is_given_its_strength_and_the_width_divisor(rows, monkeypatch):
    given = []
    monkeypatch.setattr(batches, "augment", lambda line, rng, *rest: given.append(rest) or line)
    AugmentedLines(prepare_lines(rows, IAM), 0.7, 2.5)[0]
    assert given == [(0.7, 2.5)]


# Rehearsal


def named(*texts):
    return [PreparedLine(np.full((128, 40), 255, np.uint8), text, [1]) for text in texts]


def test_few_own_lines_are_repeated_and_as_many_general_ones_drawn():
    own, general = named("a", "b", "c"), named(*map(str, range(100)))
    mixed = [line.text for line in rehearse(own, general)]
    assert mixed[:33] == ["a", "b", "c"] * 11
    assert len(mixed) == 66
    assert len(set(mixed[33:])) == 33  # none twice, where there are enough
    assert [line.text for line in rehearse(own, general)] == mixed
    assert [line.text for line in rehearse(own, general, seed=1)] != mixed


def test_many_own_lines_are_not_repeated_and_few_general_ones_may_be():
    mixed = [line.text for line in rehearse(named(*map(str, range(40))), named("x", "y"))]
    assert mixed[:40] == [*map(str, range(40))]
    assert sorted(set(mixed[40:])) == ["x", "y"]
    assert len(mixed) == 80


def test_own_lines_alone_and_none():
    assert [line.text for line in rehearse(named("a", "b"), [], least=3)] == ["a", "b", "a", "b"]
    with pytest.raises(DataError, match="no own lines"):
        rehearse([], named("x"))


# Words cut from lines


def written(*spans, text="", width=600):
    pixels = np.full((128, width), 255, np.uint8)
    for begin, end in spans:
        pixels[40:90, begin:end] = 0
    return PreparedLine(pixels, text, IAM.encode(text))


def test_pieces_are_the_line_from_end_to_end():
    line = written((20, 120), (180, 300), (360, 460), text="every third word")
    words = cut_words(line, IAM)
    assert [word.text for word in words] == ["every", "third", "word"]
    assert [IAM.decode(word.labels) for word in words] == ["every", "third", "word"]
    assert np.array_equal(np.concatenate([word.pixels for word in words], axis=1), line.pixels)
    assert all((word.pixels < 128).any() for word in words)


def test_punctuation_stays_with_its_word():
    spans = (20, 200), (280, 460)
    assert cut_words(written(*spans, text='said " Yes , sir'), IAM) == []  # three words, two blots
    assert [word.text for word in cut_words(written(*spans, text="Well , sir ."), IAM)] == ["Well ,", "sir ."]


def test_a_line_of_one_word_stays_whole():
    line = written((20, 460), text="word")
    assert cut_words(line, IAM) == [line]


@pytest.mark.parametrize(
    "line",
    [
        written((20, 120), (140, 240), (262, 460), text="two words"),  # gaps alike: 20 and 22 px
        written((20, 460), text="no gap here"),
        written(text="nothing written"),
        written((20, 40), (100, 460), text="unevenness ab"),  # two letters cannot be 16 times as wide as ten
        written((20, 120), (180, 300)),
    ],
    ids=["gaps alike", "no gap", "blank", "uneven", "no word"],
)
def test_nothing_is_cut_in_doubt(line):
    assert cut_words(line, IAM) == []


def test_a_word_too_narrow_for_ctc_is_left_out():
    words = cut_words(written((4, 24), (34, 54), text="abcd abcdefgh", width=60), IAM)
    assert [word.text for word in words] == ["abcd"]


# Batches


def test_collate_pads_with_paper_and_keeps_the_widths():
    shapes = [40, 16, 33]
    lines = [
        PreparedLine(np.full((128, w), 10 * k, np.uint8), "abc"[k], [k + 1] * (k + 1)) for k, w in enumerate(shapes)
    ]
    batch = collate(lines)
    assert batch.images.shape == (3, 1, 128, 40)
    assert batch.widths.tolist() == shapes
    assert batch.labels.tolist() == [1, 2, 2, 3, 3, 3]
    assert batch.label_lengths.tolist() == [1, 2, 3]
    assert batch.texts == ["a", "b", "c"]
    for k, width in enumerate(shapes):
        assert torch.all(batch.images[k, 0, :, :width] == 10 * k)
        assert torch.all(batch.images[k, 0, :, width:] == 255)
    assert collate(lines, multiple=64).images.shape[-1] == 64
    assert torch.equal(collate(lines, multiple=64).images[..., :40], batch.images)


def test_a_batch_goes_to_its_device_in_bytes_and_is_scaled_there_once():
    batch = collate([PreparedLine(np.full((128, 40), level, np.uint8), "a", [1]) for level in (0, 200, 255)])
    assert batch.images.dtype == torch.uint8
    moved = batch.to("cpu")
    assert moved.images.dtype == torch.float32
    assert moved.images.amax((1, 2, 3)).tolist() == pytest.approx([-1, 200 / 127.5 - 1, 1])
    assert torch.equal(moved.to("cpu").images, moved.images)
    assert moved.widths.device.type == "cpu"
    assert torch.equal(moved.images[1], to_tensor(np.full((128, 40), 200, np.uint8)))


def test_labels_are_whole_numbers_also_where_there_are_none():
    assert collate([PreparedLine(np.full((128, 40), 255, np.uint8), "", [])]).labels.dtype == torch.long


def test_a_batch_is_pinned_where_a_loader_asks_for_it(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor)
    batch = collate(named("a"))
    assert batch.pin_memory().texts == ["a"]
    assert pinned == [batch.images.shape, batch.labels.shape]


WIDTHS = np.random.default_rng(0).integers(200, 2000, 700)


def test_each_line_comes_once_an_epoch_in_batches_of_like_width():
    drawn = list(BucketSampler(WIDTHS, 16))
    assert sorted(itertools.chain(*drawn)) == list(range(700))
    assert max(map(len, drawn)) <= 16
    assert len(drawn) == len(BucketSampler(WIDTHS, 16)) == 44
    padded = sum(max(WIDTHS[b]) * len(b) for b in drawn) / WIDTHS.sum()
    unsorted = sum(max(WIDTHS[k : k + 16]) * 16 for k in range(0, 700, 16)) / WIDTHS.sum()
    assert padded < 1.1 < 1.5 < unsorted


def test_the_order_is_seeded_and_new_each_epoch():
    first, second, other = BucketSampler(WIDTHS, 16, 1), BucketSampler(WIDTHS, 16, 1), BucketSampler(WIDTHS, 16, 2)
    assert list(first) == list(first) == list(second) != list(other)
    second.go_to(1)
    assert list(first) != list(second)
    as_sets = [{frozenset(b) for b in sampler} for sampler in (first, second)]
    assert len(as_sets[0] & as_sets[1]) < 5  # other batches, not the same ones in another order


def test_it_goes_on_in_the_middle_of_an_epoch():
    whole, rest = BucketSampler(WIDTHS, 16), BucketSampler(WIDTHS, 16)
    for epoch in (0, 3):
        whole.go_to(epoch)
        for start in (0, 17, 43, 44):
            rest.go_to(epoch, start)
            assert list(rest) == list(whole)[start:]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("lines", [3, 5, 31, 32, 33, 100, 700])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_processes_share_every_line_exactly_once(processes, lines, batch_size):
    shares = [BucketSampler(WIDTHS[:lines], batch_size, 5, rank, processes) for rank in range(processes)]
    for epoch in range(2):
        for share in shares:
            share.go_to(epoch)
        drawn = [list(share) for share in shares]
        assert sorted(k for share in drawn for batch in share for k in batch) == list(range(lines))
        assert {len(b) for b in drawn} == {len(shares[0])}  # as many steps each, or one waits for ever
        assert min(len(b) for share in drawn for b in share) >= 1
        if batch_size > 1:
            assert max(len(b) for share in drawn for b in share) <= batch_size


def test_fewer_lines_than_processes_are_refused():
    with pytest.raises(DataError, match="too few"):
        BucketSampler([100], 8, rank=0, processes=2)
    with pytest.raises(DataError, match="0 lines"):
        list(BucketSampler([], 8))
