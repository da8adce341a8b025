"""The ONNX file: the same log-probabilities as torch, for one line of any width."""

import numpy as np
import pytest
import torch

from hwrlib.__main__ import main
from hwrlib.data import load_lines
from hwrlib.images import prepare
from hwrlib.model import CRNN, export_onnx, tile
from hwrlib.recognizer import WEIGHTS

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    assert main(["export", str(path)]) == 0
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def test_fifty_beginnings_of_lines_give_what_torch_gives(session):
    model, widths = CRNN.from_pretrained(WEIGHTS), set()
    tile(model)  # quicker, and the same to 1e-5
    for row in load_lines("validation", "sample").select(range(50)):
        line = prepare(row["image"], width_divisor=model.width_divisor)[None]
        line = line[..., : line.shape[-1] // 4]
        (found,) = session.run(None, {"image": line.numpy()})
        expected = model(line).numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-4
        widths.add(line.shape[-1])
    assert len(widths) > 30


def test_a_network_that_was_trained_in_tiles_is_exported_as_any_other(tmp_path):
    model = CRNN.from_pretrained(WEIGHTS)
    export_onnx(model, tmp_path / "plain.onnx")
    tile(model)
    export_onnx(model, tmp_path / "tiled.onnx")
    operators = [
        [node.op_type for node in onnx.load(tmp_path / name).graph.node] for name in ("plain.onnx", "tiled.onnx")
    ]
    assert operators[0] == operators[1]


@pytest.mark.parametrize("width", [8, 9, 3000])
def test_the_narrowest_and_a_wide_line_are_read(session, width):
    (found,) = session.run(None, {"image": np.ones((1, 1, 128, width), np.float32)})
    assert found.shape == (1, width // 4 - 1, CRNN.from_pretrained(WEIGHTS).alphabet.classes)
    assert np.exp(found).sum(axis=-1) == pytest.approx(1, abs=1e-4)
