"""Output paths of commands: checked before any work, and replaced in one step only on success.

The rule is the same for all commands. If the output path already holds something, the command stops
with an error that says what it holds. Exceptions are a command that continues its own earlier work
there, and `--overwrite`.

    check_destination(out, overwrite=overwrite, inputs=[base_model])
    ...                                    # the work, which may take hours
    with replace_folder(out, is_ours) as new:
        ...                                # write the files of the new folder into `new`

The user's own files in the folder are kept: `is_ours` distinguishes them from files that the
command writes.

A command that writes a single file specifies its `FileKind`. Only an earlier file of the same kind
is replaced.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .addresses import local_path
from .errors import EvenfieldError
from .files import file_errors, special_kind
from .locks import LockedError, held


# A folder is recognised by the first of these files that it contains. `--overwrite` replaces only
# folders that evenfield wrote, so that a mistyped OUT cannot delete a home directory.
KINDS = {
    "manifest.json": "a model",
    "dataset_info.json": "a data set",
    "checkpoints": "a training run",
    "config.yaml": "a training run",
    ".parts": "an unfinished data set",
    "simulation.json": "a simulation",
    "learn.json": "a learning loop",
    "report.html": "a report",
    # last, because runs and models have this file too
    "evaluation.json": "an evaluation",
}
# contained in every page that evenfield writes
PAGE_MARK = b'<meta name="generator" content="evenfield">'
BYTES_BEFORE_THE_TEXT = 4096
# the first bytes of a PNG file, and an upper bound for the end of its text chunks
PNG = b"\x89PNG"
BYTES_BEFORE_THE_PICTURE = 1024
# Other programs use some of the names in KINDS too. Files from all versions of evenfield contain
# these words.
MARKS = {
    "manifest.json": (b'"format_version"', b'"sha256"'),
    "dataset_info.json": (b'"schema_version"', b'"source"'),
    "config.yaml": (b"max_steps:", b"evaluate_every:"),
    "simulation.json": (b'"model"', b'"settings"'),
    "learn.json": (b'"model"', b'"structures"', b'"settings"'),
    "report.html": (PAGE_MARK,),
    "evaluation.json": (b'"split"', b'"num_structures"'),
}
# entries of the folder `checkpoints`
CHECKPOINTS = ("latest", "step-*", ".tmp-step-*")
BYTES_WITH_MARKS = 1 << 20
# kinds of folders that a conversion may replace
DATA_SETS = (KINDS["dataset_info.json"], KINDS[".parts"])
MAX_NAMES = 4  # file names in a message

# flag of Linux's renameat2, which swaps two paths in one step
RENAME_EXCHANGE = 2
AT_FDCWD = -100


# no command writes a single JSON object that is larger than this
MOST_BYTES_OF_JSON = 64 << 20


class DestinationError(EvenfieldError):
    """The output path is occupied, is one of the inputs, or cannot be written."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file that a command writes, recognised by its content."""

    name: str
    """Name for messages, such as "figures of `evenfield check phases`"."""

    is_one: Callable[[Path], bool]
    """Whether a file is of this kind. It may raise OSError or ValueError for other files."""

    def is_at(self, path: Path) -> bool:
        """Whether there is a file of this kind at `path`."""
        try:
            return path.is_file() and self.is_one(path)
        except (OSError, EOFError, ValueError, RecursionError, zlib.error):
            # for example, a text that is not JSON, or a broken archive
            return False


def json_kind(name: str, **values: str) -> FileKind:
    """A kind of JSON file: an object in which the given keys have the given values."""

    def is_one(path: Path) -> bool:
        if path.stat().st_size > MOST_BYTES_OF_JSON:
            return False
        content: Any = json.loads(path.read_bytes())
        return isinstance(content, dict) and values.items() <= content.items()

    return FileKind(name, is_one)


def png_kind(kind: str) -> FileKind:
    """A kind of PNG file: written by `figures.style.figure_png` with this `kind`."""

    def is_one(path: Path) -> bool:
        with path.open("rb") as file:
            beginning = file.read(BYTES_BEFORE_THE_PICTURE)
        return beginning.startswith(PNG) and b"tEXtTitle\0" + kind.encode() in beginning

    return FileKind(f"a {kind}", is_one)


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return PAGE_MARK in file.read(BYTES_BEFORE_THE_TEXT)


PAGES = FileKind("a page of evenfield", _is_page)


def check_destination(
    path: Path | str,
    *,
    overwrite: bool | None = None,
    kinds: Collection[str] = (),
    file_kind: FileKind | None = None,
    inputs: Iterable[Path | str] = (),
    elsewhere: str = "choose another OUT",
    remedy: str | None = None,
) -> None:
    """Raise DestinationError if `path` must not be written. Call this before any work.

    Args:
        path: the output path. It may be absent or an empty folder.
        overwrite: whether the user allows replacing an earlier result of evenfield at `path`; None
            for a command without --overwrite, which replaces nothing.
        kinds: values of `KINDS` that may be replaced, so that a mistyped OUT of one command cannot
            delete the result of another. Empty for any kind.
        file_kind: kind of the file that the command writes; only an earlier file of this kind is
            replaced. None for a command that writes a folder; it never replaces a file.
        inputs: files and folders that the command reads. They are refused even with `overwrite`.
            Names that are not local paths are ignored.
        elsewhere: remedy that tells the user how to choose another place.
        remedy: remedy for a place that could be replaced; by default `elsewhere`, plus --overwrite
            if the command has it.
    """
    path = Path(path)
    if remedy is None:
        remedy = elsewhere
        if overwrite is not None:
            remedy += ", or replace it with --overwrite"
    _refuse_circle(path, elsewhere)
    special = special_kind(path)
    if special is not None:
        # for example a named pipe, at whose other end another program waits
        raise DestinationError(f"is {special}", file=path, remedy=elsewhere)
    _check_is_no_input(path, inputs, elsewhere)
    _check_can_be_created(path, elsewhere)

    found = contents(path)
    if path.is_dir():
        if file_kind is not None:
            raise DestinationError(
                f"is a folder, and holds {found or 'nothing'}",
                file=path,
                remedy=f"{elsewhere}, which must be a file",
            )
        _check_folder(path, found, bool(overwrite), kinds, elsewhere, remedy)
        return

    if found is None:
        return
    if file_kind is None or not file_kind.is_at(path):
        needed = "a folder" if file_kind is None else file_kind.name
        raise DestinationError(
            f"already exists and holds {found}, not {needed}", file=path, remedy=elsewhere
        )
    if not overwrite:
        raise DestinationError(
            f"already exists and holds {file_kind.name}", file=path, remedy=remedy
        )


def check_changeable(folder: Path | str) -> None:
    """Raise DestinationError if the user may not write next to a folder that is to be changed.

    A command that replaces a folder by a changed copy calls this before any work.
    """
    _check_can_be_created(Path(folder), "copy it to a folder of your own, and name that")


def _check_folder(
    path: Path,
    found: str | None,
    overwrite: bool,
    kinds: Collection[str],
    elsewhere: str,
    remedy: str,
) -> None:
    """Raise DestinationError for a folder that may not be replaced.

    found: its content for messages, from `contents`. Other arguments as in `check_destination`.
    """
    if found is None:
        return
    found_kind = kind_of(path)
    if kinds and found_kind is not None and found_kind not in kinds:
        raise DestinationError(
            f"holds {found}, which this command does not replace", file=path, remedy=elsewhere
        )
    if found_kind is None:
        # the remedy does not mention --overwrite, because it would not help
        raise DestinationError(
            f"already exists and holds {found}, which evenfield did not write",
            file=path,
            remedy=f"{elsewhere}, or remove the folder yourself",
        )
    if not overwrite:
        raise DestinationError(f"already exists and holds {found}", file=path, remedy=remedy)


def contents(path: Path) -> str | None:
    """Describe what is at `path` for a message; None if it is absent or an empty folder."""
    if path.is_dir():
        with file_errors(path):
            names = sorted(entry.name for entry in path.iterdir())
        if not names:
            return None

        listed = ", ".join(names[:MAX_NAMES])
        if len(names) > MAX_NAMES:
            listed += f" and {len(names) - MAX_NAMES} more"
        kind = kind_of(path)
        return listed if kind is None else f"{kind} ({listed})"

    if path.exists():
        size = f"a file of {path.stat().st_size} bytes"
        kind = kind_of(path.parent)
        return size if kind is None else f"{size} in the folder of {kind}"
    if path.is_symlink():
        return f"a link to {path.readlink()}, which does not exist"
    return None


def kind_of(folder: Path) -> str | None:
    """The kind of a folder that evenfield wrote (a value of KINDS), or None."""
    for name, kind in KINDS.items():
        if _is_ours(folder / name):
            return kind
    return None


def _is_ours(path: Path) -> bool:
    """Whether `path`, whose name is a key of KINDS, exists and was written by evenfield."""
    if path.name == "checkpoints":
        return any(True for pattern in CHECKPOINTS for _ in path.glob(pattern))
    if path.name not in MARKS:
        return path.is_dir()
    try:
        with path.open("rb") as file:
            content = file.read(BYTES_WITH_MARKS)
    except OSError:
        return False
    return all(mark in content for mark in MARKS[path.name])


@contextmanager
def replace_folder(
    path: Path | str, is_ours: Callable[[str], bool] | None = None
) -> Iterator[Path]:
    """Yield a new empty folder next to `path`, which replaces `path` if the block succeeds.

    is_ours: which files are replaced, see `keep_files_of_others`. Without it, all files are
        replaced, and the caller is responsible for keeping the user's files.

    At any time, even if the process is killed, `path` is either the complete old folder or the
    complete new one. There is one exception: on a file system that cannot swap two names, `path` is
    absent for a moment. If the process is killed then, the next call restores the old folder. If
    the block fails, the old folder is not changed. A symbolic link at `path` is followed.

    Raises LockedError if another process is replacing the same folder, and FileError for operating
    system errors outside the block.
    """
    path = Path(path).resolve()
    lock = path.with_name(f".{path.name}.lock")
    refusal = LockedError("is being written by another process", file=path)

    with held(lock, refusal):
        with file_errors(path):
            _recover(path)
            new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
            new.mkdir()
        try:
            yield new
            with file_errors(path):
                if is_ours is not None:
                    keep_files_of_others(path, new, is_ours)
                _sync(new)
                _put_in_place(new, path)
        finally:
            # on success, `new` is now the old folder; failing to remove it does no harm
            shutil.rmtree(new, ignore_errors=True)


def keep_files_of_others(old: Path, new: Path, is_ours: Callable[[str], bool]) -> None:
    """Copy the user's files from the folder `old`, which is being replaced, to the folder `new`.

    is_ours: whether evenfield wrote a file or folder, given its path inside `old`, such as
        `pictures/parity.png`. Such entries are not copied, and neither is the content of such
        folders.

    Files are hard-linked instead of copied if the file system supports it. Symbolic links stay
    links. If `new` already has a file of the same name, the user's file is kept as NAME.kept.
    """
    if old.is_dir():
        _keep(old, new, "", is_ours)


def _keep(old: Path, new: Path, inside: str, is_ours: Callable[[str], bool]) -> None:
    entries = sorted(old.iterdir())
    kept = [entry for entry in entries if not is_ours(f"{inside}{entry.name}")]
    # the user's empty folders are kept too
    if (kept or not entries) and not new.exists():
        new.mkdir()
        shutil.copystat(old, new)
    # entries that keep their names come first, so that renamed ones cannot take these names
    kept.sort(key=lambda entry: os.path.lexists(new / entry.name))
    for source in kept:
        target = new / source.name
        if source.is_dir() and not source.is_symlink():
            _keep(source, target, f"{inside}{source.name}/", is_ours)
        else:
            _link_or_copy(source, _free_name(target))


def _free_name(path: Path) -> Path:
    """The path itself if it is free, otherwise the first free name with the ending `.kept`."""
    found = path
    number = 1
    while os.path.lexists(found):
        found = path.with_name(f"{path.name}.kept{number if number > 1 else ''}")
        number += 1
    return found


def _link_or_copy(source: Path | str, target: Path | str) -> None:
    """Hard-link a file, or copy it if the file system has no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _refuse_circle(path: Path, elsewhere: str) -> None:
    """Raise DestinationError for a symbolic link that leads back to itself."""
    try:
        path.resolve()
    except (OSError, RuntimeError) as error:
        # before Python 3.13, a loop of links raises RuntimeError
        raise DestinationError(
            "is a link that leads back to itself", file=path, remedy=elsewhere
        ) from error


def _check_is_no_input(path: Path, inputs: Iterable[Path | str], elsewhere: str) -> None:
    place = path.resolve()
    for name in inputs:
        source = local_path(name)
        if not source.exists():
            # a name on a hub or an address
            continue
        source = source.resolve()
        if place == source or place in source.parents:
            raise DestinationError(
                "is read by this command, and would be overwritten", file=path, remedy=elsewhere
            )


def _check_can_be_created(path: Path, elsewhere: str) -> None:
    """Raise DestinationError unless the nearest existing folder above `path` is writable."""
    above = path.resolve().parent
    while not above.exists():
        above = above.parent

    if not above.is_dir():
        raise DestinationError(
            f"cannot be created, since {above} is a file", file=path, remedy=elsewhere
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise DestinationError(
            "cannot be created",
            file=path,
            remedy=f"you may not write into {above}; {elsewhere}",
        )


def _recover(path: Path) -> None:
    """Clean up after a killed process. The caller holds the lock, so no other is at work."""
    if not path.exists():
        for old in path.parent.glob(f".{path.name}.*.old"):
            old.rename(path)
            break
    for suffix in ("new", "old"):
        for stale in path.parent.glob(f".{path.name}.*.{suffix}"):
            shutil.rmtree(stale, ignore_errors=True)


def _put_in_place(new: Path, path: Path) -> None:
    """Move the folder `new` to `path`; afterwards `new` is the old folder, if there was one."""
    if contents(path) is None:
        # on Linux, a folder can be renamed onto an empty folder
        new.rename(path)
        _sync(path.parent)
        return

    if not _exchange(new, path):
        aside = new.with_suffix(".old")
        path.rename(aside)
        new.rename(path)
        aside.rename(new)
    _sync(path.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step; returns False if the system or file system cannot do it."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False

    names = os.fsencode(first), os.fsencode(second)
    if renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _sync(folder: Path) -> None:
    """Flush the entries of a folder to disk; file systems that cannot do this are ignored."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
