"""A small network marks where the lines of a page are: their baselines, their upper edges and their ends (chapter 7).

A U-Net (Ronneberger et al., 2015) labels each pixel, as in Kiessling, "A modular region and text line layout analysis
system" (2020), and Gruening et al., "A two-stage method for text line detection in historical documents" (2019).
"""

import functools
import itertools
from typing import NamedTuple

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from hwrlib import WEIGHTS

CLOSE = 256  # px of the longest side: a word on so small a copy may fill the picture
REDUCTION = 2  # a map has half the sides of what the network sees
CHANNELS = 16, 24, 40, 64, 96


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(outputs), nn.ReLU(True), second, nn.BatchNorm2d(outputs), nn.ReLU(True))


class LineMapper(nn.Module):
    """A U-Net from a picture to the logits of three maps at half its size: baselines, upper edges, ends of lines."""

    def __init__(self):
        super().__init__()
        pairs = list(itertools.pairwise(CHANNELS))
        self.down = nn.ModuleList([_block(1, CHANNELS[0], REDUCTION), *(_block(*pair) for pair in pairs)])
        self.up = nn.ModuleList(_block(beside + below, beside) for beside, below in pairs)
        self.head = nn.Conv2d(CHANNELS[0], 3, 1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits (N, 3, H / 2, W / 2) of pictures (N, 1, H, W) as :func:`map_lines` makes them; 32 divides H, W."""
        levels = []
        for block in self.down:
            levels.append(block(F.max_pool2d(levels[-1], 2) if levels else pictures))
        x = levels.pop()
        for block in reversed(self.up):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="bilinear"), levels.pop()], 1))
        return self.head(x)


class Maps(NamedTuple):
    """The probabilities of a picture's pixels to lie on a baseline, an upper edge, an end of a line."""

    baseline: np.ndarray  # float32 (H, W), 0 to 1, as the two below
    upper: np.ndarray
    end: np.ndarray
    scale: float  # pixels of a map for a pixel of the picture


@functools.cache
def embedded_mapper() -> LineMapper:
    """The embedded network, on the CPU."""
    network = LineMapper()
    network.load_state_dict(load_file(WEIGHTS / "lines.safetensors"))
    return network.eval()


@torch.inference_mode()
def map_lines(page: np.ndarray, longest: int) -> Maps:
    """The maps of a page, uint8 (H, W), scaled so that its longest side has so many pixels (at most 1.6 times)."""
    scale = min(1.6, longest / max(page.shape))
    height, width = (max(1, round(side * scale)) for side in page.shape)
    small = cv2.resize(page, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    paper = longest // 8 * REDUCTION if longest <= CLOSE else 0  # around a word that fills its picture
    grey = np.pad(small, paper, constant_values=int(np.median(small))).astype(np.float32)
    around = max(grey.shape) // 8 | 1
    grey = (grey - cv2.blur(grey, (around, around))) / 48
    padded = np.pad(grey, [(0, -side % 32) for side in grey.shape], mode="edge")
    logits = embedded_mapper()(torch.from_numpy(padded)[None, None])[0]
    rows, columns = (slice(paper // REDUCTION, -(-(paper + side) // REDUCTION)) for side in (height, width))
    maps = logits[:, rows, columns].sigmoid().numpy()
    return Maps(*maps, scale / REDUCTION)
