"""A lock file: one process at a time writes into a folder or a file."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import EvenfieldError
from .files import file_errors


class LockedError(EvenfieldError):
    """Another process holds the lock."""


@contextmanager
def held(lock: Path, refusal: LockedError) -> Iterator[None]:
    """Hold `lock`, a file that is created together with its folder and removed at the end.

    Raises `refusal` when another process holds it. On a file system without locks nothing is
    locked and nothing is refused.
    """
    with file_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")

    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        except OSError:
            # some network file systems have no locks: better unprotected than unusable
            pass
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()
