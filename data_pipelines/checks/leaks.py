"""Structures that one data set holds out and another one trains on.

A conversion keeps near copies of its own source together. It cannot know what a run will mix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np

from ..store.fingerprints import read_fingerprints, structure_id_at
from ..store.shards import read_info


HELD_OUT = ("valid", "test")
CONVERT_TOGETHER = "convert their sources into one data set, which keeps copies in one split"


def leaks_between(pairs: Iterable[tuple[Path, Path]], remedy: str = CONVERT_TOGETHER) -> list[str]:
    """A note for each held-out split of which training has near copies.

    pairs: a data set that is trained on, and another one of which structures are held out.

    Raises BrokenDataSetError for damaged fingerprints, and for a data set that has none.
    """
    notes = []
    # a data set is in many of the pairs
    info_of = cache(read_info)
    fingerprints_of = cache(lambda folder: read_fingerprints(folder, info_of(folder)))
    for trained, judged in pairs:
        own = fingerprints_of(trained)
        others = fingerprints_of(judged)
        known = np.sort(own["train"])
        for split in HELD_OUT:
            rows = rows_in(known, others[split])
            if not len(rows):
                continue
            example = structure_id_at(judged, info_of(judged), split, int(rows[0]))
            notes.append(
                f"{len(rows)} of {len(others[split])} {split} structures of {judged} have near "
                f"copies in the training split of {trained}, for example {example}, so errors on "
                f"them look too good: {remedy}"
            )
    return notes


def rows_in(known: np.ndarray, fingerprints: np.ndarray) -> np.ndarray:
    """Places of the fingerprints that are among those that are known, which ascend."""
    if not len(known):
        return np.zeros(0, np.int64)
    # not numpy's isin(), which takes seconds for a million numbers
    places = np.searchsorted(known, fingerprints)
    nearest = known[np.minimum(places, len(known) - 1)]
    return np.flatnonzero(nearest == fingerprints)


def leaks_among(folders: Sequence[Path]) -> list[str]:
    """The notes for all pairs of some data sets."""
    return leaks_between(permutations(folders, 2))
