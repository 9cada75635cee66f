"""Processes for labelling: fresh, of one thread each, silent, and gone when their parent is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def worker_pool(num_workers: int | None) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes of one thread each that ends at once, its queue dropped, when left."""
    threads_before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited: a worker that set it itself could be too late
    context = multiprocessing.get_context(
        "spawn"
    )  # fork would inherit threads that are already started
    executor = ProcessPoolExecutor(
        num_workers or _num_cores(), mp_context=context, initializer=_start_worker
    )
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        del os.environ["OMP_NUM_THREADS"]
        if threads_before is not None:
            os.environ["OMP_NUM_THREADS"] = threads_before


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, end when the parent ends, print nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # the calculators' libraries may print past Python
    os.dup2(silence, 2)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
