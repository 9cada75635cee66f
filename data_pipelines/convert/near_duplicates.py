"""Near duplicates: structures whose fingerprints are equal, counted within and across splits, never dropped.

The fingerprint is a hash of the reduced composition, the level of theory, the energy per atom to 1 meV and three
means over atoms to 0.02: the smooth number of neighbours within 4 A, the same weighted with the neighbour's Z / 10,
and the root mean square of the former.  So turned, shifted, renumbered, repeated and barely moved copies are found.
Limits: two copies that lie on both sides of a rounding step are missed; different structures can share all these
numbers (mirror images do); the same geometry at two levels of theory is no duplicate.  It is a list to look at.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..neighbours import neighbour_list
from ..structure import SPLITS, Structure


CUTOFF = 4.0  # A
ENERGY_STEP = 1e-3  # eV per atom
NEIGHBOUR_STEP = 0.02
SHOWN_IDS = 20  # of one group


def fingerprint(structure: Structure) -> int:
    """A hash of 63 bits that near duplicates share, as the module says."""
    elements, counts = np.unique(structure.atomic_numbers, return_counts=True)
    energy = (
        None if structure.energy is None else round(structure.energy / len(structure) / ENERGY_STEP)
    )
    numbers = np.rint(_neighbour_means(structure) / NEIGHBOUR_STEP).astype(int).tolist()
    reduced = (counts // np.gcd.reduce(counts)).tolist()
    return hash_63(repr((elements.tolist(), reduced, structure.level_of_theory, energy, numbers)))


def hash_63(text: str) -> int:
    """A text as a non-negative int64, the same on every machine."""
    return (
        int.from_bytes(
            hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big"
        )
        >> 1
    )


def _neighbour_means(structure: Structure) -> np.ndarray:
    (sender, receiver), shifts = neighbour_list(
        structure.positions, structure.cell, structure.pbc, CUTOFF
    )
    vectors = structure.positions[sender] - structure.positions[receiver] + shifts @ structure.cell
    weight = 0.5 + 0.5 * np.cos(np.pi / CUTOFF * np.linalg.norm(vectors, axis=1))
    per_atom = np.bincount(receiver, weight, minlength=len(structure))
    by_element = weight @ structure.atomic_numbers[sender] / 10 / len(structure)
    return np.array([per_atom.mean(), by_element, np.sqrt((per_atom**2).mean())])


def group_equal(fingerprints: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each fingerprint that occurs more than once, in the order of their first rows."""
    order = np.argsort(fingerprints, kind="stable")
    starts = np.flatnonzero(np.diff(fingerprints[order])) + 1
    groups = [rows for rows in np.split(order, starts) if len(rows) > 1]
    return sorted(groups, key=lambda rows: int(rows[0]))


def summarise(groups: list[np.ndarray], split_codes: np.ndarray) -> dict[str, Any]:
    """Counts of near duplicates, also of the groups that stand on two sides of a split, for dataset_info.json."""
    sides = [set(split_codes[rows].tolist()) for rows in groups]
    train, valid, test = range(len(SPLITS))
    return {
        "groups": len(groups),
        "structures": int(sum(map(len, groups))),
        "groups_in_train_and_test": sum({train, test} <= side for side in sides),
        "groups_in_train_and_valid": sum({train, valid} <= side for side in sides),
        "definition": "equal reduced composition, level of theory, energy per atom to 1 meV and three means of the "
        "smooth neighbour number within 4 A to 0.02",
    }
