"""A lock file: one process at a time writes into a folder or a file."""

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
    """Hold `lock`, a file that is created together with its folder and removed at the end.

    Raises `refusal` when another process holds it, FileError when `lock` is a symbolic link or
    cannot be created. On a file system without locks nothing is locked and nothing is refused.
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
    """The open and locked file."""
    while True:
        remedy = "remove it, it is a link" if lock.is_symlink() else None
        with file_errors(lock, remedy=remedy):
            # A link would create or lock a file in a folder that the user did not name.
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        file = os.fdopen(descriptor, "r+b")

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise refusal from None
        except OSError:
            # some network file systems have no locks: better unprotected than unusable
            return file

        # The last holder removes the file. If it did so between the two calls above, this lock is
        # on a file that has no name any more, and another process could lock a new one.
        if _is_at(lock, file):
            return file
        file.close()


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
