"""Derive default structure ids and splits from the names of a source's files.

Only the part of a path below the source counts, so a folder may be moved.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


# name of a split in files, folders and columns -> the pipeline's name for it
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
# water_train.xyz, val-2.extxyz and test_300K/ state a split, contest.xyz does not
WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class FileName:
    """What the name of a file says about its structures."""

    id_prefix: str
    """The default id of record k is `PREFIX-k`."""

    split: str | None
    """One of `structure.SPLITS`, or None."""


def name_files(names: Sequence[str], root: str | None = None) -> dict[str, FileName]:
    """Map each file of a source to a unique id prefix, and to a split if the names state splits.

    root: the folder of the source; by default the deepest folder that contains all files.

    File names count as splits only if at least two different splits occur among them. A single
    train.xyz states none: the name may be a coincidence, and nothing would be left for testing.
    """
    if root is None:
        root = _common_folder(names)
    inside = {name: _below(name, root) for name in names}

    prefixes = {name: _prefix(path, name) for name, path in inside.items()}
    # prefixes of several files, such as a.xyz and a.traj
    shared = {prefix for prefix, count in Counter(prefixes.values()).items() if count > 1}
    splits = {name: stated_split(path) for name, path in inside.items()}
    are_meant = len(set(splits.values()) - {None}) > 1

    found = {}
    for name in names:
        prefix = prefixes[name]
        if prefix in shared:
            prefix = str(inside[name])
        found[name] = FileName(prefix, splits[name] if are_meant else None)
    return found


def stated_split(path: PurePosixPath) -> str | None:
    """The split that a path states, or None; the file's name takes precedence over its folders."""
    for part in reversed(path.parts):
        words = WORD.findall(part.split(".")[0].lower())
        splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        if len(splits) == 1:
            return splits.pop()
    return None


def _common_folder(names: Sequence[str]) -> str:
    # os.path.commonpath would collapse the two slashes of a URL into one
    common = names[0].split("/")[:-1]
    for name in names[1:]:
        folders = name.split("/")[:-1]
        same = [one for one, other in zip(common, folders, strict=False) if one == other]
        while common[: len(same)] != folders[: len(same)]:
            same.pop()
        common = common[: len(same)]
    return "/".join(common)


def _below(name: str, root: str) -> PurePosixPath:
    relative = name.removeprefix(root).lstrip("/")
    return PurePosixPath(relative)


def _prefix(inside: PurePosixPath, name: str) -> str:
    """The path below the source, without file name endings."""
    folders = list(inside.parts[:-1])
    if _is_number(name):
        # the stem already contains the name of the last folder
        folders = folders[:-1]
    return "/".join([*folders, stem_of(name)])


def stem_of(name: str) -> str:
    """A file's name without endings; if it is a number, the folder's name is put in front."""
    path = Path(name)
    stem = path.name.split(".")[0]
    if _is_number(name):
        # a number alone is not unique: every folder of a hub data set has a 0000.parquet
        return f"{path.parent.name}-{stem}"
    return stem


def _is_number(name: str) -> bool:
    return Path(name).name.split(".")[0].isdigit()
