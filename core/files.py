"""Files: written whole or not at all; errors of the operating system become errors for users."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import EvenfieldError


class FileError(EvenfieldError):
    """A file that cannot be read or written, with the operating system's reason."""


@contextmanager
def file_errors(path: Path | str, remedy: str | None = None) -> Iterator[None]:
    """Turn an OSError inside the block into a FileError about `path`, or the error's own file.

    Wrap it around every read and write of a path that a user chose.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(reason, file=error.filename or path, remedy=remedy) from error


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a whole file or none: a temporary name next to it, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        # it is still there only if something failed
        temporary.unlink(missing_ok=True)
