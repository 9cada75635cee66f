"""A lock file, which ensures that only one process at a time writes to a folder or file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import EvenfieldError
from .files import file_errors


class LockedError(EvenfieldError):
    """Another process holds the lock."""


@contextmanager
def held(lock: Path, refusal: LockedError) -> Iterator[None]:
    """Hold the lock file `lock` during the block.

    The file and its folder are created if needed, and the file is removed at the end. Raises
    `refusal` if another process holds the lock, and FileError if `lock` is a symbolic link or
    cannot be created. On a file system without locks, the block runs unprotected.
    """
    with file_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)

    with _locked(lock, refusal):
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()


def _locked(lock: Path, refusal: LockedError) -> BinaryIO:
    """Open and lock the file. Raises `refusal` if it is locked already, and FileError."""
    while True:
        remedy = "remove it, it is a link" if lock.is_symlink() else None
        with file_errors(lock, remedy=remedy):
            # following a link could create or lock a file in a folder that the user did not name
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        file = os.fdopen(descriptor, "r+b")

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise refusal from None
        except OSError:
            # some network file systems have no locks; it is better to run without protection
            return file

        # The previous holder removes the file. If that happened between the two calls above, this
        # lock is on a deleted file, and another process could lock a new one. Then try again.
        if _is_at(lock, file):
            return file
        file.close()


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
