"""Which split each structure belongs to.

A split is stated by the source, or follows from a hash of the structure's group (`assign_split`,
one structure at a time, while parts are staged). When all structures are known, `arrange` corrects
the hashed splits, and never the stated ones:

1. Near copies in different groups are put on one side.
2. When the groups are so few that a wanted split is empty, groups of one composition are cut into
   runs of consecutive structures. Neighbouring frames of a trajectory are alike, so that the runs
   are long.
3. A material that several sources have is put on one side in all of them (`between_sources.py`).
4. An element that no training structure of its level of theory has takes its smallest group into
   training. A model would otherwise be asked for what it has never seen: each level has reference
   energies of its own.

Steps 1 and 2 are taken in each source by itself, as if it were converted alone.
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
# the split of a structure that is dropped
NOWHERE = len(SPLITS)

# runs that a data set of too few groups is cut into
RUNS = 20


class SplitConfig(SourceConfig):
    """How a data set is split; `split_by` is among the settings of its source."""

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
    """For validators: raise ValueError for what is no element symbol."""
    unknown = [symbol for symbol in symbols if symbol not in chemical_symbols[1:]]
    if unknown:
        raise ValueError(f"{', '.join(map(str, unknown))}: not an element symbol")


# --- one structure at a time


def assign_split(structure: Structure, config: SplitConfig) -> tuple[str, bool]:
    """The split of a structure, and whether it is stated.

    "test" for held-out pairs, else the structure's own, else that of its group.
    """
    if config.hold_out_pairs:
        symbols = {chemical_symbols[number] for number in structure.elements}
        if any(symbols.issuperset(pair) for pair in config.hold_out_pairs):
            return "test", True
    if structure.split is not None:
        return structure.split, True
    return split_of(split_key(structure, config), config), False


def split_key(structure: Structure, config: SplitConfig) -> str:
    """What is hashed for the split of a structure: the name of its group, or its own."""
    return structure.structure_id if config.split_by == "structure" else structure.group


def split_of(group: str, config: SplitConfig) -> str:
    """The split of a group by a hash of its name.

    All structures of a group are on one side, on every machine, and adding data moves none.
    """
    # ids from files may contain surrogates, which plain UTF-8 refuses
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
    """What decides the splits of the structures (S,) that a data set keeps, in file order."""

    split: np.ndarray
    """(S,) index into SPLITS, as `assign_split` found it."""

    is_stated: np.ndarray
    """(S,) bool; such a split is never changed."""

    key: np.ndarray
    """(S,) hash of `split_key`."""

    is_composition: Callable[[int], bool]
    """Whether the group of a structure is only its composition, which nobody asked to keep
    together."""

    fingerprint: np.ndarray
    """(S,) equal for near copies."""

    level: np.ndarray
    """(S,) hash of the level of theory."""

    elements: np.ndarray
    """Distinct atomic numbers of the structures, end to end."""

    element_starts: np.ndarray
    """(S + 1,) where those of each structure begin."""

    source: np.ndarray
    """(S,) number of the source, which has a config of its own."""

    material: np.ndarray
    """(S,) equal for one material, whatever its volume and level of theory; unused for one
    source."""


@dataclass
class Arrangement:
    """The final splits, and what was done to reach them."""

    split: np.ndarray
    """(S,) index into SPLITS."""

    moved_to_near_copies: int = 0
    """Structures that another split would have had."""

    near_copies_left_apart: bool = False
    """Near copies chain most structures together, and were left where they were."""

    cut_into_runs: bool = False
    moved_into_training: int = 0

    elements_not_in_training: dict[int, list[str]] = field(default_factory=dict)
    """Hash of a level of theory -> symbols; only levels that have other training structures."""

    levels_not_in_training: list[int] = field(default_factory=list)
    """Hashes of levels of theory."""

    is_dropped: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """(S,) structures that would leak from one source into another, and are in no split."""

    between_sources: dict[str, Any] | None = None
    """What dataset_info.json says about materials of several sources; None for one source."""


def arrange(found: Candidates, configs: Sequence[SplitConfig]) -> Arrangement:
    """Final splits: see the steps in the docstring of this module.

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
    """Groups that share a near copy become one unit, which follows its first structure."""
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
    """Units (S,), those with near copies in common as one; None if that joins too much.

    A joined unit has the name of its member with the first structure.
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

    # the member that comes first in the file gives its name
    order = np.argsort(first, kind="stable")
    _, leader = np.unique(component[order], return_index=True)
    return names[order[leader]][component][member]


def _has_gap(found: Candidates, own: np.ndarray, split: np.ndarray, config: SplitConfig) -> bool:
    """Whether a wanted split is empty although the source, with the rows `own`, states none."""
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
    """Deal runs of consecutive structures to the splits, in an order that their hashes give."""
    run_length = -(-len(free) // RUNS)
    for name in np.unique(unit[free]):
        rows = free[unit[free] == name]
        # groups that a user has named are never divided
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
    """A split for each unit, in the order given: test and valid get their shares, train the rest.

    Each of them gets a unit as long as one remains for training. Units that are more than half of
    all structures are for training.
    """
    split = np.full(len(sizes), TRAIN)
    remaining = [k for k in range(len(sizes)) if sizes[k] <= sizes.sum() / 2]
    if len(remaining) == len(sizes) and remaining:
        # one unit stays for training
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
    """Move units into training until each level has all its elements, as far as possible.

    is_fixed: (S,) bool; such a split is not changed.
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
    """Bring one of the rows into training, with its unit; False where all splits are stated."""
    if (done.split[rows] == TRAIN).any():
        return True
    free = rows[~is_fixed[rows]]
    if not len(free):
        return False

    # the smallest unit costs the other splits the least
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
    """What dataset_info.json says about the splits.

    level_names: by hash, of the levels that `done` mentions.
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
