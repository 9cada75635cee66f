"""Near duplicates: structures with equal fingerprints. They are counted, but never dropped.

The fingerprint is a hash of the reduced composition, the level of theory, the energy per atom to
1 meV and three means over atoms to 0.02: the smooth number of neighbours within 4 A, the same
weighted with the neighbour's Z / 10, and the root mean square of the former. It finds copies that
are rotated, shifted, renumbered, repeated as supercells or barely moved.

Limits: two copies on either side of a rounding step are missed. Different structures can share
all of these numbers; mirror images do. The same geometry at two levels of theory is not a
duplicate. The list is there to be looked at, not to delete by.

The hash of a material (`material_hash`) leaves out the level of theory and the energy. In crystals
it also leaves out the volume: lengths are in units of the cube root of the volume per atom. All
volumes of an equation of state have one, and so has the same crystal at another level of theory.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..census.domain import RADIUS
from ..structure import SPLITS, Pairs, Structure, pairs_within


# A; the same as of the domain, so that one search for neighbours serves both
CUTOFF = RADIUS
ENERGY_STEP = 1e-3  # eV per atom
NEIGHBOUR_STEP = 0.02
SHOWN_IDS = 20  # of one group
# share of the structures that copies may chain together; beyond it they are left apart
MOST_CHAINED = 0.5
# cube roots of the volume per atom; 5.6 A in aluminium, which tells fcc from hcp
SCALED_CUTOFF = 2.2


def fingerprint(structure: Structure, pairs: Pairs | None = None) -> int:
    """A hash of 63 bits that near duplicates share; the docstring of the module defines it.

    pairs: those within CUTOFF, if they are known.
    """
    if pairs is None:
        pairs = pairs_within(structure, CUTOFF)
    elements, counts = np.unique(structure.atomic_numbers, return_counts=True)
    reduced = counts // np.gcd.reduce(counts)
    energy = None
    if structure.energy is not None:
        per_atom = structure.energy / len(structure)
        energy = round(per_atom / ENERGY_STEP)

    # rounded, so that copies with small differences have the same numbers
    steps = _neighbour_means(structure, pairs, CUTOFF) / NEIGHBOUR_STEP
    neighbours = np.rint(steps).astype(int)

    # lists, because their text is the same in every version of numpy
    parts = (
        elements.tolist(),
        reduced.tolist(),
        structure.level_of_theory,
        energy,
        neighbours.tolist(),
    )
    return hash_63(repr(parts))


def material_hash(structure: Structure) -> int | None:
    """A hash of 63 bits that structures of one material share, whatever their level of theory.

    None for an isolated atom, which is the same everywhere, and whose energy every level needs.
    """
    if len(structure) == 1 and not structure.pbc.any():
        return None
    elements, counts = np.unique(structure.atomic_numbers, return_counts=True)
    reduced = counts // np.gcd.reduce(counts)
    cutoff = CUTOFF
    is_crystal = bool(structure.pbc.all())
    if is_crystal:
        volume = abs(np.linalg.det(structure.cell))
        cutoff = SCALED_CUTOFF * np.cbrt(volume / len(structure))
    steps = _neighbour_means(structure, pairs_within(structure, cutoff), cutoff) / NEIGHBOUR_STEP
    neighbours = np.rint(steps).astype(int)
    return hash_63(repr((elements.tolist(), reduced.tolist(), is_crystal, neighbours.tolist())))


def hash_63(text: str) -> int:
    """A text as a non-negative int64, the same on every machine."""
    # ids from files may contain surrogates, which plain UTF-8 refuses
    encoded = text.encode(errors="surrogatepass")
    digest = hashlib.blake2b(encoded, digest_size=8).digest()
    unsigned = int.from_bytes(digest, "big")
    # Arrow's and numpy's integers have a sign
    return unsigned >> 1


def _neighbour_means(structure: Structure, pairs: Pairs, cutoff: float) -> np.ndarray:
    """The three means over atoms that the docstring of the module names, (3,)."""
    sender, receiver = pairs.edge_index

    # falls smoothly from 1 to 0 at the cutoff, so that a small move changes the sums little
    phase = np.pi / cutoff * pairs.lengths
    weight = 0.5 + 0.5 * np.cos(phase)

    num_atoms = len(structure)
    per_atom = np.bincount(receiver, weight, minlength=num_atoms)
    mean = per_atom.mean()
    # Z / 10, so that all three are of the same order
    by_element = weight @ structure.atomic_numbers[sender] / 10 / num_atoms
    mean_square = (per_atom**2).mean()
    return np.array([mean, by_element, np.sqrt(mean_square)])


def group_equal(fingerprints: np.ndarray) -> list[np.ndarray]:
    """Rows of each fingerprint that occurs more than once, in the order of their first rows."""
    # stable, so that the rows of a group keep their order
    order = np.argsort(fingerprints, kind="stable")
    in_order = fingerprints[order]
    starts = np.flatnonzero(np.diff(in_order)) + 1
    runs = np.split(order, starts)
    groups = [rows for rows in runs if len(rows) > 1]

    def first_row(rows: np.ndarray) -> int:
        return int(rows[0])

    return sorted(groups, key=first_row)


def summarise(groups: list[np.ndarray], split_codes: np.ndarray) -> dict[str, Any]:
    """Counts of near duplicates for dataset_info.json, also of groups that cross a split."""
    train, valid, test = range(len(SPLITS))
    sides = [set(split_codes[rows].tolist()) for rows in groups]
    in_train_and_test = [side for side in sides if {train, test} <= side]
    in_train_and_valid = [side for side in sides if {train, valid} <= side]
    return {
        "groups": len(groups),
        "structures": sum(map(len, groups)),
        "groups_in_train_and_test": len(in_train_and_test),
        "groups_in_train_and_valid": len(in_train_and_valid),
        "definition": "equal reduced composition, level of theory, energy per atom to 1 meV and "
        "three means of the smooth neighbour number within 4 A to 0.02",
    }
