"""Augmentation, on synthetic arrays."""

import numpy as np
import pytest

import hwrlib.augment
from hwrlib.augment import augment


@pytest.fixture
def nothing_hidden(monkeypatch):
    monkeypatch.setattr(hwrlib.augment, "_occlude", lambda *_: None)


def grid(width=1800, height=128, pen=4, two_level=True):
    """Strokes of a known place: uprights and bars with room around them."""
    line = np.full((height, width), 255, np.uint8)
    for x in range(30, width - 30, 40):
        line[20:100, x : x + pen] = 0
        line[60 : 60 + pen, x : x + 20] = 0
    return line if two_level else np.maximum(line, np.random.default_rng(0).integers(0, 120, line.shape, np.uint8))


def ink(line):
    return (255 - line.astype(float)).sum()


@pytest.mark.parametrize(("width", "width_divisor"), [(1800, 1), (700, 2.7), (40, 1), (3, 1)])
def test_shape_type_and_paper(width, width_divisor):
    for seed in range(30):
        out = augment(grid(width), np.random.default_rng(seed), width_divisor=width_divisor)
        assert out.dtype == np.uint8 and out.shape[0] == 128
        assert 0.8 * width - 1 <= out.shape[1] <= 1.2 * width + 70
        assert np.median(out) > 200


def test_same_seed_same_line():
    line = grid()
    for seed in range(10):
        first, second = (augment(line, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(first, second)
    assert not np.array_equal(augment(line, np.random.default_rng(1)), augment(line, np.random.default_rng(2)))


def test_input_stays_and_strength_zero_is_identity():
    line = grid()
    kept = line.copy()
    augment(line, np.random.default_rng(0), strength=2)
    out = augment(line, np.random.default_rng(0), strength=0)
    assert np.array_equal(line, kept) and np.array_equal(out, kept)
    out[:] = 0
    assert np.array_equal(line, kept)


@pytest.mark.usefixtures("nothing_hidden")
def test_strength_grows_the_change():
    line = grid()
    tall = [
        np.mean([np.ptp(np.where((out < 128).any(1))[0]) for out in outs])
        for outs in (
            [augment(line, np.random.default_rng(seed), strength) for seed in range(40)] for strength in (0.1, 1.0)
        )
    ]
    assert tall[0] > tall[1]


@pytest.mark.parametrize("pen", [1, 2, 5])
@pytest.mark.parametrize("width_divisor", [1, 2.7])
@pytest.mark.usefixtures("nothing_hidden")
def test_every_stroke_survives(pen, width_divisor):
    line = np.full((128, 900), 255, np.uint8)
    line[1:127, 1 : 1 + pen] = 0
    line[1:127, 450 : 450 + pen] = 0
    line[1:127, 899 - pen : 899] = 0
    for seed in range(150):
        out = augment(line, np.random.default_rng(seed), width_divisor=width_divisor)
        darkest = [part.min() for part in np.array_split(out, 3, axis=1)]
        assert max(darkest) < 200, (seed, darkest)
        assert ink(out) > 0.25 * ink(line), seed


@pytest.mark.usefixtures("nothing_hidden")
def test_no_ink_leaves_the_frame():
    line = np.full((128, 900), 255, np.uint8)
    line[:8], line[-8:] = 0, 0
    for seed in range(100):
        out = augment(line, np.random.default_rng(seed))[:, 60:-60]
        upper, lower = out[:64].min(0), out[64:].min(0)
        assert upper.max() < 200 and lower.max() < 200, seed


def test_two_level_scans_gain_half_tones():
    line = grid()
    share = [
        ((out > 24) & (out < 128)).sum() / max((out < 128).sum(), 1)
        for out in (augment(line, np.random.default_rng(seed)) for seed in range(60))
    ]
    assert np.median(share) > 0.3


@pytest.mark.usefixtures("nothing_hidden")
def test_grey_and_blank_lines():
    blank = np.full((128, 300), 255, np.uint8)
    for seed in range(20):
        assert augment(blank, np.random.default_rng(seed)).min() > 150
        assert augment(grid(two_level=False), np.random.default_rng(seed)).min() < 150


@pytest.mark.parametrize("width_divisor", [1, 2.7])
def test_half_the_lines_have_spans_hidden_and_blots(width_divisor, monkeypatch):
    line = np.full((128, round(1600 / width_divisor)), 255, np.uint8)
    line[60:64] = 100  # one stroke from end to end: a gap in it is a hidden span, ink away from it a blot
    spans, blots, touched = [], [], 0
    for seed in range(100):
        out = augment(line, np.random.default_rng(seed), width_divisor=width_divisor)
        with monkeypatch.context() as context:
            context.setattr(hwrlib.augment, "_occlude", lambda *_: None)
            plain = augment(line, np.random.default_rng(seed), width_divisor=width_divisor)
        touched += not np.array_equal(out, plain)
        gaps = np.flatnonzero(np.diff((out == 255).all(0), prepend=False, append=False)).reshape(-1, 2)
        spans += (np.diff(gaps)[:, 0] * width_divisor / 128).tolist() if not np.array_equal(out, plain) else []
        darker = (out.astype(int) < plain.astype(int) - 60).sum() * width_divisor / 128**2
        blots += [darker] if darker else []
    assert 35 <= touched <= 58  # half, less those in which chance drops nothing
    assert 0.04 < np.median(spans) < 0.4
    assert 0.0005 < np.median(blots) < 0.15


def test_more_is_hidden_in_longer_lines_and_at_more_strength():
    def hidden(width, strength):
        lines = [np.zeros((128, width), np.uint8) for _ in range(60)]
        for seed, line in enumerate(lines):
            hwrlib.augment._occlude(line, np.random.default_rng(seed), strength, 1.0)
        return np.mean([(line == 255).all(0).sum() for line in lines])

    assert 0 < hidden(800, 0.5) < hidden(800, 2.0) < hidden(3000, 2.0)


def test_blots_have_soft_edges():
    line = np.full((128, 3000), 255, np.uint8)
    hwrlib.augment._occlude(line, np.random.default_rng(1), 2.0, 1.0)
    assert len(np.unique(line)) > 20


@pytest.mark.parametrize(
    "line",
    [None, [[255]], np.zeros((128, 10)), np.zeros((3, 128, 10), np.uint8), np.zeros((128, 0), np.uint8)],
)
def test_no_line(line):
    with pytest.raises(ValueError, match="the line to augment is"):
        augment(line, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("strength", "width_divisor"), [(-1, 1), (3, 1), (float("nan"), 1), (1, 0.5), (1, float("nan"))]
)
def test_strength_and_width_divisor_out_of_range(strength, width_divisor):
    with pytest.raises(ValueError, match="out of range"):
        augment(grid(100), np.random.default_rng(0), strength, width_divisor)
