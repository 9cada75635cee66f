"""Locations of a source: a file, a folder, a glob, a URL, or the Hugging Face hub.

`list_files` turns a location into a sorted list of local paths or URLs. `open_binary` and
`local_file` open one of them.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from ...core.addresses import (
    local_path,
    looks_like_path,
    similar_names,
    without_query,
    without_secrets,
)
from ...core.errors import EvenfieldError
from ...core.files import NAME_A_FILE, file_sha256, special_kind
from ...core.hub_client import limited_patience
from ...core.storage import (
    SMALL_FILE_SECONDS,
    TooLargeError,
    chunks,
    file_info,
    file_system,
    is_web_address,
    opened,
    reason_of,
    retried,
)


HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?")
HUB_SCHEME = "hf://"
DOWNLOAD_CHUNK = 1 << 20  # bytes
# Limit for a download whose size the server does not state: it might never end.
MOST_UNSTATED = 4 << 30  # bytes
GLOB = re.compile(r"[*?\[]")

# keys under which fsspec's file systems report the state of a file
STATE_KEYS = (
    "ETag",
    "etag",
    "blob_id",
    "VersionId",
    "generation",
    "LastModified",
    "mtime",
    "size",
)


class SourceError(EvenfieldError):
    """A source, or one of its files, cannot be read, or cannot be read to its end."""


def is_url(name: str) -> bool:
    """Whether a name has a scheme such as s3://; file:// does not count, as it is a local path."""
    return "://" in name and not name.startswith("file://")


def plain_path(name: str) -> Path:
    """The path of a local name, with or without file://; ~ is expanded."""
    return local_path(name)


# --- listing


def list_files(source: str, suffixes: Sequence[str], hub_config: str | None = None) -> list[str]:
    """List the files of a source, sorted, as local paths or URLs.

    suffixes: file name endings of data files, used to search folders.
    hub_config: the configuration (subset) of a hub data set.

    Raises SourceError if there are no files or they cannot be reached.
    """
    if is_url(source):
        return _remote_files(source, suffixes)

    path = plain_path(source)
    kind = _kind(path)
    if kind == "file":
        return [str(path)]
    if kind == "folder":
        inside = [name for name in _inside(path) if _is_data(name.relative_to(path), suffixes)]
        for name in inside:
            # raises for named pipes and the like, before anything opens them
            _kind(name)
        return _at_least_one(sorted(map(str, inside)), source, suffixes)
    if GLOB.search(str(path)):
        # pathlib's glob would need the folder and the pattern separately
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207
        files = sorted(name for name in found if _kind(Path(name)) == "file")
        return _at_least_one(files, source, suffixes)

    # A name that does not exist locally may be a hub data set. A mistyped path should not cause a
    # request to the hub.
    if looks_like_path(source):
        raise _no_such_file(source)
    match = HUB_NAME.fullmatch(source)
    if match and not has_ending(source, suffixes):
        return _hub_files(source, match["name"], match["revision"], hub_config)
    raise _no_such_file(source)


def _kind(path: Path) -> Literal["file", "folder", "nothing"]:
    """What a path leads to. Raises SourceError for special files and without permission."""
    # pathlib's is_file() and is_dir() return False without permission, so they cannot be used
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except PermissionError as error:
        raise _forbidden(path, error) from None
    except OSError as error:
        # a loop of symbolic links, or a name that is too long
        reason = error.strerror or str(error)
        raise SourceError(reason, file=path, remedy="name another file") from error
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    special = special_kind(path)
    raise SourceError(f"is {special}, not a file", file=path, remedy=NAME_A_FILE)


def _inside(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder and its subfolders.

    Raises SourceError for a folder without read permission, instead of leaving it out.
    """

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise _forbidden(Path(error.filename), error) from None
        raise error

    for parent, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(parent) / name for name in names)


def _is_data(path: Path, suffixes: Sequence[str]) -> bool:
    """Whether a file inside a folder belongs to the source; hidden files do not."""
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and has_ending(path.name, suffixes)


def has_ending(name: str, suffixes: Sequence[str]) -> bool:
    """Whether a name ends in one of the suffixes, ignoring case."""
    return name.lower().endswith(tuple(suffixes))


def files_left_out(source: str, suffixes: Sequence[str]) -> list[str]:
    """Visible files in a local folder that are not read as part of the source, sorted."""
    if is_url(source) or not plain_path(source).is_dir():
        return []
    folder = plain_path(source)
    inside = sorted(path.relative_to(folder) for path in _inside(folder))
    visible = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
    return [str(path) for path in visible if not _is_data(path, suffixes)]


def _at_least_one(files: list[str], source: str, suffixes: Sequence[str]) -> list[str]:
    if not files:
        raise SourceError(
            f"contains no file that ends in {', '.join(suffixes)}",
            file=source,
            remedy=f"name another folder, pattern or file{_other_files(source, suffixes)}",
        )
    return files


def _other_files(source: str, suffixes: Sequence[str]) -> str:
    """A hint how to name files of other formats in a folder; empty if there are none."""
    left_out = files_left_out(source, suffixes)
    if not left_out:
        return ""
    # folders of calculations often hold many files of the same name
    name, _ = Counter(Path(file).name for file in left_out).most_common(1)[0]
    return f"; for files of another format name a pattern: '{source.rstrip('/')}/**/{name}'"


def _no_such_file(name: Path | str) -> SourceError:
    path = plain_path(str(name))
    similar = similar_names(path)
    if similar:
        remedy = f"did you mean {similar[0]}?"
    elif HUB_NAME.fullmatch(str(name)) and str(name).count("/") == 1 and not path.suffix:
        remedy = f"for the data set {name} of the hub, name a revision: {name}@main"
    else:
        remedy = None
    return SourceError("no such file", file=name, remedy=remedy)


def _forbidden(path: Path, error: PermissionError) -> SourceError:
    return SourceError(
        f"cannot be read ({error.strerror})", file=path, remedy="ask its owner for permission"
    )


def _remote_files(source: str, suffixes: Sequence[str]) -> list[str]:
    with _network_errors(source):
        filesystem, path = file_system(source)
        # the question mark in a web address starts a query, so it is not a glob pattern
        if GLOB.search(path) and not is_web_address(source):
            found = retried(lambda: filesystem.glob(path), seconds=SMALL_FILE_SECONDS)
        else:
            # isfile() would return False if the network is down
            info = file_info(filesystem, path)
            if info is not None and info["type"] == "file":
                return [source]
            if info is None and is_web_address(source):
                raise SourceError("the server has no such file", file=source)
            # object stores have no folders: the name may be a common prefix of files
            inside = retried(lambda: filesystem.find(path), seconds=SMALL_FILE_SECONDS)
            found = [name for name in inside if has_ending(name, suffixes)]
        files = sorted(filesystem.unstrip_protocol(name) for name in found)
        return _at_least_one(files, source, suffixes)


def _hub_files(source: str, name: str, revision: str | None, hub_config: str | None) -> list[str]:
    """The Parquet files of a hub data set, as hf:// URLs.

    The URLs contain the commit, so they always refer to the same bytes.
    """
    # slow to import, and most sources are local
    from datasets import load_dataset_builder

    with limited_patience() as patience:
        try:
            builder = load_dataset_builder(name, hub_config, revision=revision)
        except Exception as error:
            raise _hub_refusal(source, error, patience.silence) from None

    by_split = builder.config.data_files or {}
    files = sorted({str(file) for urls in by_split.values() for file in urls})
    others = [file for file in files if not file.endswith(".parquet")]
    if others or not files:
        found = Path(others[0]).name if others else "no data files"
        # other formats cannot be streamed, only downloaded as a whole
        raise SourceError(
            f"consists of {found}, and only Parquet is streamed from the hub",
            file=source,
            remedy=f"name its Parquet copy, {name}@refs/convert/parquet, or download the files and "
            "convert them",
        )
    return files


def _hub_refusal(source: str, error: Exception, silence: str | None) -> SourceError:
    """The error for a name that is neither a local file nor available from the hub."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return SourceError(
            "no such file or folder, and HF_HUB_OFFLINE keeps evenfield from asking the hub",
            file=source,
            remedy="name a file, or unset HF_HUB_OFFLINE",
        )
    refusal = _refusal_of_cache(error)
    if refusal is not None:
        return refusal
    if silence is not None:
        return SourceError(
            f"no such file or folder, and the hub at {constants.ENDPOINT} gives {silence}",
            file=source,
            remedy="check the network and HF_ENDPOINT, or try again later",
        )
    if isinstance(error, ConnectionError):
        return SourceError(
            f"no such file or folder, and the hub does not answer ({reason_of(error)}); the data "
            "set may well be there",
            file=source,
            remedy="check the network, or try again later",
        )
    # an unknown name, a missing token or an unknown configuration
    return SourceError(
        f"no such file or folder, and the hub does not provide it ({reason_of(error)})",
        file=source,
        remedy="check the name, hub_config and your login",
    )


def _refusal_of_cache(error: BaseException | None) -> SourceError | None:
    """The error for a hub cache that cannot be written; None if that was not the cause."""
    from datasets import config
    from huggingface_hub import constants

    # the libraries wrap the operating system's error and keep at most its text
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    if not any("[Errno" in text for text in texts):
        return None

    for variable, folder in (
        ("HF_HOME", constants.HF_HOME),
        ("HF_HUB_CACHE", constants.HF_HUB_CACHE),
        ("HF_DATASETS_CACHE", config.HF_DATASETS_CACHE),
    ):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                continue
        except OSError as problem:
            return SourceError(
                f"the cache of the hub's client cannot be used ({problem.strerror})",
                file=folder,
                remedy=f"set {variable} to a folder that you may write to",
            )
    return None


@contextmanager
def _network_errors(source: str) -> Iterator[None]:
    """Turn any exception of a network library into a one-line SourceError."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(
            f"cannot be reached ({reason_of(error)})",
            file=source,
            remedy="check the name, the network and your credentials",
        ) from None


# --- reading


def require_readable(path: Path) -> None:
    """Raise SourceError for a path that does not exist, is not a file, or cannot be read."""
    kind = _kind(path)
    if kind == "folder":
        raise SourceError("is a folder, not a file", file=path, remedy="name a file inside it")
    if kind != "file":
        raise _no_such_file(path)
    try:
        # the mode bits are not enough: there may be access lists, and root may read anything
        with path.open("rb"):
            pass
    except PermissionError as error:
        raise _forbidden(path, error) from None


@contextmanager
def open_binary(name: str) -> Iterator[IO[bytes]]:
    """Open a local or remote file for reading; a remote file is read by byte ranges as needed.

    Raises SourceError if the file cannot be opened.
    """
    if not is_url(name):
        path = plain_path(name)
        require_readable(path)
        with path.open("rb") as file:
            yield file
        return

    # errors while reading are left to the reader, which knows the record
    with ExitStack() as stack:
        if name.startswith(HUB_SCHEME):
            stack.enter_context(limited_patience())
        with _network_errors(name):
            filesystem, remote_path = file_system(name)
            file = filesystem.open(remote_path, "rb")
        yield stack.enter_context(file)


@contextmanager
def local_file(name: str) -> Iterator[Path]:
    """A local path for a file; a remote file is downloaded and the copy removed at the end.

    Raises SourceError if the download fails.
    """
    if not is_url(name):
        yield plain_path(name)
        return

    with tempfile.TemporaryDirectory() as folder:
        # readers need the suffix, which a URL's query may follow
        copy = Path(folder) / Path(without_query(name)).name
        with _network_errors(name):
            filesystem, remote_path = file_system(name)
            if is_web_address(name):
                _copy_from_web(filesystem, remote_path, copy, name)
            else:
                filesystem.get_file(remote_path, str(copy))
        yield copy


def _copy_from_web(filesystem: Any, remote_path: str, copy: Path, name: str) -> None:
    """Download a file, up to a size limit: a server need not state the size and may never stop."""
    # leave some disk space for other programs
    limit = int(0.9 * shutil.disk_usage(copy.parent).free)
    most = limit
    try:
        with opened(filesystem, remote_path) as remote, copy.open("wb") as local:
            if getattr(remote, "size", None) is None:
                most = min(limit, MOST_UNSTATED)
            for chunk in chunks(remote, most, math.inf, DOWNLOAD_CHUNK):
                local.write(chunk)
    except TooLargeError:
        if most < limit:
            raise SourceError(
                f"has more than {most:,} bytes, and its server does not say how many",
                file=name,
                remedy="download the file yourself",
            ) from None
        raise SourceError(
            f"has more than {limit:,} bytes, for which {copy.parent.parent} has no room",
            file=name,
            remedy="set TMPDIR to a folder with more room, or download the file yourself",
        ) from None


# --- has a source changed?


def fingerprint(files: list[str]) -> str:
    """SHA-256 over the bytes of local files and the state (etag, commit, size) of remote files.

    If there are several files, their names count too, but the folder of local files does not, so
    that it may be moved.
    """
    # for a single file, the plain hash, which can be compared with one that a publisher states
    if len(files) == 1 and not is_url(files[0]):
        return _sha256(plain_path(files[0]))

    total = hashlib.sha256()
    for name in files:
        if is_url(name):
            # signatures are left out, because every reader of the same file gets another one
            line = f"{without_secrets(name)} {_remote_state(name)}"
        else:
            path = plain_path(name)
            line = f"{path.name} {_sha256(path)}"
        total.update(f"{line}\n".encode())
    return total.hexdigest()


def _sha256(path: Path) -> str:
    require_readable(path)
    return file_sha256(path)


def _remote_state(name: str) -> str:
    with _network_errors(name):
        filesystem, path = file_system(name)
        info: dict[str, Any] = retried(lambda: filesystem.info(path), seconds=SMALL_FILE_SECONDS)
    stated = [f"{key}={info[key]}" for key in STATE_KEYS if info.get(key) is not None]
    return " ".join(stated)
