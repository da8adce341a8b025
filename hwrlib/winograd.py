"""A convolution in a quarter of the multiplications, for reading in float32 on a CPU (chapter 3)."""

import torch
from torch import nn

CHANNELS = 128  # of the input: where there are fewer, the tiles cost what they spare

# F(4, 3) of Lavin and Gray: B transposed of the input, G of the kernel, A transposed of the output.
INPUT = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
KERNEL = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]  # times 24
OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution, padded by 1, in tiles of 4 x 4 pixels: 36 multiplications where there were 144.

    Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016. Chapter 3:
    notebooks/03_build_the_crnn.ipynb.

    Arguments:
        convolution: whose result it gives, in float32 to about five digits; what that learns later has no effect.

    >>> convolution, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 7, 10)
    >>> torch.allclose(WinogradConv2d(convolution)(x), convolution(x), atol=1e-4)
    True
    """

    def __init__(self, convolution: nn.Conv2d):
        # On "meta", so that no random weights are drawn: that would change the dropout of a training that reads.
        super().__init__(convolution.in_channels, convolution.out_channels, 3, padding=1, device="meta")
        sides = torch.tensor(KERNEL, dtype=torch.float64) / 24
        kernels = torch.kron(sides, sides) @ convolution.weight.detach().double().permute(2, 3, 1, 0).reshape(9, -1)
        self.weight = nn.Parameter(kernels.float().view(36, self.in_channels, -1))  # (36, inputs, outputs)
        self.bias = convolution.bias
        for name, matrix in (("into", INPUT), ("back", OUTPUT)):
            side = torch.tensor(matrix, dtype=torch.float32)
            self.register_buffer(name, torch.kron(side, side), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution of maps (N, inputs, H, W): (N, outputs, H, W)."""
        count, _, height, width = x.shape
        rows, columns = -(-height // 4), -(-width // 4)  # tiles
        edges = (0, 0, 1, 4 * columns - width + 1, 1, 4 * rows - height + 1)
        padded = nn.functional.pad(x.permute(0, 2, 3, 1), edges)  # channels last: a tile's rows are then whole pieces
        tiles = padded.unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3).reshape(36, -1)
        products = (self.into @ tiles).view(36, -1, self.in_channels) @ self.weight
        tiles = (self.back @ products.view(36, -1)).view(4, 4, count, rows, columns, self.out_channels)
        maps = tiles.permute(2, 3, 0, 4, 1, 5).reshape(count, 4 * rows, 4 * columns, -1)[:, :height, :width]
        return (maps + self.bias).permute(0, 3, 1, 2)
