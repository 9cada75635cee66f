"""Verify that every file of a data set is still exactly as it was written.

A stream verifies only what it reads. The functions here read all files, which takes as long as the
disk needs. A conversion calls them before it treats a folder as finished.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.files import file_sha256, special_kind
from .fingerprints import FINGERPRINTS, SHA256
from .shards import CONVERT_AGAIN, BrokenDataSetError, lacks_sums, stated_info


CENSUS = "census.json"
# lists for the user, which a conversion writes only if they are not empty
LISTS = ("duplicates.jsonl", "rejected.jsonl")
LISTS_SHA256 = "lists_sha256"  # key in dataset_info.json


def check_all_files(folder: Path, info: dict[str, Any]) -> None:
    """Raise BrokenDataSetError for the first file that is missing or has changed.

    info: the content of dataset_info.json. Files that it does not list are ignored.
    """
    for name, sha256 in _stated_sums(folder, info).items():
        _check(folder / name, sha256)


def damage_of(folder: Path) -> BrokenDataSetError | None:
    """The first fault of a data set, found by reading every file; None if it is intact."""
    try:
        check_all_files(folder, stated_info(folder))
    except BrokenDataSetError as error:
        return error
    return None


def sums_of_lists(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of those LISTS that exist in a folder."""
    return {name: file_sha256(folder / name) for name in LISTS if (folder / name).is_file()}


def _stated_sums(folder: Path, info: dict[str, Any]) -> dict[str, str]:
    """File -> SHA-256 as stated in dataset_info.json.

    Raises BrokenDataSetError if a checksum is not stated.
    """
    try:
        stated = {name: entry["sha256"] for name, entry in info["shards"].items()}
        stated[CENSUS] = info["census_sha256"]
        stated[FINGERPRINTS] = info[SHA256]
        of_lists = info[LISTS_SHA256]
        stated |= {name: of_lists[name] for name in LISTS if name in of_lists}
    except (KeyError, TypeError, AttributeError):
        raise lacks_sums(folder) from None
    return stated


def _check(path: Path, sha256: str) -> None:
    if special_kind(path) is not None or not path.is_file():
        raise BrokenDataSetError("is missing", file=path, remedy=CONVERT_AGAIN)
    try:
        found = file_sha256(path)
    except OSError as error:
        raise BrokenDataSetError(
            f"cannot be read ({error.strerror})", file=path, remedy=CONVERT_AGAIN
        ) from None
    if found != sha256:
        raise BrokenDataSetError(
            "was changed since it was written (its checksum differs)",
            file=path,
            remedy=CONVERT_AGAIN,
        )
