"""A convolution in a quarter of the multiplications, for float32 on a CPU (chapter 3)."""

import torch
from torch import nn

CHANNELS = 128  # of the input: where there are fewer, the tiles cost what they spare


def _both_ways(matrix: list[list[int]], divisor: int = 1) -> torch.Tensor:
    """The matrix that does to a square, its rows end to end, what this one does to its rows and to its columns."""
    side = torch.tensor(matrix, dtype=torch.float64) / divisor
    return torch.kron(side, side).float()


# F(4, 3) of Lavin and Gray: B transposed of the input, G of the kernel, A transposed of the output.
INPUT = _both_ways(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
KERNEL = _both_ways([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], 24)
OUTPUT = _both_ways([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution, padded by 1, in tiles of 4 x 4 pixels: 36 multiplications where there were 144.

    On a GPU, in 16 bits and for ONNX it is the plain convolution. Lavin and Gray, "Fast Algorithms for Convolutional
    Neural Networks", 2016. Chapter 3: notebooks/03_build_the_crnn.ipynb.

    Arguments:
        convolution: whose weights it shares and whose result it gives, in float32 to about five digits.
        fixed: whether the weights will never change, so that they are transformed once.

    >>> convolution, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 7, 10)
    >>> torch.allclose(WinogradConv2d(convolution)(x), convolution(x), atol=1e-4)
    True
    """

    def __init__(self, convolution: nn.Conv2d, fixed: bool = False):
        # On "meta", so that no random weights are drawn: that would change the dropout of a training that reads.
        super().__init__(convolution.in_channels, convolution.out_channels, 3, padding=1, device="meta")
        self.weight, self.bias = convolution.weight, convolution.bias
        kernels = _kernels(self.weight.detach()) if fixed else None
        self.register_buffer("kernels", kernels, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution of maps (N, inputs, H, W): (N, outputs, H, W)."""
        if not x.is_cpu or torch.is_autocast_enabled("cpu") or torch.onnx.is_in_onnx_export():
            return super().forward(x)
        if self.kernels is None:
            return _InTiles.apply(x, self.weight, self.bias)
        return _multiply(_transformed(x), self.kernels, x.shape) + self.bias[:, None, None]


class _InTiles(torch.autograd.Function):
    """The convolution and its gradients, all three products in tiles."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        tiles = _transformed(x)
        ctx.save_for_backward(tiles, weight)
        return _multiply(tiles, _kernels(weight), x.shape) + bias[:, None, None]

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        tiles, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:  # the gradient of the output, convolved with the kernels turned round
            turned = _kernels(weight.flip(2, 3).transpose(0, 1))
            of_x = _multiply(_transformed(gradient), turned, gradient.shape)
        if ctx.needs_input_grad[1]:
            outputs, inputs = weight.shape[:2]
            products = tiles.transpose(1, 2) @ (OUTPUT.T @ _tiles(gradient, 4)).view(36, -1, outputs)
            of_weight = (KERNEL.T @ products.view(36, -1)).view(3, 3, inputs, outputs).permute(3, 2, 0, 1)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias


def _tiles(x: torch.Tensor, size: int) -> torch.Tensor:
    """Maps (N, C, H, W) cut into tiles: (size * size, tiles * C), each 4 px from the last; of 6 they overlap."""
    edge = (size - 4) // 2
    right, below = (edge - side % -4 for side in x.shape[:1:-1])
    # Channels last: a tile's rows are then whole pieces.
    padded = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, edge, right, edge, below))
    return padded.unfold(1, size, 4).unfold(2, size, 4).permute(4, 5, 0, 1, 2, 3).reshape(size * size, -1)


def _transformed(x: torch.Tensor) -> torch.Tensor:
    """Maps (N, C, H, W) as (36, tiles, C), ready to be multiplied."""
    return (INPUT @ _tiles(x, 6)).view(36, -1, x.shape[1])


def _kernels(weight: torch.Tensor) -> torch.Tensor:
    """Weights (outputs, inputs, 3, 3) as (36, inputs, outputs), ready to be multiplied."""
    outputs, inputs = weight.shape[:2]
    return (KERNEL @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, inputs, outputs)


def _multiply(tiles: torch.Tensor, kernels: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The maps (N, outputs, H, W) that transformed tiles and kernels give; ``shape`` is (N, any, H, W)."""
    count, _, height, width = shape
    rows, columns = -(-height // 4), -(-width // 4)
    products = tiles @ kernels
    squares = (OUTPUT @ products.view(36, -1)).view(4, 4, count, rows, columns, -1)
    maps = squares.permute(2, 3, 0, 4, 1, 5).reshape(count, 4 * rows, 4 * columns, -1)
    return maps[:, :height, :width].permute(0, 3, 1, 2)
