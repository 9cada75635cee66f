"""What the names of a source's files say: how default ids begin, and which split a file is.

Both follow from the names below the source, so a folder may be moved.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


# as files, folders and columns of sources say it -> as we call it
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
    """What the name of one file says."""

    id_prefix: str
    """The default id of record k is `PREFIX-k`."""

    split: str | None
    """One of SPLITS, or None."""


def name_files(names: Sequence[str], root: str | None = None) -> dict[str, FileName]:
    """What each file of a source is called; unique prefixes, and splits where they are meant.

    root: the folder that is the source; by default the deepest one that contains all files.

    One file called train.xyz states no split: it may be called so by chance, and nothing would be
    left to test with. Several files do when at least two splits are among their names.
    """
    if root is None:
        root = _common_folder(names)
    inside = {name: _below(name, root) for name in names}

    prefixes = {name: _prefix(path, name) for name, path in inside.items()}
    # a.xyz next to a.traj
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
    """The split that a path names; the file's own name comes before those of its folders."""
    for part in reversed(path.parts):
        words = WORD.findall(part.split(".")[0].lower())
        splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        if len(splits) == 1:
            return splits.pop()
    return None


def _common_folder(names: Sequence[str]) -> str:
    # by hand: os.path.commonpath makes one slash of the two in a URL
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
    """The path below the source, without endings."""
    folders = list(inside.parts[:-1])
    if _is_number(name):
        # its folder is a part of the stem
        folders = folders[:-1]
    return "/".join([*folders, stem_of(name)])


def stem_of(name: str) -> str:
    """A file's name without endings; with that of its folder where it is only a number."""
    path = Path(name)
    stem = path.name.split(".")[0]
    if _is_number(name):
        # every folder has a 0000.parquet
        return f"{path.parent.name}-{stem}"
    return stem


def _is_number(name: str) -> bool:
    return Path(name).name.split(".")[0].isdigit()
