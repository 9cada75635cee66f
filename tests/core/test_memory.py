"""A reader gets memory in proportion to its file, and the process keeps its own limit."""

from __future__ import annotations

import multiprocessing
import threading

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


def test_two_threads_that_read_leave_the_limit_as_it_was():
    before = limit()
    inside = threading.Barrier(2)
    first_is_out = threading.Event()

    def first():
        with memory_for_file(1):
            inside.wait()
        first_is_out.set()

    thread = threading.Thread(target=first)
    thread.start()
    with memory_for_file(1):
        inside.wait()
        first_is_out.wait()
        assert limit() != before
    thread.join()
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
