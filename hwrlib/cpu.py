"""What makes a plain CPU faster: its best precision, memory that is kept, convolutions in tiles (chapters 3 and 4)."""

import ctypes
import sys
import time

import torch
from torch import nn

Device = str | torch.device
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def matmul_rate(dtype: torch.dtype, device: Device = "cpu", size: int = 1024, seconds: float = 0.05) -> float:
    """Measured speed of matrix products in floating-point operations a second."""
    a = torch.ones(size, size, dtype=dtype, device=device)
    a @ a
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        (a @ a).flatten()[0].item()
        count += 1
    return 2 * size**3 * count / elapsed


def best_precision(device: Device = "cpu") -> str:
    """The precision that is fast here, "fp32", "bf16" or "fp16": a GPU's capability tells, a CPU is measured."""
    device = torch.device(device)
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"

    def rate(dtype: torch.dtype, size: int) -> float:  # noise only slows, so the best of three
        return max(matmul_rate(dtype, device, size, 0.02) for _ in range(3))

    # A small product first: where bfloat16 is very slow, a big one would take minutes.
    gains = (rate(torch.bfloat16, n) > least * rate(torch.float32, n) for n, least in ((128, 0.5), (1024, 1.3)))
    return "bf16" if device.type == "cpu" and all(gains) else "fp32"


def keep_freed() -> None:
    """Let glibc (Linux) keep up to 1 GiB that is freed: PyTorch asks for the same blocks in every step (mallopt(3))."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            library.mallopt(parameter, 2**30)


def tile(model: nn.Module, fixed: bool = False) -> None:
    """Let a network compute large convolutions in tiles, faster in float32 on a CPU; ``fixed`` weights never change."""
    for k, layer in enumerate(model.cnn):  # with fewer channels, the tiles cost what they spare
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.in_channels >= 128:
            model.cnn[k] = WinogradConv2d(layer, fixed)


def _both_ways(*rows: list[int], divisor: int = 1) -> torch.Tensor:
    """The Kronecker product of a matrix with itself: it transforms the rows and columns of a flattened square."""
    side = torch.tensor(rows, dtype=torch.float64) / divisor
    return torch.kron(side, side).float()


# F(4, 3) of Lavin and Gray: B transposed of the input, G of the kernel, A transposed of the output.
INPUT = _both_ways(
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
)
KERNEL = _both_ways([6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24], divisor=24)
OUTPUT = _both_ways([1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1])


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution, padded by 1, in tiles of 4 x 4 pixels: 36 multiplications where there were 144.

    It shares the weights of a convolution and gives its result, in float32 to about five digits. On a GPU, in 16 bits
    and for ONNX it is the plain one. Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.
    """

    def __init__(self, convolution: nn.Conv2d, fixed: bool = False):
        # On "meta", so that no random weights are drawn: that would change the dropout of a training that reads.
        super().__init__(convolution.in_channels, convolution.out_channels, 3, padding=1, device="meta")
        self.weight, self.bias = convolution.weight, convolution.bias
        self.register_buffer("kernels", self._transformed().detach() if fixed else None, persistent=False)

    def _transformed(self) -> torch.Tensor:
        """The weights as (36, inputs, outputs), ready to be multiplied."""
        return (KERNEL @ self.weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, self.in_channels, self.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution of maps (N, inputs, H, W): (N, outputs, H, W)."""
        if not x.is_cpu or torch.is_autocast_enabled("cpu") or torch.onnx.is_in_onnx_export():
            return super().forward(x)
        count, _, height, width = x.shape
        rows, columns = -(-height // 4), -(-width // 4)
        edges = (0, 0, 1, 4 * columns - width + 1, 1, 4 * rows - height + 1)
        padded = nn.functional.pad(x.permute(0, 2, 3, 1), edges)  # channels last: whole pieces are copied
        # Overlapping tiles of 6 x 6, each 4 px from the last: the pixels at each of their 36 places.
        parts = [padded[:, i : i + 4 * rows - 3 : 4] for i in range(6)]
        tiles = torch.stack([part[:, :, j : j + 4 * columns - 3 : 4] for part in parts for j in range(6)])
        tiles = (INPUT @ tiles.view(36, -1)).view(36, -1, self.in_channels)
        products = tiles @ (self._transformed() if self.kernels is None else self.kernels)
        squares = (OUTPUT @ products.view(36, -1)).view(4, 4, count, rows, columns, self.out_channels)
        maps = squares.permute(2, 3, 0, 4, 1, 5).reshape(count, 4 * rows, 4 * columns, self.out_channels)
        return maps[:, :height, :width].permute(0, 3, 1, 2) + self.bias[:, None, None]
