"""Worker processes for converting and labelling: fresh, one thread each, silent, and gone when
their parent is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from .errors import EvenfieldError


# Beyond any machine; the queue of a pool cannot count as far as a user can type.
MOST_WORKERS = 1024


class WorkerEndedError(EvenfieldError):
    """A worker process that ended before its work was done."""


@contextmanager
def worker_pool(num_workers: int | None) -> Iterator[ProcessPoolExecutor]:
    """A pool of `num_workers` fresh processes (None: one per core), each with one thread.

    Leaving the context drops the tasks that have not started and waits for those that have.

    Raises WorkerEndedError where a process ends by itself: killed, or by what it computes.
    """
    # Libraries read the variable when they are loaded. The workers inherit it, because a worker
    # that set it itself might do so too late.
    threads_before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"

    # a forked worker would inherit the state of threads that it does not have
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(
        num_workers or _num_cores(), mp_context=context, initializer=_start_worker
    )
    try:
        yield executor
    except BrokenProcessPool:
        raise WorkerEndedError(
            "a worker process was killed, perhaps because the memory was full, or was ended by "
            "what it computed",
            remedy="run the same command again, with fewer workers if the memory was full",
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        del os.environ["OMP_NUM_THREADS"]
        if threads_before is not None:
            os.environ["OMP_NUM_THREADS"] = threads_before


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, end when the parent ends, print nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    # the libraries of some calculators print from compiled code, which sys.stdout does not see
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _num_cores() -> int:
    """The cores that this process may use, which a job scheduler can make fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
