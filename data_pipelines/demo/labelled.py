"""One structure of the embedded data, drawn and labelled: the part of the generator that runs in workers.

It imports neither torch nor pyarrow, so that a worker starts fast and stays small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from .clusters import cluster, molecule
from .geometry import has_close_contact
from .metals import metal
from .oracles import EMT_LEVEL, GFN1_LEVEL, RejectedStructure, label


FAMILIES = {  # name -> builder, level of theory, share
    "cluster": (cluster, GFN1_LEVEL, 0.6),
    "molecule": (molecule, GFN1_LEVEL, 0.2),
    "metal": (metal, EMT_LEVEL, 0.2),
}
MAX_ATTEMPTS = (
    10  # candidates per structure; 1 in 25 gets no label, so ten failures in a row mean a fault
)


@dataclass(frozen=True)
class Failure:
    """A candidate that got no label."""

    index: int
    attempt: int
    family: str
    formula: str
    reason: str
    detail: str


def labelled_structure(seed: int, index: int) -> tuple[Atoms | None, list[Failure]]:
    """Structure `index` of the data set of `seed` (None after MAX_ATTEMPTS), and the failures on the way."""
    rng = np.random.default_rng([seed, index])
    family = str(rng.choice(list(FAMILIES), p=[share for *_, share in FAMILIES.values()]))
    build, level_of_theory, _ = FAMILIES[family]
    failures = []
    for attempt in range(MAX_ATTEMPTS):
        candidate = build(rng)
        try:
            if has_close_contact(candidate):
                raise RejectedStructure("atoms_too_close")
            atoms = label(candidate, level_of_theory)
        except RejectedStructure as rejected:
            formula = candidate.get_chemical_formula()
            failures.append(
                Failure(index, attempt, family, formula, rejected.reason, rejected.detail)
            )
            continue
        # near duplicates share type and composition: a split by group keeps them on one side
        group = f"{atoms.info['config_type']}:{atoms.get_chemical_formula(empirical=True)}"
        atoms.info |= {"structure_id": f"embedded-{seed}-{index}", "group": group}
        return atoms, failures
    return None, failures
