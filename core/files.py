"""Write files completely or not at all, and turn operating system errors into errors for users."""

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
    """A file cannot be read or written; the message has the operating system's reason."""


# remedies for disk errors, which can occur in any write and are not bugs
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
    """The kind of a special file (pipe, socket, device) at `path`; None for anything else.

    Such files must not be opened: a named pipe waits for another program, possibly forever, and a
    device may never end.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        # also raised for names that cannot be paths, such as some addresses
        return None
    return SPECIAL_KINDS.get(stat.S_IFMT(mode))


@contextmanager
def file_errors(path: Path | str, remedy: str | None = None) -> Iterator[None]:
    """Turn an OSError inside the block into a FileError about the error's file, or else `path`.

    Use it around every read and write of a path that the user chose. It raises FileError before the
    block for a named pipe, a socket or a device. For a full or broken disk, the remedy in
    DISK_REMEDIES replaces `remedy`.
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
    """Yield the path of a temporary file in the same folder, and rename it to `path` on success.

    The block must create the temporary file, with any library that accepts a path. Readers see
    either the old file or the complete new one. If the block fails, the old file is unchanged and
    the temporary file is removed.

    A symbolic link at `path` is replaced; its target is not changed.
    """
    # a random name, because a process id is not unique: two threads may write the same file, and so
    # may two machines on a network file system
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary

        # without fsync, a crash of the machine could leave an empty file under the final name
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        # the temporary file still exists only if something failed
        temporary.unlink(missing_ok=True)


def copy_folder(source: Path, target: Path) -> None:
    """Copy all files below `source` to `target`, which may exist.

    Raises FileError for the first file that cannot be copied. `shutil.copytree` would continue on a
    full disk and then report every single file.
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
    """SHA-256 of a file's content, which is read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file completely or not at all, as described in `whole_file`."""
    content = data.encode() if isinstance(data, str) else data

    with whole_file(path) as temporary, temporary.open("xb") as file:
        file.write(content)


def write_together(files: Mapping[Path, bytes | str]) -> None:
    """Write files that belong together: either all of them, or none if the disk is full.

    Only a crash between two renames can leave some of them old. Raises FileError.
    """
    with ExitStack() as stack:
        for path, data in files.items():
            temporary = stack.enter_context(whole_file(path))
            content = data.encode() if isinstance(data, str) else data
            with file_errors(path), temporary.open("xb") as file:
                file.write(content)
                # a full disk may show only at fsync, which must come before the first rename
                file.flush()
                os.fsync(file.fileno())
