"""A lock file: one process at a time writes to a place."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def held(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file, made with its folder; ValueError with the text `refusal` if another process does.

    A file system without locks is taken at its word.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(refusal) from None
        except OSError:  # no locks here
            pass
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()
