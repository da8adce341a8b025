"""The precision chosen is one that this machine has and Accelerate knows."""

import torch

from hwrlib.precision import DTYPES, best_precision, matmul_rate


def test_precision_is_one_of_accelerates():
    assert best_precision("cpu") in ("no", "bf16")
    assert set(DTYPES) == {"no", "bf16", "fp16"}


def test_bfloat16_is_chosen_where_it_is_faster_by_far(monkeypatch):
    for gain, chosen in ((0.003, "no"), (1.0, "no"), (2.0, "bf16")):
        rates = {torch.float32: 1.0, torch.bfloat16: gain}
        monkeypatch.setattr("hwrlib.precision.matmul_rate", lambda dtype, *_, rates=rates: rates[dtype])
        assert best_precision("cpu") == chosen


def test_a_rate_is_measured():
    assert matmul_rate(torch.float32, size=16, seconds=0.001) > 0
