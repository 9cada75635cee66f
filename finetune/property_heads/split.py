"""Which structures are held out: whole compositions, so that rattled copies reveal no labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from .config import HeadConfig
from .labels import LabelError


FOLDS = 5


def folds(groups: Sequence[str], seed: int) -> np.ndarray:
    """Fold (S,) of each structure, from 0 to FOLDS - 1; structures of a group share a fold."""
    names = sorted(set(groups))
    drawn = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    fold_of = dict(zip(names, drawn.tolist(), strict=True))
    return np.array([fold_of[group] for group in groups])


def groups_of(frames: Sequence[Atoms], config: HeadConfig) -> list[str]:
    """The group of each structure: its reduced composition, or its index if split=structure."""
    if config.split == "structure":
        return [str(index) for index in range(len(frames))]
    return [atoms.get_chemical_formula(empirical=True) for atoms in frames]


def held_out(
    frames: Sequence[Atoms], config: HeadConfig, path: Path, classes: Sequence[int] | None = None
) -> np.ndarray:
    """A mask (S,) of held-out structures, about a share `config.held_out`, drawn with its seed.

    A group is held out only if each of its elements, and each of its classes, also occurs in a
    group that is not, because a head refuses elements that it was not fitted to.

    path: the file, for errors. classes: (S,) class of each structure, if the head has classes.

    Raises LabelError if no group can be held out.
    """
    groups = groups_of(frames, config)
    contents: dict[str, set[tuple[str, int]]] = {group: set() for group in groups}
    for place, (group, atoms) in enumerate(zip(groups, frames, strict=True)):
        contents[group] |= {("element", z) for z in atoms.numbers.tolist()}
        if classes is not None:
            contents[group].add(("class", classes[place]))
    sizes = Counter(groups)
    # number of groups left in the fit, for each element and class
    learning = Counter(one for own in contents.values() for one in own)

    names = sorted(sizes)
    order = np.random.default_rng(config.seed).permutation(len(names))
    chosen: set[str] = set()
    wanted = config.held_out * len(frames)
    num_chosen = 0
    for index in order:
        name = names[index]
        # a group may exceed the wanted number by at most half of its size
        too_many = num_chosen + sizes[name] / 2 > wanted
        if too_many or any(learning[one] < 2 for one in contents[name]):
            continue
        chosen.add(name)
        num_chosen += sizes[name]
        learning.subtract(contents[name])
    if not chosen:
        remedy = "add structures with the same elements"
        if config.split == "composition":
            remedy = "add compositions of the same elements, or set split=structure"
        raise LabelError(
            f"has {len(names)} groups by {config.split}, and none can be held out",
            remedy=remedy,
            file=path,
        )
    return np.array([group in chosen for group in groups])
