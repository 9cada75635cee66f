"""Which files in the folder of a data set evenfield wrote. All others are the user's, and are kept.

Commands draw pictures and pages next to the shards. A user may have a picture of the same name, so
these are known by their content. The files of the data set itself are those that it lists.
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

PARTS = ".parts"  # of unfinished conversions
CARD = "data_card.md"
WRITTEN = {INFO, CENSUS, FINGERPRINTS, CARD, *LISTS}
# what a killed process leaves of any file
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]+\.tmp")


def files_of_data_set(folder: Path) -> Callable[[str], bool]:
    """Whether an entry of a data set's folder, by its path inside, is one that evenfield wrote."""
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
    """Raise DestinationError for a user's file that a conversion into the folder may write over."""
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
    """Whether a conversion writes files of this name."""
    return name in WRITTEN or SHARD_NAME.fullmatch(name) is not None


def _listed(folder: Path) -> set[str] | None:
    """The files of a data set; None where that is not known, in which case names have to do."""
    try:
        info = stated_info(folder)
        lists = info[LISTS_SHA256]
        card = {CARD} if "sources" in info else set()
        return {INFO, CENSUS, FINGERPRINTS, *info["shards"], *lists, *card}
    except (BrokenDataSetError, KeyError, TypeError):
        return None
