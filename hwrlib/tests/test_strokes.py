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
        assert out.min() < 110


def test_strokes_as_arrays_any_unit_and_height():
    strokes = [np.array(stroke, np.int16) for stroke in LETTERS]
    whole = render_strokes(LETTERS, np.random.default_rng(3))
    assert np.array_equal(render_strokes(strokes, np.random.default_rng(3)), whole)
    shifted = [np.array(stroke) * 0.25 + 777 for stroke in LETTERS]
    assert np.abs(render_strokes(shifted, np.random.default_rng(3)).astype(int) - whole).mean() < 1
    assert render_strokes(LETTERS, np.random.default_rng(3), height=64).shape[0] == 64


def test_pen_width_varies_within_bounds():
    upright = [[0, 0, 0, 100], [60, 0, 60, 100]]
    widths = []
    for seed in range(60):
        out = render_strokes(upright, np.random.default_rng(seed))[40:90]
        widths.append(((255 - out[:, : out.shape[1] // 2].astype(float)) / (255 - out.min())).sum(1).mean())
    assert 1.4 < min(widths) < 3.5 and 4 < max(widths) < 7.5


def test_a_dot_a_dash_and_a_dot_beside_a_letter_are_drawn():
    rng = np.random.default_rng(0)
    assert render_strokes([[5, 5]], rng).min() < 150
    assert render_strokes([[5, 5, 5, 5]], rng).min() < 150
    dash = render_strokes([[0, 50, 300, 50]], rng)
    assert dash.min() < 150 and dash.shape[1] <= 33 * 128
    with_dot = render_strokes([[0, 0, 0, 100], [200, 90]], rng)
    assert with_dot[:, -20:].min() < 150


def test_a_drifting_line_is_levelled():
    x = np.arange(0, 5000, 10)
    level = np.stack([x, 250 * np.sin(x / 60)], 1)
    drift = level + np.stack([0 * x, 0.1 * x], 1)
    flat, climbing = (render_strokes([path.ravel()], np.random.default_rng(0)) for path in (level, drift))
    assert climbing.shape[1] > 0.95 * flat.shape[1]


@pytest.mark.parametrize(
    ("strokes", "message"),
    [
        ([], "no strokes"),
        ([[0, 0, 5, 5], []], "stroke 1 .*not empty"),
        ([[0, 0, 5]], "stroke 0 .*flat"),
        ([[[0, 0], [5, 5]]], "stroke 0 .*flat"),
        ([["a", "b"]], "stroke 0 .*numbers"),
        ([[[0, 1], [2]]], "stroke 0 .*numbers"),
        ([[0, float("nan")]], "stroke 0 .*finite"),
        ([[0, 0, 1e9, 5]], "stroke 0 .*beyond"),
        ([3], "stroke 0 .*flat"),
        ([None], "stroke 0"),
        (None, "no strokes"),
        (5, "no strokes"),
    ],
)
def test_malformed_strokes(strokes, message):
    with pytest.raises(ValueError, match=message):
        render_strokes(strokes, np.random.default_rng(0))
