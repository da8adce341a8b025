"""Prepared lines and batches: whole, seeded, shared out; what cannot be used is named."""

import itertools
import os

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from hwrlib.alphabet import IAM
from hwrlib.batches import AugmentedLines, BucketSampler, PreparedLine, collate, load_batches, prepare_lines, replay
from hwrlib.files import DataError
from hwrlib.images import to_tensor
from hwrlib.tests.conftest import encoded, strokes

ROWS = [{"image": Image.fromarray(strokes(64 + 8 * k)), "text": text} for k, text in enumerate("abcdefg")]
LINES = prepare_lines(ROWS, IAM)
WIDTHS = np.random.default_rng(0).integers(200, 2000, 700)


def named(*texts):
    return [PreparedLine(np.full((128, 40), 255, np.uint8), text, [1]) for text in texts]


def test_all_rows_that_cannot_be_used_are_named_or_left_out(capsys):
    line, high = strokes(96), strokes(96, height=200)
    good, cut = {"image": line, "text": "one"}, encoded(line)[:-60]
    rows = [good, {"image": line, "text": "naïve"}, {"image": line, "text": "x" * 60, "origin": "set, row 9"}]
    rows += [good, {"image": high, "text": "two"}, {"image": cut, "text": "two"}]
    with pytest.raises(DataError) as error:
        prepare_lines(rows, IAM)
    told = str(error.value)
    narrow = "set, row 9: 384 px give 95 frames, but CTC needs 119 for 'xxx"
    for reason in ("row 1: 'ï'", narrow, "at least 480 px wide", "row 4: ", "taller than wide", "row 5: "):
        assert reason in told and "row 0" not in told
    assert [line.text for line in prepare_lines(rows, IAM, skip_bad=True)] == ["one", "one"]
    assert capsys.readouterr().err.count("left out: ") == 4
    with pytest.raises(DataError, match="none of the 1 lines can be used"):
        prepare_lines(rows[1:2], IAM, skip_bad=True)


def test_augmentation_depends_on_seed_epoch_and_line_alone():
    first, second = (AugmentedLines(LINES, 1.0, seed=3) for _ in range(2))

    def alike(one, other):
        return [np.array_equal(one[k].pixels, other[k].pixels) for k in range(7)]

    assert len(first) == 7
    second[5]  # another order
    assert all(alike(first, second))
    others = [AugmentedLines(LINES, *rest) for rest in ((1.0, 1.0, 4), (0.5, 1.0, 3), (1.0, 2.0, 3))]
    second.epoch = 1
    assert not any(all(alike(first, other)) for other in (second, *others))
    assert all(alike(LINES, AugmentedLines(LINES, augmentation=0)))
    assert [(line.text, line.labels) for line in first] == [(line.text, line.labels) for line in LINES]


def test_few_own_lines_are_repeated_and_as_many_general_ones_drawn():
    own, general = named("a", "b", "c"), named(*map(str, range(100)))
    mixed = [line.text for line in replay(own, general)]
    assert mixed[:33] == ["a", "b", "c"] * 11 and len(mixed) == 66
    assert len(set(mixed[33:])) == 33  # none twice, where there are enough
    assert [line.text for line in replay(own, general)] == mixed
    assert [line.text for line in replay(own, general, seed=1)] != mixed
    assert len(replay(general[:40], own)) == 80
    assert [line.text for line in replay(named("a", "b"), [], least=3)] == ["a", "b", "a", "b"]


def test_collate_pads_with_paper_and_keeps_the_widths():
    levels = [(40, 0), (16, 100), (33, 200)]
    lines = [PreparedLine(np.full((128, w), x, np.uint8), "abc"[k], [k + 1] * k) for k, (w, x) in enumerate(levels)]
    batch = collate(lines, multiple=64)
    assert batch.images.shape == (3, 1, 128, 64)
    assert (batch.widths.tolist(), batch.labels.tolist()) == ([40, 16, 33], [2, 3, 3])
    assert batch.label_lengths.tolist() == [0, 1, 2]
    moved = batch.to("cpu")
    for k, (width, level) in enumerate(levels):
        assert torch.all(batch.images[k, 0, :, :width] == level)
        assert torch.all(batch.images[k, 0, :, width:] == 255)
        assert torch.equal(moved.images[k, :, :, :width], to_tensor(lines[k].pixels))
    assert torch.equal(moved.to("cpu").images, moved.images)  # scaled once
    assert collate(lines).images.shape[-1] == 40


class Told(AugmentedLines):
    """Lines whose texts say what process made them."""

    def __getitem__(self, k):
        alone = os.getpgrp() == os.getpid()  # out of reach of a signal to the group
        return PreparedLine(LINES[k].pixels, f"{alone} {cv2.getNumThreads() <= 1}", LINES[k].labels)


def test_batches_come_from_workers_by_a_pipe_without_shared_memory_fork_and_process_groups(monkeypatch):
    sampler = BucketSampler([line.pixels.shape[1] for line in LINES], 2)
    here, there = (list(load_batches(Told(LINES), sampler, on_gpu)) for on_gpu in (False, True))
    for one, other in zip(here, there, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))
        assert set(other.texts) == {"True True"} and not any(part.is_shared() for part in other[:4])
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.delattr(os, "setpgrp")  # which Windows lacks
    for start in ("fork", "spawn"):
        loader = load_batches(AugmentedLines(LINES), sampler, True)
        loader.multiprocessing_context = start
        assert [batch.texts for batch in loader] == [[LINES[k].text for k in batch] for batch in sampler]


def test_each_line_comes_once_an_epoch_in_batches_of_like_width():
    sampler = BucketSampler(WIDTHS, 16)
    drawn = list(sampler)
    assert drawn == list(sampler) != list(BucketSampler(WIDTHS, 16, 1))
    sampler.epoch = 1
    assert len({*map(frozenset, drawn)} & {*map(frozenset, sampler)}) < 5  # other batches
    assert len(drawn) == len(BucketSampler(WIDTHS, 16)) == 44
    assert sum(max(WIDTHS[b]) * len(b) for b in drawn) < 1.1 * WIDTHS.sum()  # unsorted it is over 1.5
    for lines, size, processes in itertools.product([3, 31, 32, 100], [1, 2, 8], [1, 2, 3]):
        drawn = list(BucketSampler(WIDTHS[:lines], size, 5, processes))
        assert len(drawn) % processes == 0  # as many steps each, or one waits for ever
        assert sorted(itertools.chain(*drawn)) == list(range(lines))
        assert 1 <= min(map(len, drawn)) <= max(map(len, drawn)) <= size + (size == 1)  # none is empty
