"""Where a command writes: refused before any work, replaced in one step, and only on success.

The rule is the same for all commands. A place that already holds something is refused, with what
it holds, unless the command continues its own earlier work there or the user gives `--overwrite`.

    check_destination(out, overwrite=overwrite, inputs=[base_model])
    ...                                    # the work, which may take hours
    with replace_folder(out, is_ours) as new:
        ...                                # write the files of the new folder into `new`

What a user has put there is kept: `is_ours` tells it from the files that the command makes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .addresses import local_path
from .errors import EvenfieldError
from .files import file_errors, special_kind
from .locks import LockedError, held


# A folder is known by the first of these files that it holds. `--overwrite` replaces only folders
# that evenfield wrote: a mistyped OUT must not delete somebody's home directory.
KINDS = {
    "manifest.json": "a model",
    "dataset_info.json": "a data set",
    "checkpoints": "a training run",
    "config.yaml": "a training run",
    ".parts": "an unfinished data set",
    "simulation.json": "a simulation",
    "report.html": "a report",
    # last, because runs and models have this file too
    "evaluation.json": "an evaluation",
}
# what a conversion replaces
DATA_SETS = (KINDS["dataset_info.json"], KINDS[".parts"])
MAX_NAMES = 4  # of files in a message

# Flag of Linux's renameat2: the two paths swap their names in one step.
RENAME_EXCHANGE = 2
AT_FDCWD = -100


class DestinationError(EvenfieldError):
    """The place to write to is occupied, is one of the inputs, or cannot be written."""


def check_destination(
    path: Path | str,
    *,
    overwrite: bool = False,
    kinds: Collection[str] = (),
    inputs: Iterable[Path | str] = (),
    remedy: str = "choose another OUT, or replace it with --overwrite",
) -> None:
    """Refuse a file or folder that must not be written. Call it before any work.

    Args:
        path: where the result goes. An absent path and an empty folder are free.
        overwrite: the user allows that a result of evenfield at `path` is replaced.
        kinds: values of `KINDS`. What is replaced must be one of them: a mistyped OUT of one
            command must not delete the result of another. Empty for any kind.
        inputs: files and folders that the command reads. They are refused even with `overwrite`.
            Names that are not paths on this machine are ignored.
        remedy: what to do about an occupied place.

    Raises DestinationError.
    """
    path = Path(path)
    _refuse_circle(path)
    special = special_kind(path)
    if special is not None:
        # other programs wait at its other end
        raise DestinationError(f"is {special}", file=path, remedy="choose another OUT")
    _check_is_no_input(path, inputs)
    _check_can_be_created(path)

    found = contents(path)
    if found is None:
        return
    found_kind = kind_of(path) if path.is_dir() else None
    if kinds and found_kind is not None and found_kind not in kinds:
        raise DestinationError(
            f"holds {found}, which this command does not replace",
            file=path,
            remedy="choose another OUT",
        )
    if not overwrite:
        raise DestinationError(f"already exists and holds {found}", file=path, remedy=remedy)
    if path.is_dir() and found_kind is None:
        raise DestinationError(
            f"--overwrite replaces only what evenfield wrote, and this folder holds {found}",
            file=path,
            remedy="choose another OUT, or remove the folder yourself",
        )


def contents(path: Path) -> str | None:
    """What is at `path`, for a message; None when it is absent or an empty folder."""
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
        return f"a file of {path.stat().st_size} bytes"
    if path.is_symlink():
        return f"a link to {path.readlink()}, which does not exist"
    return None


def kind_of(folder: Path) -> str | None:
    """What evenfield wrote into a folder, or None when nothing there is of evenfield."""
    for name, kind in KINDS.items():
        if (folder / name).exists():
            return kind
    return None


@contextmanager
def replace_folder(
    path: Path | str, is_ours: Callable[[str], bool] | None = None
) -> Iterator[Path]:
    """A new empty folder next to `path`, which takes its place when the block succeeds.

    is_ours: which files are replaced, see `keep_files_of_others`; all of them without it, for a
    caller that keeps the others itself.

    At any moment, also when the process is killed, `path` holds the old folder or the new one as a
    whole. On a file system that cannot swap two names, `path` is absent for an instant; the
    old folder is then next to it, and the next call brings it back. When the block fails, the
    old folder is left as it was. A link at `path` is followed: the user chose it.

    Raises LockedError when another process replaces the same folder, FileError on errors of the
    operating system outside the block.
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
            # On success this is the old folder. Its removal is not part of the result.
            shutil.rmtree(new, ignore_errors=True)


def keep_files_of_others(old: Path, new: Path, is_ours: Callable[[str], bool]) -> None:
    """Take along what a user has put into a folder that is replaced.

    is_ours: whether a file or folder is one that evenfield wrote, and which goes; by its path
    inside the folder, such as `pictures/parity.png`. A folder that goes takes its content along.

    Files are linked, not copied, where the file system can do that. Symbolic links stay links. An
    entry that the new folder has already is left as it is there.
    """
    if old.is_dir():
        _keep(old, new, "", is_ours)


def _keep(old: Path, new: Path, inside: str, is_ours: Callable[[str], bool]) -> None:
    entries = sorted(old.iterdir())
    kept = [entry for entry in entries if not is_ours(f"{inside}{entry.name}")]
    # an empty folder is a user's too
    if (kept or not entries) and not new.exists():
        new.mkdir()
        shutil.copystat(old, new)
    for source in kept:
        target = new / source.name
        if source.is_dir() and not source.is_symlink():
            _keep(source, target, f"{inside}{source.name}/", is_ours)
        elif not os.path.lexists(target):
            _link_or_copy(source, target)


def _link_or_copy(source: Path | str, target: Path | str) -> None:
    """Give a file another name; a copy where the file system has no second names."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _refuse_circle(path: Path) -> None:
    """Raise DestinationError for a symbolic link that leads to itself."""
    try:
        path.resolve()
    except (OSError, RuntimeError) as error:
        # before Python 3.13 a circle of links is a RuntimeError
        raise DestinationError(
            "is a link that leads back to itself", file=path, remedy="choose another OUT"
        ) from error


def _check_is_no_input(path: Path, inputs: Iterable[Path | str]) -> None:
    place = path.resolve()
    for name in inputs:
        source = local_path(name)
        if not source.exists():
            # a name on a hub, or an address
            continue
        source = source.resolve()
        if place == source or place in source.parents:
            raise DestinationError(
                "is read by this command, and would be overwritten",
                file=path,
                remedy="choose another OUT",
            )


def _check_can_be_created(path: Path) -> None:
    """The nearest folder above `path` that exists must take new files."""
    above = path.resolve().parent
    while not above.exists():
        above = above.parent

    if not above.is_dir():
        raise DestinationError("cannot be created", file=path, remedy=f"{above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise DestinationError(
            "cannot be created",
            file=path,
            remedy=f"you may not write into {above}; choose another OUT",
        )


def _recover(path: Path) -> None:
    """Tidy up after a process that was killed; the lock says that no other is at work."""
    if not path.exists():
        for old in path.parent.glob(f".{path.name}.*.old"):
            old.rename(path)
            break
    for suffix in ("new", "old"):
        for stale in path.parent.glob(f".{path.name}.*.{suffix}"):
            shutil.rmtree(stale, ignore_errors=True)


def _put_in_place(new: Path, path: Path) -> None:
    """Give the folder `new` the name `path`; afterwards `new` holds what `path` held, if any."""
    if contents(path) is None:
        # Linux renames a folder onto an empty one.
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
    """Swap two names in one step; False where the system or the file system cannot do it."""
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
    """Ask the disk to keep the names in a folder; some file systems cannot, and need not."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
