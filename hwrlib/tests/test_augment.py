"""Augmentation, on synthetic arrays."""

import numpy as np
import pytest

from hwrlib.augment import augment, occlude, vary


def grid(width=1800, pen=4, two_level=True):
    """Strokes of a known place: uprights and bars with room around them."""
    line = np.full((128, width), 255, np.uint8)
    for x in range(30, width - 30, 40):
        line[20:100, x : x + pen] = 0
        line[60 : 60 + pen, x : x + 20] = 0
    return line if two_level else np.maximum(line, np.random.default_rng(0).integers(0, 120, line.shape, np.uint8))


def rngs(count):
    return (np.random.default_rng(seed) for seed in range(count))


def test_shape_type_and_paper_and_a_seed_decides_all():
    for width, divisor in ((1800, 1), (700, 2.7), (40, 1), (3, 1)):
        for rng in rngs(20):
            out = augment(grid(width), rng, width_divisor=divisor)
            assert out.dtype == np.uint8 and out.shape[0] == 128
            assert 0.8 * width - 1 <= out.shape[1] <= 1.2 * width + 70 and np.median(out) > 200
    outs = [augment(grid(300, two_level=k % 2), rng, width_divisor=2.5).tobytes() for k, rng in enumerate(rngs(20))]
    again = [augment(grid(300, two_level=k % 2), rng, width_divisor=2.5).tobytes() for k, rng in enumerate(rngs(20))]
    assert outs == again and len(set(outs)) == 20


def test_the_input_stays_strength_zero_is_identity_and_what_is_no_line_or_strength_is_refused():
    line = grid()
    augment(line, np.random.default_rng(0), strength=2)
    out = augment(line, np.random.default_rng(0), strength=0)
    assert np.array_equal(line, grid()) and np.array_equal(out, line) and not np.shares_memory(out, line)
    for line, strength in ((np.zeros((128, 10)), 1), (np.zeros((3, 128, 10), np.uint8), 1), (grid(100), 3)):
        with pytest.raises(ValueError, match="a uint8 line"):
            augment(line, np.random.default_rng(0), strength)


def test_every_stroke_survives_and_no_ink_leaves_the_frame():
    for pen in (1, 2, 5):
        line = np.full((128, 900), 255, np.uint8)
        for begin in (1, 450, 899 - pen):
            line[1:127, begin : begin + pen] = 0
        for divisor in (1, 2.7):
            for seed, rng in enumerate(rngs(60)):
                out = vary(line, rng, 1.0, divisor)
                assert max(part.min() for part in np.array_split(out, 3, axis=1)) < 200, (pen, divisor, seed)
                assert (255.0 - out).sum() > 0.25 * (255.0 - line).sum(), (pen, divisor, seed)
    line = np.full((128, 900), 255, np.uint8)
    line[:8], line[-8:] = 0, 0
    for seed, rng in enumerate(rngs(100)):
        out = vary(line, rng, 1.0)[:, 60:-60]
        assert out[:64].min(0).max() < 200 and out[64:].min(0).max() < 200, seed


def test_half_the_lines_have_spans_hidden_and_soft_blots():
    pairs = [(augment(grid(), a), vary(grid(), b, 1.0)) for a, b in zip(rngs(100), rngs(100), strict=True)]
    hidden = sum(not np.array_equal(*pair) for pair in pairs)
    assert 35 <= hidden <= 58  # half, less those in which chance drops nothing
    black, white = (np.full((128, 3000), level, np.uint8) for level in (0, 255))
    occlude(black, np.random.default_rng(1), 2.0)
    occlude(white, np.random.default_rng(1), 2.0)
    assert 0.01 < (black == 255).all(0).mean() < 0.5 and len(np.unique(white)) > 20
