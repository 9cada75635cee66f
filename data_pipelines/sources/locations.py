"""Where a source lies: a file, a folder, a glob, a URL that fsspec opens, or a data set of the Hugging Face hub.

All of them come down to a sorted list of file names, local paths or URLs, that `open_binary` and `local_file` read.
"""

from __future__ import annotations

import glob
import hashlib
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import fsspec

from ..structure import BadRecordError


HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?")
GLOB = re.compile(r"[*?\[]")
# what a folder or a hub data set is searched for; a file named by itself may have any name that ASE knows
KNOWN_SUFFIX = re.compile(r"\.(parquet|aselmdb|db|traj|(ext)?xyz(\.gz)?)$")


def is_url(name: str) -> bool:
    """Whether a name has a scheme, s3:// and the like; file:// is turned into a path by `plain_path`."""
    return "://" in name and not name.startswith("file://")


def plain_path(name: str) -> Path:
    """The path of a local name, with or without file://."""
    return Path(name.removeprefix("file://"))


def list_files(source: str, hub_config: str | None = None) -> list[str]:
    """The files of a source, sorted; raises BadRecordError when there are none or they cannot be reached."""
    if is_url(source):
        return _remote_files(source)
    path = plain_path(source)
    kind = _kind(path)
    if kind == "file":
        return [str(path)]
    if kind == "folder":
        return _some(
            sorted(str(f) for f in path.rglob("*") if _is_data(f.relative_to(path))), source
        )
    if GLOB.search(str(path)):
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207 - pathlib's wants a root beside the pattern
        return _some(sorted(name for name in found if Path(name).is_file()), source)
    match = HUB_NAME.fullmatch(source)
    if match and not KNOWN_SUFFIX.search(source):
        return _hub_files(source, match["name"], match["revision"], hub_config)
    raise BadRecordError(f"{source}: no such file")


def _kind(path: Path) -> Literal["file", "folder", "nothing"]:
    """What stands at a path; unlike pathlib's questions, a forbidden folder above it is not nothing."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except PermissionError as error:
        raise _forbidden(path, error) from None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "nothing"


def _forbidden(path: Path, error: PermissionError) -> BadRecordError:
    return BadRecordError(f"{path}: cannot be read ({error.strerror}): ask its owner for the right")


def _is_data(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and bool(KNOWN_SUFFIX.search(path.name))


def _some(files: list[str], source: str) -> list[str]:
    if not files:
        raise BadRecordError(
            f"{source}: holds no .parquet, .aselmdb, .db, .traj, .xyz or .extxyz file: name another"
        )
    return files


def _remote_files(source: str) -> list[str]:
    with _reaching(source):
        fs, path = fsspec.url_to_fs(source)
        if GLOB.search(path):
            found = fs.glob(path)
        elif fs.isfile(path):
            return [source]
        else:
            found = [name for name in fs.find(path) if KNOWN_SUFFIX.search(name)]
        return _some(sorted(fs.unstrip_protocol(name) for name in found), source)


@contextmanager
def _reaching(source: str) -> Iterator[None]:
    """Whatever a network library raises becomes one line that names the source."""
    try:
        yield
    except BadRecordError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise BadRecordError(
            f"{source}: cannot be reached ({said}): check the name, the network and your credentials"
        ) from None


def _hub_files(source: str, name: str, revision: str | None, hub_config: str | None) -> list[str]:
    """The Parquet files of a hub data set, as hf:// URLs that carry the commit, so that they stay what they are."""
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(name, hub_config, revision=revision)
    except Exception as error:  # an unknown name, no network, no token, an unknown configuration
        said = " ".join(str(error).split())
        raise BadRecordError(
            f"{source}: no such file or folder, and not to be had from the hub ({said}): check the name, "
            "hub_config, the network and your login"
        ) from None
    files = sorted(
        {str(file) for urls in (builder.config.data_files or {}).values() for file in urls}
    )
    others = [file for file in files if not file.endswith(".parquet")]
    if others or not files:
        raise BadRecordError(
            f"{source}: holds {Path(others[0]).name if others else 'no data files'}, and only Parquet is streamed from "
            f"the hub: name its Parquet copy, {name}@refs/convert/parquet, or download the files and convert them"
        )
    return files


# --- reading


def require_readable(path: Path) -> None:
    """Raise BadRecordError for a file that is not there or that the user may not read."""
    if _kind(path) != "file":
        raise BadRecordError(f"{path}: no such file")
    try:
        with path.open("rb"):
            pass
    except PermissionError as error:
        raise _forbidden(path, error) from None


@contextmanager
def open_binary(name: str) -> Iterator[IO[bytes]]:
    """An open file, local or remote; a remote one is read by ranges as they are needed."""
    if not is_url(name):
        path = plain_path(name)
        require_readable(path)
        with path.open("rb") as file:
            yield file
        return
    with _reaching(name):
        fs, path_there = fsspec.url_to_fs(name)
        file = fs.open(path_there, "rb")
    with file:
        yield file


@contextmanager
def local_file(name: str) -> Iterator[Path]:
    """A path on this machine: the file itself, or a copy of a remote one for as long as the context lasts."""
    if not is_url(name):
        yield plain_path(name)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / Path(name).name
        with _reaching(name):
            fs, path_there = fsspec.url_to_fs(name)
            fs.get_file(path_there, str(copy))
        yield copy


def fingerprint(files: list[str]) -> str:
    """sha256 over the bytes of local files, and over what the store says of remote ones (etag, commit, size).

    Of several local files the names count too, relative to the first one's folder: moving a folder changes nothing.
    """
    if len(files) == 1 and not is_url(files[0]):
        return _sha256(plain_path(files[0]))
    total = hashlib.sha256()
    for name in files:
        if is_url(name):
            total.update(f"{name} {_remote_state(name)}\n".encode())
        else:
            path = plain_path(name)
            total.update(f"{path.name} {_sha256(path)}\n".encode())
    return total.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remote_state(name: str) -> str:
    with _reaching(name):
        fs, path = fsspec.url_to_fs(name)
        info: dict[str, Any] = fs.info(path)
    known = ("ETag", "etag", "blob_id", "VersionId", "generation", "LastModified", "mtime", "size")
    return " ".join(f"{key}={info[key]}" for key in known if info.get(key) is not None)
