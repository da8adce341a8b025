"""What more than one test module needs."""

import io
import os

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from hwrlib.alphabet import IAM
from hwrlib.model import CRNN

settings.register_profile("steady", deadline=None, derandomize=True)  # no timing, and the same examples each time
settings.load_profile("steady")


def encoded(image, kind="PNG", **options):
    """The bytes of an image file, of an image or of pixels."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def strokes(width, height=32, seed=0):
    """A line (height, width) of upright strokes at random places."""
    pixels = np.full((height, width), 255, np.uint8)
    for x in np.random.default_rng(seed).integers(2, width - 4, width // 8):
        pixels[height * 3 // 16 : height * 13 // 16, x : x + 2] = 0
    return pixels


def untrained(alphabet=IAM, width_divisor=1.0):
    """A network that is as sure as a trained one: what it reads is not what is tested."""
    torch.manual_seed(0)
    model = CRNN(alphabet, width_divisor)
    with torch.no_grad():
        model(torch.rand(2, 1, 128, 64) * 2 - 1)  # batch norm with statistics of its own
        model.fc.weight.mul_(20)
        model.fc.bias.zero_()
    return model.eval()


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def one_thread():
    """A single thread: small networks train faster so, and always add up in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
