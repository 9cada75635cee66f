"""Worker processes for converting and labelling.

Workers are spawned, use one thread each, print nothing, and end together with their parent.
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


# more than any machine needs; a pool fails for arbitrarily large numbers
MOST_WORKERS = 1024


class WorkerEndedError(EvenfieldError):
    """A worker process ended before its work was done."""


@contextmanager
def worker_pool(num_workers: int | None) -> Iterator[ProcessPoolExecutor]:
    """A pool of `num_workers` spawned processes (None: one per core) with one thread each.

    Leaving the context cancels tasks that have not started, and waits for the running ones.

    Raises WorkerEndedError if a worker is killed or ended by the code that it runs.
    """
    # Libraries read the variable when they are loaded. It is set here and inherited by the workers,
    # because a worker might set it too late.
    threads_before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"

    # a forked worker would inherit locks and other state of threads that it does not have
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
    """Initialise a worker: ignore Ctrl-C, end when the parent ends, and print nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    # redirect file descriptors, because some calculators print from compiled code
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _num_cores() -> int:
    """Number of cores that this process may use; a job scheduler may limit them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
