"""What a model folder says it holds, and the only way to read it: by plain name, stated size and right hash.

    manifest.json   {"format_version": 3, "files": {name: {"sha256": 64 hex digits, "bytes": size}}}

Nothing here trusts a name: a file that is a link out of the folder, or whose name is a path, is refused unread.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from ...core.settings import Settings


FORMAT_VERSION = 3
MANIFEST = "manifest.json"
FILE_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*\.(safetensors|json|md|extxyz|png)"
)
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
MAX_TEXT_BYTES = 64 << 20  # of a file that is no weights
REFETCH = "fetch the model again"


class BadModelError(ValueError):
    """A model folder that must not be used; the message names the file and the mend."""


class FileEntry(Settings):
    """Hash and size of one file; the size is not known of a model of format 1."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int | None = Field(ge=0, le=1 << 42)


class Manifest(Settings):
    """All files of a model folder but the manifest itself."""

    format_version: int = Field(ge=1)
    files: dict[str, FileEntry] = Field(max_length=1000)

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name, entry in files.items():
            if len(name) > 100 or not FILE_NAME.fullmatch(name) or name == MANIFEST:
                raise ValueError(f"{name[:100]!r} is not the name of a file of a model")
            if not is_weights(name) and (entry.bytes or 0) > MAX_TEXT_BYTES:
                raise ValueError(
                    f"{name} is said to have {entry.bytes:,} bytes; {MAX_TEXT_BYTES:,} are allowed"
                )
        return files

    @property
    def weights(self) -> list[str]:
        """The files that hold the weights: one, or all shards in order."""
        return sorted(name for name in self.files if is_weights(name))

    @property
    def attachments(self) -> list[str]:
        """Files beyond those that every model has."""
        return sorted(
            set(self.files) - set(self.weights) - {"config.json", "evaluation.json", "README.md"}
        )


def is_weights(name: str) -> bool:
    """Whether a file holds weights; posterior.safetensors and the like do not."""
    return name == "model.safetensors" or SHARD.fullmatch(name) is not None


def write_manifest(contents: dict[str, bytes]) -> str:
    """The text of the manifest of a folder that is to hold `contents`."""
    entries = {
        n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()}
        for n, d in sorted(contents.items())
    }
    return json.dumps({"files": entries, "format_version": FORMAT_VERSION}, indent=1)


def parse_manifest(path: Path | str, text: bytes) -> Manifest:
    """A manifest from the bytes that stand at `path`; BadModelError when it is damaged, malicious or too new."""
    content = json_object(path, text)
    check_version(path, content.get("format_version", 1))
    if "format_version" not in content:  # format 1: name -> hash
        content = {
            "format_version": 1,
            "files": {n: {"sha256": digest, "bytes": None} for n, digest in content.items()},
        }
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise BadModelError(f"{path}: {explain(error)}: {REFETCH}") from None
    _check_complete(path, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BadModelError(
            f"{folder}: not a model folder (no {MANIFEST}); name a folder that holds a published model"
        )
    _check_place(folder, path)
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise BadModelError(f"{path}: is larger than a manifest can be: {REFETCH}")
    return parse_manifest(path, path.read_bytes())


def read_verified(folder: Path, name: str, entry: FileEntry) -> bytes:
    """The bytes of one file, once its place, size and hash are right."""
    path = folder / name
    if not path.is_file():
        raise BadModelError(f"{path}: file is missing: {REFETCH}")
    _check_place(folder, path)
    size = path.stat().st_size
    if entry.bytes is not None and size != entry.bytes:
        raise BadModelError(
            f"{path}: has {size:,} of {entry.bytes:,} bytes, not its sha256 either: {REFETCH}"
        )
    if not is_weights(name) and size > MAX_TEXT_BYTES:
        raise BadModelError(
            f"{path}: has {size:,} bytes, {MAX_TEXT_BYTES:,} are allowed: {REFETCH}"
        )
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BadModelError(f"{path}: content does not match its sha256 in {MANIFEST}: {REFETCH}")
    return data


def json_object(path: Path | str, text: bytes) -> dict[str, Any]:
    """A JSON object from bytes that somebody else wrote."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadModelError(f"{path}: is not valid JSON ({error}): {REFETCH}") from None
    if not isinstance(content, dict):
        raise BadModelError(f"{path}: holds no JSON object: {REFETCH}")
    return content


def check_version(path: Path | str, version: Any) -> None:
    """BadModelError for a format that this evenfield does not know."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BadModelError(
            f"{path}: format_version is {version!r}, not a number from 1 on: {REFETCH}"
        )
    if version > FORMAT_VERSION:
        raise BadModelError(
            f"{path}: format {version} is newer than this evenfield reads ({FORMAT_VERSION}): upgrade evenfield"
        )


def explain(error: ValidationError) -> str:
    """A pydantic error in one line."""
    faults = (
        f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}"
        for e in error.errors()[:5]
    )
    return "; ".join(faults)


def _check_complete(path: Path | str, manifest: Manifest) -> None:
    for name in ("config.json", "README.md", "evaluation.json"):
        if name not in manifest.files:
            raise BadModelError(f"{path}: does not list {name}: {REFETCH}")
    shards = manifest.weights
    total = int(found[2]) if shards and (found := SHARD.fullmatch(shards[0])) else 0
    expected = [f"model-{k:05}-of-{total:05}.safetensors" for k in range(1, min(total, 1000) + 1)]
    if shards != (expected or ["model.safetensors"]):
        listed = ", ".join(shards[:3]) or "none"
        raise BadModelError(
            f"{path}: does not list the weights, whole and once (listed: {listed}): {REFETCH}"
        )


def _check_place(folder: Path, path: Path) -> None:
    """A link may lead to where the Hugging Face cache keeps its blobs, and nowhere else out of the folder."""
    home = folder.resolve()
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        home = home.parents[2]
    if not path.resolve().is_relative_to(home):
        raise BadModelError(f"{path}: is a link out of the model's folder: {REFETCH}")
