"""A thread that prepares items while the caller uses the previous ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any


# how long the thread waits for room before it looks whether it should stop
STOP_INTERVAL = 0.1


def prefetch(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """Run an iterator in a thread, at most `depth` items ahead.

    Exceptions of the iterator are raised here, after the items before them. Closing this generator
    stops the thread.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> None:
        # without a timeout, a full queue would keep the thread alive after the caller has left
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
        # also an interruption: the caller must not wait forever for a thread that has ended
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
