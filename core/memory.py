"""Limit the memory that a library may allocate while it reads an untrusted file.

Many formats state the size of an array, and libraries trust it: a JSON file of 150 bytes can ask
for a gigabyte. The limit depends on the size of the file, and applies to every reader alike.

The operating system limits a process, not a thread. If a program reads files in one thread and
computes in another, the limit could make the computation fail. So there is no limit while other
threads are running. A separate process for each file would take longer than reading most files.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import thread as thread_pools
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar


try:
    import resource
except ImportError:
    # Windows does not have this module
    resource = None  # type: ignore[assignment]


Item = TypeVar("Item")

# The text of a structure grows about tenfold in Python objects, and compressed text tenfold again.
# A file that needs more than MOST_PER_BYTE times its size, plus an allowance (bytes) for small
# files, was made to fill the memory.
MOST_PER_BYTE = 200
ALLOWANCE = 256 << 20
# memory use is measured only this often, because it takes longer than reading a small frame
SECONDS_BETWEEN_MEASUREMENTS = 0.05
STATE = Path("/proc/self/statm")

_lock = threading.Lock()
_num_inside = 0
_before = (0, 0)


@contextmanager
def memory_for_file(num_bytes: int) -> Iterator[None]:
    """Limit the additional memory of the block to what a file of `num_bytes` may need.

    Larger allocations raise MemoryError. The limit applies to the address space of the whole
    process, so the block should do nothing but read. There is no limit on systems that do not
    support it, or while non-daemon threads are running, which it would affect too. Daemon threads,
    such as those of progress bars, are ignored. Idle threads of a pool are ignored as well: torch
    keeps some forever once it has compiled a network.
    """
    with _limited(_used(), num_bytes):
        yield


def items_within_memory(items: Iterator[Item], num_bytes: int) -> Iterator[Item]:
    """Yield items that are read from a file of `num_bytes`, each under `memory_for_file`.

    The caller's work between two items is not limited, and the memory that it keeps does not count.
    """
    used = None
    measured = 0.0
    while True:
        now = time.monotonic()
        if used is None or now - measured > SECONDS_BETWEEN_MEASUREMENTS:
            used = _used()
            measured = now
        with _limited(used, num_bytes):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def _used() -> int | None:
    """Address space used by this process in bytes; None if the system does not report it."""
    if resource is None:
        return None
    try:
        return int(STATE.read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return None


def _others_run() -> bool:
    """Whether other threads are at work, not counting daemons and idle threads of a pool."""
    if threading.active_count() == 1:
        return False
    current = threading.current_thread()
    others = [one for one in threading.enumerate() if one is not current and not one.daemon]
    if not others:
        return False
    # thread id -> its innermost frame; a thread that is just starting is not listed
    frames = sys._current_frames()
    return not all(_is_idle(frames.get(one.ident or 0)) for one in others)


def _is_idle(frame: FrameType | None) -> bool:
    """Whether a pool thread is waiting for work: its innermost frame is then the worker loop.

    It can get work only from a thread that is running, and that thread is counted itself.
    """
    if frame is None or frame.f_code is not thread_pools._worker.__code__:
        return False
    # the current thread may just have submitted work that has not been started yet
    known = frame.f_locals
    work_queue = known.get("work_queue")
    return known.get("work_item") is None and work_queue is not None and work_queue.empty()


@contextmanager
def _limited(used: int | None, num_bytes: int) -> Iterator[None]:
    if used is None or _others_run():
        yield
        return
    _begin(used + ALLOWANCE + MOST_PER_BYTE * num_bytes)
    try:
        yield
    finally:
        _end()


def _begin(limit: int) -> None:
    global _num_inside, _before
    with _lock:
        if _num_inside == 0:
            _before = resource.getrlimit(resource.RLIMIT_AS)
            soft, hard = _before
            if soft == resource.RLIM_INFINITY or limit < soft:
                _set(limit, hard)
        # if another reading thread has already set a limit, it serves both
        _num_inside += 1


def _end() -> None:
    global _num_inside
    with _lock:
        _num_inside -= 1
        if _num_inside == 0:
            resource.setrlimit(resource.RLIMIT_AS, _before)


def _set(soft: int, hard: int) -> None:
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _lift_in_child() -> None:
    """Remove the limit in a process that another thread forked while a file was being read."""
    global _num_inside
    if _num_inside:
        _num_inside = 0
        resource.setrlimit(resource.RLIMIT_AS, _before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lift_in_child)
