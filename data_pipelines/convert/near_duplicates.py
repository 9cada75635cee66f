"""Near duplicates: structures with equal fingerprints. They are counted, but never dropped.

The fingerprint is a hash of the reduced composition, the level of theory, the energy per atom
rounded to 1 meV, and three means over atoms rounded to 0.02: the smooth number of neighbours within
4 A, the same weighted by the neighbour's Z / 10, and the root mean square of the first. It finds
copies that are rotated, shifted, renumbered, repeated as supercells or slightly displaced.

Limits: two copies on opposite sides of a rounding step are missed. Different structures can agree
in all of these numbers; mirror images always do. The same geometry at two levels of theory is not a
duplicate. The list of duplicates is meant for inspection, and should not be used for deleting.

The hash of a material (`material_hash`) leaves out the level of theory and the energy. For crystals
it also leaves out the volume, because lengths are divided by the cube root of the volume per atom.
So all volumes of an equation of state have the same hash, and so does the same crystal at another
level of theory.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..census.domain import RADIUS
from ..structure import SPLITS, Pairs, Structure, pairs_within


# A; the same radius as for the domain, so that one neighbour search serves both
CUTOFF = RADIUS
ENERGY_STEP = 1e-3  # eV per atom
NEIGHBOUR_STEP = 0.02
SHOWN_IDS = 20  # ids listed for one group
# copies are joined only if no unit then has more than this fraction of all structures
MOST_CHAINED = 0.5
# in units of the cube root of the volume per atom; 5.6 A in aluminium, which distinguishes fcc from
# hcp
SCALED_CUTOFF = 2.2


def fingerprint(structure: Structure, pairs: Pairs | None = None) -> int:
    """A 63-bit hash that near duplicates share; the module docstring defines it.

    pairs: the pairs of atoms within CUTOFF, if they are known already.
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

    # lists, because the repr of numpy arrays differs between versions
    parts = (
        elements.tolist(),
        reduced.tolist(),
        structure.level_of_theory,
        energy,
        neighbours.tolist(),
    )
    return hash_63(repr(parts))


def material_hash(structure: Structure) -> int | None:
    """A 63-bit hash that structures of the same material share, at any level of theory.

    None for an isolated atom: it is the same in every source, and every level needs its energy.
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
    """Hash a text to a non-negative int64, the same on every machine."""
    # ids from files may contain surrogates, which strict UTF-8 cannot encode
    encoded = text.encode(errors="surrogatepass")
    digest = hashlib.blake2b(encoded, digest_size=8).digest()
    unsigned = int.from_bytes(digest, "big")
    # drop one bit, so that the result fits a signed 64-bit integer
    return unsigned >> 1


def _neighbour_means(structure: Structure, pairs: Pairs, cutoff: float) -> np.ndarray:
    """The three means over atoms that the module docstring defines, (3,)."""
    sender, receiver = pairs.edge_index

    # decays smoothly from 1 to 0 at the cutoff, so that small displacements change the sums little
    phase = np.pi / cutoff * pairs.lengths
    weight = 0.5 + 0.5 * np.cos(phase)

    num_atoms = len(structure)
    per_atom = np.bincount(receiver, weight, minlength=num_atoms)
    mean = per_atom.mean()
    # Z / 10 gives all three means the same order of magnitude
    by_element = weight @ structure.atomic_numbers[sender] / 10 / num_atoms
    mean_square = (per_atom**2).mean()
    return np.array([mean, by_element, np.sqrt(mean_square)])


def group_equal(fingerprints: np.ndarray) -> list[np.ndarray]:
    """The rows of each fingerprint that occurs more than once, sorted by their first rows."""
    # stable, so that the rows of a group stay in order
    order = np.argsort(fingerprints, kind="stable")
    in_order = fingerprints[order]
    starts = np.flatnonzero(np.diff(in_order)) + 1
    runs = np.split(order, starts)
    groups = [rows for rows in runs if len(rows) > 1]

    def first_row(rows: np.ndarray) -> int:
        return int(rows[0])

    return sorted(groups, key=first_row)


def summarise(groups: list[np.ndarray], split_codes: np.ndarray) -> dict[str, Any]:
    """Counts of near duplicates for dataset_info.json, including groups that span two splits.

    groups: rows of each group. split_codes: index into SPLITS of every structure.
    """
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
