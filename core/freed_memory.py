"""What the C library does with memory that is freed."""

from __future__ import annotations

import contextlib
import ctypes


# options of glibc's mallopt (malloc.h)
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: a CPU step allocates the same tensors again and again.

    Otherwise every tensor above 128 kB is a fresh mapping whose pages the kernel has to zero. A
    training step was measured to be 1.1 to 1.3 times as fast with it, and a call for 8,000 atoms
    1.5 times. It holds for the whole process. Other C libraries are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
