"""One structure of the demo data, drawn and labelled. This part of the generator runs in workers.

It imports neither torch nor pyarrow, so that a worker starts fast and stays small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase import Atoms

from .clusters import cluster, even_cluster, molecule, organic_molecule
from .geometry import has_close_contact
from .metals import metal
from .oracles import EMT_LEVEL, GFN1_LEVEL, RejectedStructure, label


# 1 in 25 candidates gets no label, so ten failures in a row mean that something is broken
MAX_ATTEMPTS = 10


@dataclass(frozen=True)
class Family:
    """Structures of one kind."""

    build: Callable[[np.random.Generator], Atoms]
    level_of_theory: str

    share: float
    """Of the data set, where several families are made; 0 for one that is made on request."""


FamilyName = Literal["cluster", "molecule", "metal", "organic", "even_cluster"]

FAMILIES: dict[FamilyName, Family] = {
    "cluster": Family(cluster, GFN1_LEVEL, 0.6),
    "molecule": Family(molecule, GFN1_LEVEL, 0.2),
    "metal": Family(metal, EMT_LEVEL, 0.2),
    "organic": Family(organic_molecule, GFN1_LEVEL, 0.0),
    "even_cluster": Family(even_cluster, GFN1_LEVEL, 0.0),
}


@dataclass(frozen=True)
class Failure:
    """A candidate that got no label."""

    index: int
    attempt: int
    family: str
    formula: str
    reason: str
    detail: str


def labelled_structure(
    seed: int, index: int, only: FamilyName | None = None
) -> tuple[Atoms | None, list[Failure]]:
    """Structure `index` of the data set of `seed`, and the candidates that failed before it.

    only: the family to make, by default each by its share. None after MAX_ATTEMPTS failures.
    """
    rng = np.random.default_rng([seed, index])
    name = only
    if name is None:
        shared = {each: family.share for each, family in FAMILIES.items() if family.share}
        drawn = rng.choice(len(shared), p=list(shared.values()))
        name = list(shared)[drawn]
    family = FAMILIES[name]

    failures = []
    for attempt in range(MAX_ATTEMPTS):
        candidate = family.build(rng)
        try:
            if has_close_contact(candidate):
                raise RejectedStructure("atoms_too_close")
            atoms = label(candidate, family.level_of_theory)
        except RejectedStructure as rejected:
            formula = candidate.get_chemical_formula()
            failures.append(
                Failure(index, attempt, name, formula, rejected.reason, rejected.detail)
            )
            continue

        # near duplicates share type and composition: a split by group keeps them on one side
        group = f"{atoms.info['config_type']}:{atoms.get_chemical_formula(empirical=True)}"
        source = "embedded" if only is None else f"embedded-{only}"
        atoms.info |= {"structure_id": f"{source}-{seed}-{index}", "group": group}
        return atoms, failures
    return None, failures
