"""Control what the C library does with freed memory."""

from __future__ import annotations

import contextlib
import ctypes


# options of glibc's mallopt (malloc.h)
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory, because a step on the CPU allocates the same tensors again.

    By default, glibc maps fresh pages for every tensor above 128 kB, and the kernel has to zero
    them. In our measurements, keeping freed memory makes a training step 1.1 to 1.3 times as fast,
    and a call for 8,000 atoms 1.5 times. This affects the whole process. With other C libraries, it
    does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
