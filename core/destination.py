"""Where a command writes: refused before any work, replaced in one step, and only on success.

The rule is the same for all commands. A place that already holds something is refused, with what
it holds, unless the command continues its own earlier work there or the user gives `--overwrite`.

    check_destination(out, overwrite=overwrite, inputs=[base_model])
    ...                                    # the work, which may take hours
    with replace_folder(out, is_ours) as new:
        ...                                # write the files of the new folder into `new`

What a user has put there is kept: `is_ours` tells it from the files that the command makes.

A command that writes one file names its `FileKind`. Only an earlier file of that kind is replaced.
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


# A folder is known by the first of these files that it holds. `--overwrite` replaces only folders
# that evenfield wrote: a mistyped OUT must not delete somebody's home directory.
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
# in every page that evenfield writes
PAGE_MARK = b'<meta name="generator" content="evenfield">'
BYTES_BEFORE_THE_TEXT = 4096
# the first bytes of a PNG, and where texts about it end at the latest
PNG = b"\x89PNG"
BYTES_BEFORE_THE_PICTURE = 1024
# Other programs use some of these names. What evenfield writes holds these words, in all versions.
MARKS = {
    "manifest.json": (b'"format_version"', b'"sha256"'),
    "dataset_info.json": (b'"schema_version"', b'"source"'),
    "config.yaml": (b"max_steps:", b"evaluate_every:"),
    "simulation.json": (b'"model"', b'"settings"'),
    "learn.json": (b'"model"', b'"structures"', b'"settings"'),
    "report.html": (PAGE_MARK,),
    "evaluation.json": (b'"split"', b'"num_structures"'),
}
# in the folder `checkpoints`
CHECKPOINTS = ("latest", "step-*", ".tmp-step-*")
BYTES_WITH_MARKS = 1 << 20
# what a conversion replaces
DATA_SETS = (KINDS["dataset_info.json"], KINDS[".parts"])
MAX_NAMES = 4  # of files in a message

# Flag of Linux's renameat2: the two paths swap their names in one step.
RENAME_EXCHANGE = 2
AT_FDCWD = -100


# A larger file was not written by a command that writes a single JSON object.
MOST_BYTES_OF_JSON = 64 << 20


class DestinationError(EvenfieldError):
    """The place to write to is occupied, is one of the inputs, or cannot be written."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file that a command writes, and how an earlier one is known by its content."""

    name: str
    """For messages, such as "figures of `evenfield check phases`"."""

    is_one: Callable[[Path], bool]
    """Whether a file is of this kind. It may raise OSError and ValueError for other files."""

    def is_at(self, path: Path) -> bool:
        """Whether there is such a file."""
        try:
            return path.is_file() and self.is_one(path)
        except (OSError, EOFError, ValueError, RecursionError, zlib.error):
            # text that is no JSON, an archive that is none
            return False


def json_kind(name: str, **values: str) -> FileKind:
    """JSON objects in which these keys have these values."""

    def is_one(path: Path) -> bool:
        if path.stat().st_size > MOST_BYTES_OF_JSON:
            return False
        content: Any = json.loads(path.read_bytes())
        return isinstance(content, dict) and values.items() <= content.items()

    return FileKind(name, is_one)


def png_kind(kind: str) -> FileKind:
    """PNG files that `figures.style.figure_png` made with this `kind`."""

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
    """Refuse a file or folder that must not be written. Call it before any work.

    Args:
        path: where the result goes. An absent path and an empty folder are free.
        overwrite: the user allows that a result of evenfield at `path` is replaced; None for a
            command without --overwrite, which replaces nothing.
        kinds: values of `KINDS`. What is replaced must be one of them: a mistyped OUT of one
            command must not delete the result of another. Empty for any kind.
        file_kind: of a command that writes a file. Only an earlier file of the kind is replaced.
            None for a command that writes a folder, which replaces no file.
        inputs: files and folders that the command reads. They are refused even with `overwrite`.
            Names that are not paths on this machine are ignored.
        elsewhere: how the user names another place.
        remedy: what to do about a place that can be replaced; by default `elsewhere`, or
            --overwrite where the command has it.

    Raises DestinationError.
    """
    path = Path(path)
    if remedy is None:
        remedy = elsewhere
        if overwrite is not None:
            remedy += ", or replace it with --overwrite"
    _refuse_circle(path, elsewhere)
    special = special_kind(path)
    if special is not None:
        # other programs wait at its other end
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
    """Refuse a folder that a command is to replace by a changed one. Call it before any work.

    Raises DestinationError where the user may not write next to the folder.
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
    """Refuse a folder that holds something else than what may be replaced."""
    if found is None:
        return
    found_kind = kind_of(path)
    if kinds and found_kind is not None and found_kind not in kinds:
        raise DestinationError(
            f"holds {found}, which this command does not replace", file=path, remedy=elsewhere
        )
    if found_kind is None:
        # also without --overwrite, which would not help
        raise DestinationError(
            f"already exists and holds {found}, which evenfield did not write",
            file=path,
            remedy=f"{elsewhere}, or remove the folder yourself",
        )
    if not overwrite:
        raise DestinationError(f"already exists and holds {found}", file=path, remedy=remedy)


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
        size = f"a file of {path.stat().st_size} bytes"
        kind = kind_of(path.parent)
        return size if kind is None else f"{size} in the folder of {kind}"
    if path.is_symlink():
        return f"a link to {path.readlink()}, which does not exist"
    return None


def kind_of(folder: Path) -> str | None:
    """What evenfield wrote into a folder, or None when nothing there is of evenfield."""
    for name, kind in KINDS.items():
        if _is_ours(folder / name):
            return kind
    return None


def _is_ours(path: Path) -> bool:
    """Whether a file or folder with a name of `KINDS` is there, and one that evenfield wrote."""
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

    Files are linked, not copied, where the file system can do that. Symbolic links stay links.
    Where the new folder has a file of the same name, the user's is kept as NAME.kept.
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
    # first those that keep their names, which the others must not take
    kept.sort(key=lambda entry: os.path.lexists(new / entry.name))
    for source in kept:
        target = new / source.name
        if source.is_dir() and not source.is_symlink():
            _keep(source, target, f"{inside}{source.name}/", is_ours)
        else:
            _link_or_copy(source, _free_name(target))


def _free_name(path: Path) -> Path:
    """The path, or with an ending where something is there."""
    found = path
    number = 1
    while os.path.lexists(found):
        found = path.with_name(f"{path.name}.kept{number if number > 1 else ''}")
        number += 1
    return found


def _link_or_copy(source: Path | str, target: Path | str) -> None:
    """Give a file another name; a copy where the file system has no second names."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _refuse_circle(path: Path, elsewhere: str) -> None:
    """Raise DestinationError for a symbolic link that leads to itself."""
    try:
        path.resolve()
    except (OSError, RuntimeError) as error:
        # before Python 3.13 a circle of links is a RuntimeError
        raise DestinationError(
            "is a link that leads back to itself", file=path, remedy=elsewhere
        ) from error


def _check_is_no_input(path: Path, inputs: Iterable[Path | str], elsewhere: str) -> None:
    place = path.resolve()
    for name in inputs:
        source = local_path(name)
        if not source.exists():
            # a name on a hub, or an address
            continue
        source = source.resolve()
        if place == source or place in source.parents:
            raise DestinationError(
                "is read by this command, and would be overwritten", file=path, remedy=elsewhere
            )


def _check_can_be_created(path: Path, elsewhere: str) -> None:
    """The nearest folder above `path` that exists must take new files."""
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
