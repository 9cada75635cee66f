"""Tell the files that evenfield wrote to the folder of a data set from those of the user.

The user's files are always kept. Commands write pictures and pages next to the shards. Because the
user may have a picture of the same name, these are recognised by their content. The files of the
data set itself are listed in dataset_info.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ...core.destination import PAGES, DestinationError, FileKind, png_kind
from .fingerprints import FINGERPRINTS
from .shards import INFO, SHARD_NAME, BrokenDataSetError, stated_info
from .whole import CENSUS, LISTS, LISTS_SHA256


CENSUS_PICTURE = "census of a data set"
WEIGHTS_PICTURE = "effect of importance weights"
INSPECTION_PICTURE = "inspection of a data set"
DRAWN: dict[str, FileKind] = {
    "census.png": png_kind(CENSUS_PICTURE),
    "weights.png": png_kind(WEIGHTS_PICTURE),
    "inspection.png": png_kind(INSPECTION_PICTURE),
    "inspection.html": PAGES,
}

PARTS = ".parts"  # folder of unfinished conversions
CARD = "data_card.md"
WRITTEN = {INFO, CENSUS, FINGERPRINTS, CARD, *LISTS}
# temporary file that a killed process leaves behind
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]+\.tmp")


def files_of_data_set(folder: Path) -> Callable[[str], bool]:
    """A function that says whether evenfield wrote an entry of a data set's folder.

    Its argument is the path of the entry relative to the folder.
    """
    listed = _listed(folder)

    def is_ours(name: str) -> bool:
        if name in DRAWN:
            return DRAWN[name].is_at(folder / name)
        temporary = TEMPORARY.fullmatch(name)
        if temporary is not None:
            return temporary["name"] in DRAWN or _has_name_of_ours(temporary["name"])
        if listed is not None and _has_name_of_ours(name):
            return name in listed
        return name == PARTS or _has_name_of_ours(name)

    return is_ours


def refuse_files_of_others(folder: Path) -> None:
    """Raise DestinationError for a user's file that a conversion into the folder might replace."""
    is_ours = files_of_data_set(folder)
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    for entry in entries:
        if _has_name_of_ours(entry.name) and not is_ours(entry.name):
            raise DestinationError(
                "is not a file of the data set, and a conversion writes under such names",
                file=entry,
                remedy="rename that file, or move it away",
            )


def _has_name_of_ours(name: str) -> bool:
    """Whether a conversion may write a file of this name."""
    return name in WRITTEN or SHARD_NAME.fullmatch(name) is not None


def _listed(folder: Path) -> set[str] | None:
    """The files that a data set lists; None if this is unknown, so that only names can be used."""
    try:
        info = stated_info(folder)
        lists = info[LISTS_SHA256]
        card = {CARD} if "sources" in info else set()
        return {INFO, CENSUS, FINGERPRINTS, *info["shards"], *lists, *card}
    except (BrokenDataSetError, KeyError, TypeError):
        return None
