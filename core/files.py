"""Files: written whole or not at all; errors of the operating system become errors for users."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import EvenfieldError


class FileError(EvenfieldError):
    """A file that cannot be read or written, with the operating system's reason."""


# What a disk can answer in any line that writes, which is no bug, and what helps.
MAKE_ROOM = "make room on the disk, and start the command again"
OTHER_DISK = "write to another disk"
DISK_REMEDIES = {
    errno.ENOSPC: MAKE_ROOM,
    errno.EDQUOT: MAKE_ROOM,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or make room on the disk",
    errno.EROFS: OTHER_DISK,
    errno.EIO: OTHER_DISK,
}

SPECIAL_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
NAME_A_FILE = "save its content as a file, and name that"


def special_kind(path: Path | str) -> str | None:
    """What a path leads to if that is neither a file nor a folder, nor absent; else None.

    To open a named pipe waits for another program, which may never come, and a device may have no
    end.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        # also for names that no system can have, such as addresses
        return None
    return SPECIAL_KINDS.get(stat.S_IFMT(mode))


@contextmanager
def file_errors(path: Path | str, remedy: str | None = None) -> Iterator[None]:
    """Turn an OSError inside the block into a FileError about `path`, or the error's own file.

    Wrap it around every read and write of a path that a user chose. A named pipe, a socket or a
    device is refused before the block. A full or broken disk has a remedy of its own.
    """
    special = special_kind(path)
    if special is not None:
        raise FileError(f"is {special}, not a file", file=path, remedy=NAME_A_FILE)
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        own_remedy = DISK_REMEDIES.get(error.errno or 0, remedy)
        raise FileError(reason, file=error.filename or path, remedy=own_remedy) from error


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


def copy_folder(source: Path, target: Path) -> None:
    """Copy all files below `source` to `target`, which may exist.

    Raises FileError at the first that cannot be copied; `shutil.copytree` would go on, and raise a
    list of everything that a full disk has refused.
    """
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        with file_errors(copy):
            if path.is_dir():
                copy.mkdir(parents=True, exist_ok=True)
            else:
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a whole file or none, in the way of `whole_file`."""
    content = data.encode() if isinstance(data, str) else data

    with whole_file(path) as temporary, temporary.open("xb") as file:
        file.write(content)


def write_together(files: Mapping[Path, bytes | str]) -> None:
    """Write files that belong together: all of them, or none where a disk is full.

    Only a crash between two renames can separate them.
    """
    with ExitStack() as stack:
        for path, data in files.items():
            temporary = stack.enter_context(whole_file(path))
            content = data.encode() if isinstance(data, str) else data
            with file_errors(path), temporary.open("xb") as file:
                file.write(content)
                # a full disk may show only here, and must do so before the first rename
                file.flush()
                os.fsync(file.fileno())
