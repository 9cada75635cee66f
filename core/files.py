"""Files: written whole or not at all; errors of the operating system become errors for users."""

from __future__ import annotations

import os
import secrets
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


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The path of a temporary file in the same folder, which takes the name `path` on success.

    The block creates the temporary file. It may use any library that takes a path. Readers see
    the old file or the new one, never a part of either. When the block fails, the old file is
    still there and the temporary file is removed.

    A symbolic link at `path` is replaced. The file that it points to is left alone.
    """
    # A process id would not be unique: two threads may write the same file, and so may two
    # machines on one network file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary

        # Without this, a crash of the machine could leave an empty file under the final name.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        # it is still there only if something failed
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a whole file or none, in the way of `whole_file`."""
    content = data.encode() if isinstance(data, str) else data

    with whole_file(path) as temporary, temporary.open("xb") as file:
        file.write(content)
