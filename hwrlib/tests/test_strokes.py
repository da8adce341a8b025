"""Stroke rendering, on made-up strokes."""

import numpy as np
import pytest

from hwrlib.strokes import render_strokes

LETTERS = [[0, 0, 0, 500, 10, 520], [200, 300, 300, 100, 400, 300, 420, 510], [3000, 20, 3000, 490], [3100, 500]]


def test_strokes_fill_the_height_tightly():
    for seed in range(30):
        out = render_strokes(LETTERS, np.random.default_rng(seed))
        assert out.dtype == np.uint8 and out.shape[0] == 128 and out.max() == 255
        rows, columns = (np.where((out < 200).any(axis))[0] for axis in (1, 0))
        assert rows[0] <= 9 and rows[-1] >= 118
        assert columns[0] <= 9 and columns[-1] >= out.shape[1] - 10
        assert 5 < out.shape[1] / 128 < 7


def test_dots_and_dashes_are_drawn_and_a_drifting_line_is_levelled():
    rng = np.random.default_rng(0)
    for smallest in ([[5, 5]], [[5, 5, 5, 5]], [[0, 50, 300, 50]]):
        drawn = render_strokes(smallest, rng)
        assert drawn.min() < 150 and drawn.shape[1] <= 33 * 128
    assert render_strokes([[0, 0, 0, 100], [200, 90]], rng)[:, -20:].min() < 150
    x = np.arange(0, 5000, 10)
    level = np.stack([x, 250 * np.sin(x / 60)], 1)
    drift = level + np.stack([0 * x, 0.1 * x], 1)
    flat, climbing = (render_strokes([path.ravel()], np.random.default_rng(0)) for path in (level, drift))
    assert climbing.shape[1] > 0.95 * flat.shape[1]


def test_malformed_strokes_are_named():
    for wrong in ([], [0, 0, 5], [[0, 0], [5, 5]], [0, float("nan")], [0, 0, 1e9, 5], 3, None):
        with pytest.raises(ValueError, match="stroke 1 must be flat"):
            render_strokes([[0, 0, 5, 5], wrong], np.random.default_rng(0))
    with pytest.raises(ValueError, match="no strokes"):
        render_strokes([], np.random.default_rng(0))
