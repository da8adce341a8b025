"""What makes a plain CPU faster gives what it would give without."""

import subprocess
import sys

import pytest
import torch

from hwrlib.cpu import WinogradConv2d

FAULTS = """
import resource, sys, torch
from hwrlib.cpu import keep_freed

if sys.argv[1] == "kept":
    keep_freed()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for megabytes in (48, 16, 32):
        [torch.ones(megabytes, 2**18) for _ in range(2)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
def test_memory_that_was_freed_is_used_again_without_page_faults():
    kept, given_back = (int(subprocess.check_output([sys.executable, "-c", FAULTS, way])) for way in ("kept", "not"))
    assert kept < 0.1 * given_back


def test_winograds_convolution_and_its_gradients_are_those_of_the_plain_one_which_it_is_in_16_bits():
    for shape in [(1, 16, 268), (2, 5, 7), (1, 1, 1), (3, 4, 4), (1, 8, 9)]:
        torch.manual_seed(0)
        count, *size = shape
        convolution = torch.nn.Conv2d(20, 30, 3, padding=1)
        x, gradient = torch.randn(count, 20, *size, requires_grad=True), torch.randn(count, 30, *size)
        outputs = [layer(x) for layer in (convolution, WinogradConv2d(convolution))]
        inputs = [x, convolution.weight, convolution.bias]
        expected, found = ((y, *torch.autograd.grad(y, inputs, gradient)) for y in outputs)
        for plain, tiled in zip(expected, found, strict=True):
            torch.testing.assert_close(tiled, plain, atol=2e-5 * plain.abs().max().item(), rtol=0)
        torch.testing.assert_close(WinogradConv2d(convolution, fixed=True)(x), expected[0], atol=1e-4, rtol=1e-4)
    convolution, x, before = torch.nn.Conv2d(20, 30, 3, padding=1), torch.randn(1, 20, 9, 9), torch.get_rng_state()
    tiled = WinogradConv2d(convolution)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tiled(x), convolution(x))
