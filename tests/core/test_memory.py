"""A reader gets memory in proportion to its file, and the process keeps its own limit."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from evenfield.core import memory
from evenfield.core.memory import items_within_memory, memory_for_file


resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(
    not memory.STATE.exists(), reason="this system does not tell the memory of a process"
)

TOO_LARGE = 1 << 30  # bytes


def limit():
    return resource.getrlimit(resource.RLIMIT_AS)


def test_a_reader_of_a_small_file_gets_no_gigabyte():
    before = limit()
    with pytest.raises(MemoryError), memory_for_file(150):
        np.empty(TOO_LARGE, np.uint8)
    assert limit() == before
    # what is not a reader gets it
    np.empty(TOO_LARGE, np.uint8)


def test_a_larger_file_may_take_more():
    with memory_for_file(TOO_LARGE // 100):
        np.empty(TOO_LARGE, np.uint8)


def test_only_the_reading_of_an_item_is_limited():
    before = limit()
    kept = []
    for item in items_within_memory(iter(range(3)), 1):
        assert limit() == before
        kept.append(np.full(150 << 20, item, np.uint8))
    assert len(kept) == 3

    def bomb():
        yield 1
        np.empty(TOO_LARGE, np.uint8)

    items = items_within_memory(bomb(), 1)
    assert next(items) == 1
    with pytest.raises(MemoryError):
        next(items)
    assert limit() == before


@pytest.mark.parametrize("reader_is_main", [True, False])
def test_the_work_of_another_thread_is_not_limited(reader_is_main):
    """The system knows only limits of the whole process."""
    before = limit()
    is_reading = threading.Event()
    is_done = threading.Event()
    made = []

    def read():
        with memory_for_file(1):
            is_reading.set()
            is_done.wait(60)

    def work():
        is_reading.wait(60)
        made.append(np.empty(TOO_LARGE, np.uint8).nbytes)
        is_done.set()

    here, there = (read, work) if reader_is_main else (work, read)
    thread = threading.Thread(target=there)
    thread.start()
    here()
    thread.join()
    assert made == [TOO_LARGE]
    assert limit() == before


def test_a_reader_next_to_a_progress_bar_is_limited():
    is_done = threading.Event()
    bar = threading.Thread(target=is_done.wait, args=(60,), daemon=True)
    bar.start()
    with pytest.raises(MemoryError), memory_for_file(150):
        np.empty(TOO_LARGE, np.uint8)
    is_done.set()
    bar.join()


def test_an_idle_pool_of_threads_takes_no_limit_away():
    """Such as the one of torch's compiler, which stays for the whole life of a process."""
    is_done = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        pool.submit(int).result()
        with pytest.raises(MemoryError), memory_for_file(150):
            np.empty(TOO_LARGE, np.uint8)

        before = limit()
        work = pool.submit(is_done.wait, 60)
        with memory_for_file(1):
            assert limit() == before
        is_done.set()
        assert work.result()


def test_two_readings_at_once_leave_the_limit_as_it_was():
    before = limit()
    with memory_for_file(1):
        with memory_for_file(1):
            assert limit() != before
        assert limit() != before
    assert limit() == before


def test_a_process_that_is_forked_in_the_middle_has_no_limit():
    context = multiprocessing.get_context("fork")
    before = limit()
    with memory_for_file(1):
        child = context.Process(target=_exit_with, args=(before,))
        child.start()
    child.join()
    assert child.exitcode == 0


def _exit_with(expected):
    raise SystemExit(0 if limit() == expected else 1)
