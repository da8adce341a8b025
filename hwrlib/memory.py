"""Freed memory is kept for the next line or step, which a CPU would otherwise get anew, page by page (chapter 6)."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
KEPT = 2**30  # bytes


def keep_freed() -> None:
    """Let this process keep up to 1 GiB that it has freed, where its C library is glibc (Linux); else do nothing.

    PyTorch on a CPU asks for blocks of the same sizes in every step. glibc gives large blocks back to the system when
    they are freed, and the system must zero each page before it lends it again. See mallopt(3). Chapter 6:
    notebooks/06_analyse_the_errors.ipynb.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, KEPT)
        mallopt(M_TRIM_THRESHOLD, KEPT)
