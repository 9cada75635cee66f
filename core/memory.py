"""A limit on the memory that a library may take while it reads somebody else's file.

Formats state how large an array is, and libraries believe them: a JSON file of 150 bytes can ask
for a gigabyte. The limit follows from the size of the file, and acts on every reader alike.

The system limits a process and not a thread. A program that reads files in one thread and computes
in another must not see its own work fail, so there is no limit while it has other threads. A
process of its own for each reading would cost more than the reading of most files.
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
    # Windows has no such limit
    resource = None  # type: ignore[assignment]


Item = TypeVar("Item")

# Text of a structure becomes some ten times as large in Python's objects, and compressed text
# another ten times. Beyond this, plus some for small files, a file was made to fill the memory.
MOST_PER_BYTE = 200
ALLOWANCE = 256 << 20
# a measurement takes longer than reading a small frame
SECONDS_BETWEEN_MEASUREMENTS = 0.05
STATE = Path("/proc/self/statm")

_lock = threading.Lock()
_num_inside = 0
_before = (0, 0)


@contextmanager
def memory_for_file(num_bytes: int) -> Iterator[None]:
    """Let the process take so much more memory as a file of `num_bytes` may need.

    What asks for more gets a MemoryError. The limit counts address space of the whole process, so
    the block must only read. The block runs without a limit on systems that have none, and while
    other threads work that are not daemons: the limit would hit them too. Daemons, which draw
    progress bars, are under it. So are threads of a pool that have nothing to do: torch keeps some
    for ever once it has compiled a network.
    """
    with _limited(_used(), num_bytes):
        yield


def items_within_memory(items: Iterator[Item], num_bytes: int) -> Iterator[Item]:
    """Items that are read from a file of `num_bytes`, each within the limit; see `memory_for_file`.

    What the caller does between two items is not limited, and what it keeps does not count.
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
    """Bytes of address space of this process; None where the system does not tell."""
    if resource is None:
        return None
    try:
        return int(STATE.read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return None


def _others_run() -> bool:
    """Whether this process has other threads than the current one, daemons and idle ones."""
    if threading.active_count() == 1:
        return False
    current = threading.current_thread()
    others = [one for one in threading.enumerate() if one is not current and not one.daemon]
    if not others:
        return False
    # What every thread is running, by its number. A thread that is just starting is not listed.
    frames = sys._current_frames()
    return not all(_is_idle(frames.get(one.ident or 0)) for one in others)


def _is_idle(frame: FrameType | None) -> bool:
    """Whether a thread of an executor waits for work: then its own loop is its innermost frame.

    Only a thread that works could give it some, and that thread would be counted itself.
    """
    if frame is None or frame.f_code is not thread_pools._worker.__code__:
        return False
    # work that the current thread has just given, and that has not been taken up or begun yet
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
        # another thread that reads has set a limit already; one limit serves both
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
    """A process that another thread forked in the middle has no limit, and no thread inside."""
    global _num_inside
    if _num_inside:
        _num_inside = 0
        resource.setrlimit(resource.RLIMIT_AS, _before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lift_in_child)
