"""Find structures that one data set holds out and another one trains on.

A conversion keeps near copies within its source together, but cannot know which data sets a run
will combine.
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
    """A note for each held-out split that has near copies in training data.

    pairs: pairs of a data set used for training, and another one with held-out structures.
    remedy: text that says what to do about it.

    Raises BrokenDataSetError if fingerprints are damaged or missing.
    """
    notes = []
    # cached, because a data set may be in many of the pairs
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
    """Indices (K,) of `fingerprints` (S,) that also occur in `known`, which must be sorted."""
    if not len(known):
        return np.zeros(0, np.int64)
    # numpy's isin() would take seconds for a million numbers
    places = np.searchsorted(known, fingerprints)
    nearest = known[np.minimum(places, len(known) - 1)]
    return np.flatnonzero(nearest == fingerprints)


def leaks_among(folders: Sequence[Path]) -> list[str]:
    """The notes of `leaks_between` for all ordered pairs of the data sets."""
    return leaks_between(permutations(folders, 2))
