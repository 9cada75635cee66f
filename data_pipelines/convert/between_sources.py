"""Materials that several sources of one data set have, kept on one side of its splits.

Two sources are split independently. A crystal that one of them tests on may be among the training
structures of the other, at another volume or level of theory, and its errors would look too good.
Structures with equal hashes (`near_duplicates.material_hash`) are taken for one material here.

1. Groups without a stated split that share a material become one unit. The unit follows what
   another source states for one of its materials; held out wins. Without that, its first structure
   decides.
2. A training structure whose split is stated cannot move. If its material is held out in another
   source, it is dropped.

A source that states both sides for one material, as sets of one trajectory do, does not hold it
out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..structure import SPLITS
from .near_duplicates import MOST_CHAINED, group_equal


TRAIN = SPLITS.index("train")
NO_MATERIAL = -1


@dataclass(frozen=True)
class Sides:
    """Splits after step 1."""

    split: np.ndarray
    """(S,)"""

    unit: np.ndarray
    """(S,) units that share a material have one name."""

    is_fixed: np.ndarray
    """(S,) whether a stated split decides the side."""

    num_moved: int
    """Structures that had another split before."""

    left_apart: bool
    """Shared materials chain most structures together, and were left where they were."""


def shared_materials(material: np.ndarray, source: np.ndarray) -> list[np.ndarray]:
    """Rows of each material that at least two sources have.

    material, source: (S,) hash of the material, NO_MATERIAL for none, and number of the source.
    """
    groups = group_equal(material)
    return [
        rows
        for rows in groups
        if material[rows[0]] != NO_MATERIAL and len(np.unique(source[rows])) > 1
    ]


def on_one_side(
    shared: list[np.ndarray],
    split: np.ndarray,
    source: np.ndarray,
    is_stated: np.ndarray,
    unit: np.ndarray,
) -> Sides:
    """Step 1: units without a stated split on the side of the materials that they share.

    split, source, is_stated, unit: (S,) split code, number of the source, whether the split is
    stated, and name of the unit.
    """
    free = np.flatnonzero(~is_stated)
    if not len(free):
        return Sides(split, unit, is_stated, 0, left_apart=False)
    names, first, member = np.unique(unit[free], return_index=True, return_inverse=True)
    unit_of_row = np.full(len(split), -1)
    unit_of_row[free] = member

    joined = _joined(shared, unit_of_row, len(names))
    sizes = np.bincount(joined[member])
    largest_unit = np.bincount(member).max()
    if sizes.max() > max(MOST_CHAINED * len(split), largest_unit):
        return Sides(split, unit, is_stated, 0, left_apart=True)

    # what other sources state of the materials of each unit: -1, or the strictest split
    stated = np.full(len(names), -1)
    for rows in shared:
        own = unit_of_row[rows[~is_stated[rows]]]
        others = _side_of_each(rows[is_stated[rows]], split, source)
        if len(own) and others:
            place = joined[own[0]]
            # the codes ascend from training to test
            stated[place] = max(stated[place], *others.values())

    # without it, the first structure among those that share something
    side = np.full(len(names), -1)
    for name in np.argsort(first, kind="stable"):
        if side[joined[name]] < 0:
            side[joined[name]] = split[free[first[name]]]
    side = np.where(stated >= 0, stated, side)

    touched = np.zeros(len(names), bool)
    for rows in shared:
        own = unit_of_row[rows]
        touched[own[own >= 0]] = True
    follows = touched[member]
    rows = free[follows]
    places = joined[member[follows]]

    moved = split.copy()
    moved[rows] = side[places]
    is_fixed = is_stated.copy()
    is_fixed[rows] = stated[places] >= 0
    # the name of one of its members
    leader = np.zeros(len(names), np.int64)
    leader[joined] = names
    one_unit = unit.copy()
    one_unit[rows] = leader[places]
    num_moved = int((moved != split).sum())
    return Sides(moved, one_unit, is_fixed, num_moved, left_apart=False)


def _joined(shared: list[np.ndarray], unit_of_row: np.ndarray, num_units: int) -> np.ndarray:
    """Units that share materials get one number, (num_units,); `unit_of_row` is -1 for others."""
    links = []
    for rows in shared:
        own = unit_of_row[rows]
        own = np.unique(own[own >= 0])
        links.append(np.stack([own[:-1], own[1:]]))
    pairs = np.concatenate(links, axis=1) if links else np.zeros((2, 0), int)
    graph = coo_array((np.ones(pairs.shape[1]), pairs), shape=(num_units, num_units))
    _, joined = connected_components(graph, directed=False)
    return joined


def leaking(
    shared: list[np.ndarray], split: np.ndarray, source: np.ndarray, is_stated: np.ndarray
) -> np.ndarray:
    """Step 2: rows of training structures, with a stated split, that another source holds out."""
    found = []
    for rows in shared:
        if _is_on_two_sides(rows, split, source):
            found += rows[(split[rows] == TRAIN) & is_stated[rows]].tolist()
    return np.array(found, dtype=np.int64)


def on_two_sides(shared: list[np.ndarray], split: np.ndarray, source: np.ndarray) -> int:
    """Materials that one source trains on and another one holds out."""
    return sum(_is_on_two_sides(rows, split, source) for rows in shared)


def _is_on_two_sides(rows: np.ndarray, split: np.ndarray, source: np.ndarray) -> bool:
    sides = set(_side_of_each(rows, split, source).values())
    return TRAIN in sides and len(sides) > 1


def _side_of_each(rows: np.ndarray, split: np.ndarray, source: np.ndarray) -> dict[int, int]:
    """Number of each source -> the split of a material in it, the first of several.

    A row in no split, which was dropped, does not count.
    """
    sides: dict[int, int] = {}
    for row in rows.tolist():
        own = int(split[row])
        if own < len(SPLITS):
            number = int(source[row])
            # the codes ascend from training to test
            sides[number] = min(sides.get(number, own), own)
    return sides
