"""The manifest of a model folder, and the only way to read the files that it lists.

    manifest.json   {"format_version": 3, "files": {name: {"sha256": 64 hex digits, "bytes": size}}}

File names are not trusted. A file is read only if its name is plain, if it lies inside the folder,
and if its size and hash match the manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from ...core.errors import EvenfieldError
from ...core.files import file_errors, special_kind
from ...core.settings import Settings


# increased by every change that an older evenfield would misread; see upgrade.py
FORMAT_VERSION = 3
MANIFEST = "manifest.json"
# files that every model folder holds next to its weights
REQUIRED_FILES = ("config.json", "README.md", "evaluation.json")
# no paths, no hidden files, and no file types that a program would execute
FILE_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*\.(safetensors|json|md|extxyz|png)"
)
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
MAX_NAME_LENGTH = 100
# far above any current model; limits the work that a malicious manifest can cause
MAX_FILES = 1000
# for every file without weights, so that a malicious folder cannot fill the memory
MAX_TEXT_BYTES = 64 << 20
# for a manifest, which takes about 300 bytes per file
MAX_MANIFEST_BYTES = 1 << 20
# for JSON, which takes up to 30 times its length in memory; an evaluation has about 100 kB
MAX_JSON_BYTES = 8 << 20
RESTORE = "fetch the model again, or save it again where it was made"


class BadModelError(EvenfieldError):
    """A model folder that must not be used. `file` names the faulty file or reference."""


class FileEntry(Settings):
    """Hash and size of one file. The size is None in format 1, which did not store it."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the whole file")
    bytes: int | None = Field(ge=0, le=1 << 42, description="size of the file")


class Manifest(Settings):
    """The list of all files in a model folder except the manifest itself."""

    format_version: int = Field(ge=1, description="format of the model folder")
    files: dict[str, FileEntry] = Field(max_length=MAX_FILES, description="file name -> entry")

    @field_validator("files")
    @classmethod
    def _check_names_and_sizes(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name, entry in files.items():
            is_plain = len(name) <= MAX_NAME_LENGTH and FILE_NAME.fullmatch(name)
            # a manifest cannot hold its own hash
            if not is_plain or name == MANIFEST:
                shown = name[:MAX_NAME_LENGTH]
                raise ValueError(f"{shown!r} is not the name of a file of a model")

            size = entry.bytes or 0
            if not is_weights(name) and size > MAX_TEXT_BYTES:
                raise ValueError(
                    f"the manifest states {size:,} bytes for {name}; {MAX_TEXT_BYTES:,} are allowed"
                )
        return files

    @property
    def weights(self) -> list[str]:
        """The files that hold the weights: a single file, or all shards in order."""
        return sorted(name for name in self.files if is_weights(name))

    @property
    def attachments(self) -> list[str]:
        """The files that are neither weights nor required."""
        others = set(self.files) - set(self.weights) - set(REQUIRED_FILES)
        return sorted(others)


def is_weights(name: str) -> bool:
    """Whether a file holds weights of the model. Other safetensors files are attachments."""
    return name == "model.safetensors" or SHARD.fullmatch(name) is not None


def write_manifest(contents: dict[str, bytes]) -> str:
    """The text of the manifest for a folder with `contents`, file name -> content."""
    entries = {}
    # sorted, because the revision of a model is the hash of this text
    for name, data in sorted(contents.items()):
        digest = hashlib.sha256(data).hexdigest()
        entries[name] = {"bytes": len(data), "sha256": digest}
    content = {"files": entries, "format_version": FORMAT_VERSION}
    return json.dumps(content, indent=1)


def revision_of(manifest: bytes) -> str:
    """The revision of a model, 16 hex digits, from its manifest as stored.

    The manifest holds the hash of every other file, so its own hash pins all files.
    """
    return hashlib.sha256(manifest).hexdigest()[:16]


def parse_manifest(path: Path | str, text: bytes) -> Manifest:
    """Parse a manifest from its bytes. `path` is used only in messages.

    Raises BadModelError if the manifest is damaged, malicious or too new.
    """
    _check_length(path, text, MAX_MANIFEST_BYTES)
    content = json_object(path, text)
    # checked first, because other keys may have another meaning in a newer format
    check_version(path, content.get("format_version", 1))

    if "format_version" not in content:
        # format 1 was a plain object, name -> hash
        entries = {}
        for name, digest in content.items():
            entries[name] = {"sha256": digest, "bytes": None}
        content = {"format_version": 1, "files": entries}

    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise BadModelError(validation_faults(error), file=path, remedy=RESTORE) from error

    _check_complete(path, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read and parse the manifest of a folder.

    Raises BadModelError if the folder holds no model or a damaged one.
    """
    return parse_manifest(folder / MANIFEST, read_manifest_text(folder))


def read_manifest_text(folder: Path) -> bytes:
    """The manifest as stored, without parsing. Raises BadModelError if there is no model."""
    path = folder / MANIFEST
    _refuse_special(path)
    with file_errors(path):
        if not path.is_file():
            raise BadModelError(
                f"not a model folder (no {MANIFEST})",
                file=folder,
                remedy="name a folder that holds a saved model",
            )
        _check_inside(folder, path)
        # no other file states the size of the manifest, so it needs its own limit
        size = path.stat().st_size
        if size > MAX_MANIFEST_BYTES:
            raise BadModelError(
                f"has {size:,} bytes, {MAX_MANIFEST_BYTES:,} are allowed", file=path, remedy=RESTORE
            )
        return path.read_bytes()


def read_verified(folder: Path, name: str, entry: FileEntry) -> bytes:
    """Read one file after checking its location and size, and verify its hash.

    A file of the wrong size is never read. Raises BadModelError if a check fails.
    """
    path = folder / name
    _refuse_special(path)
    with file_errors(path):
        if not path.is_file():
            raise _missing(folder, name, entry)
        _check_inside(folder, path)

        size = path.stat().st_size
        if entry.bytes is not None and size != entry.bytes:
            raise BadModelError(
                f"has {size:,} bytes, but {MANIFEST} states {entry.bytes:,}",
                file=path,
                remedy=RESTORE,
            )
        # format 1 states no sizes, so parsing its manifest has not checked this limit
        if not is_weights(name) and size > MAX_TEXT_BYTES:
            raise BadModelError(
                f"has {size:,} bytes, {MAX_TEXT_BYTES:,} are allowed", file=path, remedy=RESTORE
            )
        data = path.read_bytes()

    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        raise BadModelError(
            f"content does not match its sha256 in {MANIFEST}", file=path, remedy=RESTORE
        )
    return data


def _missing(folder: Path, name: str, entry: FileEntry) -> BadModelError:
    """The error for a listed file that is missing.

    File names are the only part of a manifest that no hash covers. If the folder has the content
    under another name, the message says so.
    """
    for path in sorted(folder.iterdir()):
        if not _has_content(path, entry):
            continue
        return BadModelError(
            f"the manifest and the folder disagree: {MANIFEST} lists {name}, and that content is "
            f"in {path.name[:MAX_NAME_LENGTH]}",
            file=folder / MANIFEST,
            remedy=RESTORE,
        )
    return BadModelError("file is missing", file=folder / name, remedy=RESTORE)


def _has_content(path: Path, entry: FileEntry) -> bool:
    """Whether a path is a file with the size and hash of an entry. Format 1 states no size."""
    if special_kind(path) is not None or not path.is_file():
        return False
    size = path.stat().st_size
    if size != entry.bytes and (entry.bytes is not None or size > MAX_TEXT_BYTES):
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256


def json_object(path: Path | str, text: bytes) -> dict[str, Any]:
    """Parse a JSON object from untrusted bytes. `path` is used only in messages.

    Raises BadModelError if the bytes are too many, not valid JSON, or not an object.
    """
    _check_length(path, text, MAX_JSON_BYTES)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadModelError(f"is not valid JSON ({error})", file=path, remedy=RESTORE) from error
    if not isinstance(content, dict):
        raise BadModelError("is not a JSON object", file=path, remedy=RESTORE)
    return content


def _check_length(path: Path | str, text: bytes, limit: int) -> None:
    if len(text) > limit:
        raise BadModelError(
            f"has {len(text):,} bytes, {limit:,} are allowed", file=path, remedy=RESTORE
        )


def check_version(path: Path | str, version: Any) -> None:
    """Raise BadModelError for a format version that this evenfield cannot read."""
    # bool is a subclass of int, but `true` is not a version
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BadModelError(
            f"format_version is {str(version)[:40]!r}, not a positive integer",
            file=path,
            remedy=RESTORE,
        )
    if version > FORMAT_VERSION:
        raise BadModelError(
            f"format {version} is newer than this evenfield reads ({FORMAT_VERSION})",
            file=path,
            remedy="upgrade evenfield",
        )


def validation_faults(error: ValidationError) -> str:
    """The first faults that pydantic found, on one line."""
    faults = []
    for fault in error.errors()[:5]:
        key = ".".join(str(part) for part in fault["loc"])
        # for a ValueError from our validators, pydantic prefixes the text but keeps the exception
        if fault["type"] == "value_error":
            text = str(fault["ctx"]["error"])
        else:
            # the value is untrusted and may be long
            value = repr(fault["input"])[:40]
            text = f"{fault['msg']} (got {value})"
        faults.append(f"{key}: {text}")
    return "; ".join(faults)


def _check_complete(path: Path | str, manifest: Manifest) -> None:
    """Check that the manifest lists every required file, and the weights exactly once."""
    for name in REQUIRED_FILES:
        if name not in manifest.files:
            raise BadModelError(f"does not list {name}", file=path, remedy=RESTORE)

    listed = manifest.weights
    if listed != _expected_weights(listed):
        shown = ", ".join(listed[:3]) or "none"
        raise BadModelError(
            f"does not list the weights completely and exactly once (listed: {shown})",
            file=path,
            remedy=RESTORE,
        )


def _expected_weights(listed: list[str]) -> list[str]:
    """The files of weights that must be listed, judged by the first listed one."""
    shard = SHARD.fullmatch(listed[0]) if listed else None
    if shard is None:
        return ["model.safetensors"]
    # the total in the name is not trusted: without a limit, it could fill the memory
    total = int(shard[2])
    numbers = range(1, min(total, MAX_FILES) + 1)
    return [f"model-{number:05}-of-{total:05}.safetensors" for number in numbers]


def _refuse_special(path: Path) -> None:
    """Raise BadModelError for a named pipe, socket or device, which must not be opened."""
    special = special_kind(path)
    if special is not None:
        raise BadModelError(f"is {special}, not a file", file=path, remedy=RESTORE)


def _check_inside(folder: Path, path: Path) -> None:
    """Raise BadModelError for a link that leads out of the folder.

    Links into the blobs of the Hugging Face cache are allowed.
    """
    home = folder.resolve()
    # the Hugging Face cache stores files in models--OWNER--NAME/blobs and links to them
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        home = home.parents[2]
    if not path.resolve().is_relative_to(home):
        raise BadModelError("is a link out of the model's folder", file=path, remedy=RESTORE)
