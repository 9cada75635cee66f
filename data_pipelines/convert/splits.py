"""Assign structures to the splits train, valid and test.

A split is stated by the source, or derived from a hash of the structure's group. `assign_split`
does this for one structure at a time while parts are staged. When all structures are known,
`arrange` corrects the hashed splits, but never the stated ones:

1. Near copies in different groups are moved to the same split.
2. If there are so few groups that a wanted split is empty, groups that are defined only by their
   composition are cut into runs of consecutive structures. The runs are long, because neighbouring
   frames of a trajectory are alike.
3. A material that occurs in several sources is moved to the same split (`between_sources.py`).
4. If an element does not occur in the training structures of a level of theory, the smallest group
   with this element is moved into training. Each level has its own reference energies, so the
   model would otherwise be tested on an element that it has never seen at this level.

Steps 1 and 2 treat each source separately, as if it were converted alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from pydantic import Field, field_validator
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..sources.config import SourceConfig
from ..structure import SPLITS, Structure
from . import between_sources
from .near_duplicates import MOST_CHAINED, group_equal, hash_63


TRAIN, VALID, TEST = range(len(SPLITS))
# pseudo split of dropped structures
NOWHERE = len(SPLITS)

# number of runs into which a data set with too few groups is cut
RUNS = 20


class SplitConfig(SourceConfig):
    """How a data set is split; `split_by` is a setting of the base class."""

    valid_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of the groups held out for validation"
    )
    test_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of the groups held out for testing"
    )
    hold_out_pairs: list[tuple[str, str]] = Field(
        default=[],
        description="pairs of elements; structures with both are for testing, whatever their group",
    )

    @field_validator("hold_out_pairs")
    @classmethod
    def _check_pairs(cls, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        check_symbols([symbol for pair in pairs for symbol in pair])
        return pairs


def check_symbols(symbols: list[str]) -> None:
    """Raise ValueError if a text is not an element symbol; for use in pydantic validators."""
    unknown = [symbol for symbol in symbols if symbol not in chemical_symbols[1:]]
    if unknown:
        raise ValueError(f"{', '.join(map(str, unknown))}: not an element symbol")


# --- one structure at a time


def assign_split(structure: Structure, config: SplitConfig) -> tuple[str, bool]:
    """The split of a structure, and whether it is stated.

    Structures with a held-out pair of elements are in "test". Otherwise the split is the one that
    the source states, or the one derived from the group.
    """
    if config.hold_out_pairs:
        symbols = {chemical_symbols[number] for number in structure.elements}
        if any(symbols.issuperset(pair) for pair in config.hold_out_pairs):
            return "test", True
    if structure.split is not None:
        return structure.split, True
    return split_of(split_key(structure, config), config), False


def split_key(structure: Structure, config: SplitConfig) -> str:
    """The text that is hashed to choose a split: the group of the structure, or its id."""
    return structure.structure_id if config.split_by == "structure" else structure.group


def split_of(group: str, config: SplitConfig) -> str:
    """Derive the split of a group from a hash of its name.

    All structures of a group get the same split. The result is the same on every machine, and
    adding data does not change it.
    """
    # ids from files may contain surrogates, which strict UTF-8 cannot encode
    digest = hashlib.sha256(group.encode(errors="surrogatepass")).digest()
    # uniform in [0, 1)
    point = int.from_bytes(digest[:8], "big") / 2**64
    if point < config.test_share:
        return "test"
    if point < config.test_share + config.valid_share:
        return "valid"
    return "train"


# --- all structures together


@dataclass(frozen=True)
class Candidates:
    """The properties that determine the splits of the S kept structures, in file order."""

    split: np.ndarray
    """(S,) index into SPLITS, from `assign_split`."""

    is_stated: np.ndarray
    """(S,) bool; a stated split is never changed."""

    key: np.ndarray
    """(S,) hash of `split_key`."""

    is_composition: Callable[[int], bool]
    """Whether the group of a structure (by index) is only its composition. The user did not ask for
    such groups, so they may be divided."""

    fingerprint: np.ndarray
    """(S,) equal for near copies."""

    level: np.ndarray
    """(S,) hash of the level of theory."""

    elements: np.ndarray
    """Distinct atomic numbers of each structure, concatenated."""

    element_starts: np.ndarray
    """(S + 1,) offsets of the structures in `elements`."""

    source: np.ndarray
    """(S,) index of the source, and of its config."""

    material: np.ndarray
    """(S,) equal for structures of one material, at any volume and level of theory. Unused if there
    is only one source."""


@dataclass
class Arrangement:
    """The final splits, and what was changed to reach them."""

    split: np.ndarray
    """(S,) index into SPLITS, or NOWHERE for a dropped structure."""

    moved_to_near_copies: int = 0
    """Number of structures that were moved into the split of a near copy."""

    near_copies_left_apart: bool = False
    """True if near copies would join most structures to one unit, so they were not joined."""

    cut_into_runs: bool = False
    moved_into_training: int = 0

    elements_not_in_training: dict[int, list[str]] = field(default_factory=dict)
    """Hash of a level of theory -> symbols; only for levels with other training structures."""

    levels_not_in_training: list[int] = field(default_factory=list)
    """Hashes of levels of theory without training structures."""

    is_dropped: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """(S,) bool; structures that would leak between sources, and therefore are in no split."""

    between_sources: dict[str, Any] | None = None
    """Entry of dataset_info.json about materials in several sources; None if there is only one."""


def arrange(found: Candidates, configs: Sequence[SplitConfig]) -> Arrangement:
    """Compute the final splits, by the steps in the docstring of this module.

    configs: one for each source.
    """
    done = Arrangement(found.split.copy(), is_dropped=np.zeros(len(found.split), bool))
    unit = found.key.copy()
    is_fixed = found.is_stated

    for number, config in enumerate(configs):
        own = np.flatnonzero(found.source == number)
        free = own[~found.is_stated[own]]
        if len(free):
            _join_near_copies(found, free, unit, done)
            if _has_gap(found, own, done.split, config):
                _cut(found, free, unit, done, config)

    if len(configs) > 1:
        shared = between_sources.shared_materials(found.material, found.source)
        moved = between_sources.on_one_side(shared, done.split, found.source, found.is_stated, unit)
        dropped = between_sources.leaking(shared, moved.split, found.source, found.is_stated)
        unit = moved.unit
        is_fixed = moved.is_fixed
        done.split = moved.split.copy()
        done.split[dropped] = NOWHERE
        done.is_dropped[dropped] = True
    _fill_training(found, unit, is_fixed, done)
    if len(configs) > 1:
        left = between_sources.on_two_sides(shared, done.split, found.source)
        done.between_sources = {
            "materials": len(shared),
            "structures": sum(map(len, shared)),
            "moved": moved.num_moved,
            "left_apart": moved.left_apart,
            "dropped_from_training": len(dropped),
            "still_on_two_sides": left,
        }
    return done


def _join_near_copies(
    found: Candidates, free: np.ndarray, unit: np.ndarray, done: Arrangement
) -> None:
    """Join groups that share a near copy to one unit; it takes the split of its first structure.

    free: rows of one source without a stated split. Changes `unit` (S,) and `done` in place.
    """
    joined = _chained(unit[free], found.fingerprint[free])
    if joined is None:
        done.near_copies_left_apart = True
        return
    unit[free] = joined

    # the first structure of each unit decides
    _, first, inverse = np.unique(joined, return_index=True, return_inverse=True)
    split = done.split[free][first][inverse]
    done.moved_to_near_copies += int((split != done.split[free]).sum())
    done.split[free] = split


def _chained(unit: np.ndarray, fingerprint: np.ndarray) -> np.ndarray | None:
    """Join units (S,) that have near copies in common; None if that would join too many.

    A joined unit takes the id of the member that comes first in the file.
    """
    names, first, member = np.unique(unit, return_index=True, return_inverse=True)
    pairs: list[np.ndarray] = []
    for rows in group_equal(fingerprint):
        members = np.unique(member[rows])
        if len(members) > 1:
            chain = np.stack([members[:-1], members[1:]])
            pairs.append(chain)
    if not pairs:
        return unit

    links = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(links.shape[1]), links), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)

    # size of each component, and of the largest of its members
    size_of_member = np.bincount(member)
    size = np.bincount(component, size_of_member)
    largest = np.zeros(len(size))
    np.maximum.at(largest, component, size_of_member)
    grew_too_large = (size > MOST_CHAINED * len(unit)) & (largest < size)
    if grew_too_large.any():
        return None

    order = np.argsort(first, kind="stable")
    _, leader = np.unique(component[order], return_index=True)
    return names[order[leader]][component][member]


def _has_gap(found: Candidates, own: np.ndarray, split: np.ndarray, config: SplitConfig) -> bool:
    """Whether a wanted split of the source with the rows `own` is empty.

    Always False for a source that states splits.
    """
    if found.is_stated[own].any():
        return False
    wanted = [TRAIN]
    if config.valid_share > 0:
        wanted.append(VALID)
    if config.test_share > 0:
        wanted.append(TEST)
    return not set(wanted) <= set(split[own].tolist())


def _cut(
    found: Candidates,
    free: np.ndarray,
    unit: np.ndarray,
    done: Arrangement,
    config: SplitConfig,
) -> None:
    """Cut groups into runs of consecutive structures, and distribute the runs over the splits.

    The order of the runs is given by their hashes. Changes `unit` (S,) and `done` in place.
    """
    run_length = -(-len(free) // RUNS)
    for name in np.unique(unit[free]):
        rows = free[unit[free] == name]
        # groups that the user has named are never divided
        if not found.is_composition(int(rows[0])):
            continue
        run = np.arange(len(rows)) // run_length
        unit[rows] = [hash_63(f"{name} {number}") for number in run.tolist()]
    joined = _chained(unit[free], found.fingerprint[free])
    if joined is None:
        done.near_copies_left_apart = True
    else:
        unit[free] = joined

    names, sizes = np.unique(unit[free], return_counts=True)
    split_of_unit = _deal(sizes, config)
    done.split[free] = split_of_unit[np.searchsorted(names, unit[free])]
    done.cut_into_runs = True


def _deal(sizes: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Assign units to splits in the given order: first test, then valid, and the rest to train.

    Test and valid get at least one unit each, as long as one remains for training. A unit with more
    than half of all structures goes to training. sizes: structures in each unit.
    """
    split = np.full(len(sizes), TRAIN)
    remaining = [k for k in range(len(sizes)) if sizes[k] <= sizes.sum() / 2]
    if len(remaining) == len(sizes) and remaining:
        # keep one unit for training
        remaining.pop()
    for code, share in ((TEST, config.test_share), (VALID, config.valid_share)):
        wanted = share * sizes.sum()
        taken = 0
        while share > 0 and remaining and taken < wanted:
            unit = remaining.pop(0)
            split[unit] = code
            taken += sizes[unit]
    return split


def _fill_training(
    found: Candidates, unit: np.ndarray, is_fixed: np.ndarray, done: Arrangement
) -> None:
    """Move units into training until each level has all its elements there, if possible.

    unit: (S,) id of the unit. is_fixed: (S,) bool; a fixed split is not changed.
    """
    row_of_element = np.repeat(np.arange(len(found.split)), np.diff(found.element_starts))
    level_of_element = found.level[row_of_element]

    for level in np.unique(found.level).tolist():
        own = np.flatnonzero(level_of_element == level)
        lost_elements = []
        for number in np.unique(found.elements[own]):
            rows = row_of_element[own[found.elements[own] == number]]
            if not _take_into_training(rows, unit, is_fixed, done):
                lost_elements.append(chemical_symbols[number])

        is_in_training = (done.split[found.level == level] == TRAIN).any()
        if not is_in_training:
            done.levels_not_in_training.append(level)
        elif lost_elements:
            done.elements_not_in_training[level] = lost_elements


def _take_into_training(
    rows: np.ndarray, unit: np.ndarray, is_fixed: np.ndarray, done: Arrangement
) -> bool:
    """Move one of the rows into training, together with its unit, unless one is there already.

    Returns False if none can be moved, because all splits are fixed.
    """
    if (done.split[rows] == TRAIN).any():
        return True
    free = rows[~is_fixed[rows]]
    if not len(free):
        return False

    # moving the smallest unit changes the other splits the least
    names = np.unique(unit[free])
    sizes = [int((unit == name).sum()) for name in names]
    chosen = names[int(np.argmin(sizes))]
    moved = (unit == chosen) & ~is_fixed & (done.split != TRAIN)
    done.split[moved] = TRAIN
    done.moved_into_training += int(moved.sum())
    return True


def as_json(
    done: Arrangement, is_stated: np.ndarray, level_names: dict[int, str]
) -> dict[str, Any]:
    """The entry of dataset_info.json about the splits.

    level_names: hash -> name of the levels that `done` mentions.
    """
    elements = {
        level_names[level]: symbols for level, symbols in done.elements_not_in_training.items()
    }
    levels = [level_names[level] for level in done.levels_not_in_training]
    shared = {}
    if done.between_sources is not None:
        shared["between_sources"] = done.between_sources
    return {
        "stated": int(is_stated.sum()),
        "moved_to_near_copies": done.moved_to_near_copies,
        "near_copies_left_apart": done.near_copies_left_apart,
        "cut_into_runs": done.cut_into_runs,
        "moved_into_training": done.moved_into_training,
        "elements_not_in_training": dict(sorted(elements.items())),
        "levels_not_in_training": sorted(levels),
        **shared,
    }
