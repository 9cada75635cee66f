"""Keep materials that occur in several sources of a data set on one side of its splits.

Two sources are split independently. A crystal in the test set of one source may be in the training
set of the other, at another volume or level of theory. Its test errors would look too good. Here,
structures with equal hashes (`near_duplicates.material_hash`) count as the same material.

1. Groups without a stated split that share a material are joined to one unit. The unit takes the
   split that another source states for one of its materials; a held-out split takes precedence.
   If no source states one, the first structure of the unit decides.
2. A training structure whose split is stated cannot be moved. If another source holds its material
   out, it is dropped.

If a source states both training and held-out splits for a material, as data sets from a single
trajectory do, it does not count as holding the material out.
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
    """The splits after step 1."""

    split: np.ndarray
    """(S,) index into SPLITS"""

    unit: np.ndarray
    """(S,) id of the unit; units that share a material have been joined"""

    is_fixed: np.ndarray
    """(S,) whether a stated split decides"""

    num_moved: int
    """Number of structures whose split has changed."""

    left_apart: bool
    """True if shared materials would join most structures to one unit, so nothing was moved."""


def shared_materials(material: np.ndarray, source: np.ndarray) -> list[np.ndarray]:
    """The rows of each material that occurs in at least two sources.

    material: (S,) hash of the material, or NO_MATERIAL. source: (S,) index of the source.
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
    """Step 1: move units without a stated split to one side with the materials that they share.

    shared: rows of each shared material, from `shared_materials`.
    split, source, is_stated, unit: (S,) index into SPLITS, index of the source, whether the split
        is stated, and id of the unit.
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

    # the strictest split that other sources state for the materials of each unit, or -1
    stated = np.full(len(names), -1)
    for rows in shared:
        own = unit_of_row[rows[~is_stated[rows]]]
        others = _side_of_each(rows[is_stated[rows]], split, source)
        if len(own) and others:
            place = joined[own[0]]
            # the indices of splits ascend from train to test
            stated[place] = max(stated[place], *others.values())

    # if no split is stated, the first structure of each joined unit decides
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
    # a joined unit takes the id of one of its members
    leader = np.zeros(len(names), np.int64)
    leader[joined] = names
    one_unit = unit.copy()
    one_unit[rows] = leader[places]
    num_moved = int((moved != split).sum())
    return Sides(moved, one_unit, is_fixed, num_moved, left_apart=False)


def _joined(shared: list[np.ndarray], unit_of_row: np.ndarray, num_units: int) -> np.ndarray:
    """Number the units so that those that share materials have the same number, (num_units,).

    unit_of_row: (S,) index of the unit; -1 for rows with a stated split.
    """
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
    """Step 2: rows that a source states as training, but whose material another holds out."""
    found = []
    for rows in shared:
        if _is_on_two_sides(rows, split, source):
            found += rows[(split[rows] == TRAIN) & is_stated[rows]].tolist()
    return np.array(found, dtype=np.int64)


def on_two_sides(shared: list[np.ndarray], split: np.ndarray, source: np.ndarray) -> int:
    """Number of materials that one source trains on and another one holds out."""
    return sum(_is_on_two_sides(rows, split, source) for rows in shared)


def _is_on_two_sides(rows: np.ndarray, split: np.ndarray, source: np.ndarray) -> bool:
    sides = set(_side_of_each(rows, split, source).values())
    return TRAIN in sides and len(sides) > 1


def _side_of_each(rows: np.ndarray, split: np.ndarray, source: np.ndarray) -> dict[int, int]:
    """Source -> split of a material in it; if there are several, the first in SPLITS.

    Dropped rows, which are in no split, do not count.
    """
    sides: dict[int, int] = {}
    for row in rows.tolist():
        own = int(split[row])
        if own < len(SPLITS):
            number = int(source[row])
            # the indices of splits ascend from train to test
            sides[number] = min(sides.get(number, own), own)
    return sides
