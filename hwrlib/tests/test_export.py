"""The ONNX file: the same log-probabilities as torch, for one line of any width."""

import importlib.util

import pytest
import torch

from hwrlib import WEIGHTS
from hwrlib.cpu import tile
from hwrlib.model import CRNN, export_onnx


@torch.inference_mode()
def test_a_line_of_any_width_gives_what_torch_gives_also_from_a_network_in_tiles(tmp_path):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = CRNN.from_pretrained(WEIGHTS)
    export_onnx(model, tmp_path / "plain.onnx")
    tile(model)
    export_onnx(model, tmp_path / "tiled.onnx")
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "tiled.onnx").read_bytes()
    session = onnxruntime.InferenceSession(tmp_path / "plain.onnx", providers=["CPUExecutionProvider"])
    for width in (8, 9, 500, 1000):
        line = torch.rand(1, 1, 128, width, generator=torch.Generator().manual_seed(width)) * 2 - 1
        (found,) = session.run(None, {"image": line.numpy()})
        assert found.shape == (1, width // 4 - 1, model.alphabet.classes)
        torch.testing.assert_close(torch.from_numpy(found), model(line), atol=1e-3, rtol=0)


def test_without_onnx_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install onnx"):
        export_onnx(CRNN.from_pretrained(WEIGHTS), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
