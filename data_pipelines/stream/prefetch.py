"""Prepare items in a thread while the caller uses the previous ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any


# seconds for which the thread waits for room in the queue before it checks whether to stop
STOP_INTERVAL = 0.1


def prefetch(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """Run an iterator in a thread, at most `depth` items ahead, and yield its items.

    An exception of the iterator is raised here, after all items before it. Closing this generator
    stops the thread.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> None:
        # without a timeout, the thread would block on a full queue after the caller has stopped
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=STOP_INTERVAL)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                put("item", item)
                if stop.is_set():
                    return
            put("end", None)
        # BaseException, because the caller must not wait for a thread that was interrupted
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        thread.join()
