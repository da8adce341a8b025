"""Which numbers to compute with: what is fast on this machine, by measuring it (chapter 4)."""

import time

import torch

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # Accelerate's names


def matmul_rate(dtype: torch.dtype, device="cpu", size: int = 1024, seconds: float = 0.05) -> float:
    """Measured rate of matrix products in floating-point operations a second."""
    a = torch.ones(size, size, dtype=dtype, device=device)
    a @ a
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        (a @ a).flatten()[0].item()
        count += 1
    return 2 * size**3 * count / elapsed


def best_precision(device="cpu") -> str:
    """The precision that is fast on this machine: "bf16", "fp16" or "no" (float32), the names Accelerate uses.

    A GPU says by its compute capability (float16 before 8, bfloat16 since); a CPU is measured, since some take
    bfloat16 but run it hundreds of times slower than float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if device.type != "cpu":
        return "no"

    def rate(dtype: torch.dtype, size: int, seconds: float) -> float:  # noise only slows, so the best of three
        return max(matmul_rate(dtype, device, size, seconds) for _ in range(3))

    if rate(torch.bfloat16, 128, 0.01) < 0.5 * rate(torch.float32, 128, 0.01):
        return "no"  # where it is very slow, the big product would take minutes
    return "bf16" if rate(torch.bfloat16, 1024, 0.02) > 1.3 * rate(torch.float32, 1024, 0.02) else "no"
