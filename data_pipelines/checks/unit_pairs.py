"""Evidence about units: work between close frames, forces along bonds, pressure against volume.

In any material, the first law relates the energies and labels of two close frames:

    dE = -(F_1 + F_2)/2 . u  +  V (sigma_1 + sigma_2)/2 : eps

with u the displacements at fixed cell shape (A) and eps the strain between the cells. If a label
has the wrong unit or sign, the slope of dE against its work is not one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii

from ..neighbours import neighbour_list
from ..structure import Structure


# A; the midpoint rule for the work is too inaccurate for larger displacements
MAX_STEP = 0.35
MAX_STRAIN = 0.06
# smaller displacements and strains are rounding errors
MIN_STEP = 1e-4
MIN_STRAIN = 1e-6
# if the volume of the mean cell, relative to one of the cells, is outside this range, the two cells
# use different lattice vectors
VOLUME_RANGE = (0.8, 1.25)
MIN_VOLUME_CHANGE = 0.01
# eV/A RMS; at smaller forces, bonds of one structure differ more by their kind than by stretching
MIN_FORCE = 0.3
# their atoms touch at about twice the covalent radii
NOBLE_GASES = {2, 10, 18, 36, 54, 86}
# A; long enough to find nearest neighbours even if lengths in Bohr were read as A
LONGEST_BOND = 6.0
# bonds up to this factor times the shortest one count as nearest neighbours
NEAREST = 1.25


@dataclass(frozen=True)
class Works:
    """Energy differences of P pairs of close frames, and the work according to the labels."""

    energy: np.ndarray
    """(P,) energy differences, eV"""
    forces: np.ndarray
    """(P,) work of the forces, eV"""
    stress: np.ndarray
    """(P,) work of the stress, eV; zero if the cell does not change"""


def works_between_frames(structures: list[Structure]) -> Works:
    """Energy differences and works of all pairs of close frames that have the labels."""
    rows = []
    for one, other in close_pairs(structures):
        row = _works(one, other)
        if row is not None:
            rows.append(row)
    table = np.array(rows).reshape(-1, 3)
    return Works(*table.T)


def close_pairs(structures: list[Structure]) -> Iterator[tuple[Structure, Structure]]:
    """Yield pairs of frames with the same atoms that are close in the source or in volume."""
    families = defaultdict(list)
    for structure in structures:
        # the order of atoms must be the same, because displacements are taken atom by atom
        atoms = structure.atomic_numbers.tobytes()
        families[structure.level_of_theory, atoms].append(structure)

    for frames in families.values():
        for first, second in _neighbouring_pairs(frames):
            yield frames[first], frames[second]


def _neighbouring_pairs(frames: list[Structure]) -> Iterator[tuple[int, int]]:
    """Yield pairs of indices of frames that are one or two places apart; each pair once."""
    orders = [list(range(len(frames)))]
    # also ordered by volume, because an equation of state may be stored in any order
    volumes = [_volume(frame) for frame in frames]
    if any(volumes):
        by_volume = np.argsort(volumes, kind="stable")
        orders.append(by_volume.tolist())

    seen = set()
    for order in orders:
        for lag in (1, 2):
            for first, second in zip(order, order[lag:], strict=False):
                pair = (min(first, second), max(first, second))
                if pair not in seen:
                    seen.add(pair)
                    yield first, second


def _works(one: Structure, other: Structure) -> tuple[float, float, float] | None:
    """dE, work of forces and work of stress, in eV.

    None if labels are missing, or if the frames are identical or too far apart.
    """
    if one.energy is None or other.energy is None:
        return None
    if one.forces is None or other.forces is None:
        return None
    moved = _displacement(one, other)
    if moved is None:
        return None

    strain, step = moved
    largest_strain = np.abs(strain).max()
    largest_step = np.abs(step).max()
    if largest_step > MAX_STEP or largest_strain > MAX_STRAIN:
        return None

    work_of_stress = 0.0
    if largest_strain > MIN_STRAIN:
        # without a stress, its work would be missing
        if one.stress is None or other.stress is None:
            return None
        mean_volume = 0.5 * (_volume(one) + _volume(other))
        mean_stress = 0.5 * (one.stress + other.stress)
        product = mean_stress * strain
        work_of_stress = mean_volume * float(product.sum())
    elif largest_step < MIN_STEP:
        return None

    product = (one.forces + other.forces) * step
    work_of_forces = -0.5 * float(product.sum())
    return other.energy - one.energy, work_of_forces, work_of_stress


def _displacement(one: Structure, other: Structure) -> tuple[np.ndarray, np.ndarray] | None:
    """Strain (3, 3) between the cells, and displacements (N, 3) in A at fixed cell shape.

    None if the cells cannot be compared.
    """
    if not (one.pbc.all() and other.pbc.all()):
        change_of_cell = np.abs(one.cell - other.cell)
        if change_of_cell.max() > 1e-6:
            return None
        return np.zeros((3, 3)), other.positions - one.positions

    mean_cell = 0.5 * (one.cell + other.cell)
    mean_volume = abs(np.linalg.det(mean_cell))
    low, high = VOLUME_RANGE
    if not low < mean_volume / _volume(one) < high:
        return None
    strain = np.linalg.solve(mean_cell, other.cell - one.cell)
    # a rotation of the cell does no work
    strain = 0.5 * (strain + strain.T)

    before = np.linalg.solve(one.cell.T, one.positions.T)
    after = np.linalg.solve(other.cell.T, other.positions.T)
    fractional = after - before
    # atoms may have been wrapped into the cell between the frames
    fractional -= np.rint(fractional)
    # a translation of all atoms does no work
    fractional -= fractional.mean(axis=1, keepdims=True)
    return strain, fractional.T @ mean_cell


def pressure_steps(structures: list[Structure]) -> np.ndarray:
    """Relative change in volume and change in pressure (eV/A^3) for close pairs, (P, 2)."""
    labelled = []
    for structure in structures:
        if structure.stress is not None and structure.pbc.all():
            labelled.append(structure)

    rows = []
    for one, other in close_pairs(labelled):
        assert one.stress is not None and other.stress is not None
        change = _volume(other) / _volume(one) - 1
        if abs(change) > MIN_VOLUME_CHANGE:
            # the pressure is minus a third of the trace
            change_of_trace = np.trace(other.stress) - np.trace(one.stress)
            rows.append((change, -change_of_trace / 3))
    return np.array(rows).reshape(-1, 2)


@dataclass(frozen=True)
class Bonds:
    """Bonds between nearest neighbours: their lengths, and the forces that push them apart."""

    closest: np.ndarray
    """(S,) smallest distance over the sum of covalent radii, for each structure"""
    stretch: np.ndarray
    """(B,) A, bond length minus the mean over bonds of the same elements in the structure"""
    push: np.ndarray
    """(B,) eV/A, (F_j - F_i)/2 along i -> j, minus the mean over the same bonds"""


def bonds(structures: list[Structure]) -> Bonds:
    """The bonds of structures, each counted once. Structures without neighbours are skipped."""
    closest: list[float] = []
    stretch: list[float] = []
    push: list[float] = []
    for structure in structures:
        edge_index, shifts = neighbour_list(
            structure.positions, structure.cell, structure.pbc, LONGEST_BOND
        )
        if not edge_index.shape[1]:
            continue
        sender, receiver = edge_index
        vectors = structure.positions[sender] - structure.positions[receiver]
        vectors = vectors + shifts @ structure.cell
        lengths = np.linalg.norm(vectors, axis=1)
        radii = covalent_radii[structure.atomic_numbers]
        ratio = lengths / (radii[receiver] + radii[sender])
        shortest = ratio.min()

        # noble gas atoms have no covalent bonds
        elements = set(structure.elements.tolist())
        if not elements <= NOBLE_GASES:
            closest.append(shortest)
        if structure.forces is None:
            continue
        mean_square = (structure.forces**2).mean()
        if np.sqrt(mean_square) < MIN_FORCE:
            continue

        # each bond once
        near = (ratio < NEAREST * shortest) & (receiver < sender)
        difference = structure.forces[sender] - structure.forces[receiver]
        along = (difference * vectors).sum(1) / lengths / 2
        kind = _pair_of_elements(structure.atomic_numbers, sender, receiver)
        for key in np.unique(kind[near]):
            same = near & (kind == key)
            # a single bond cannot be compared with a mean
            if same.sum() > 1:
                longer = lengths[same] - lengths[same].mean()
                stronger = along[same] - along[same].mean()
                stretch += longer.tolist()
                push += stronger.tolist()
    return Bonds(np.array(closest), np.array(stretch), np.array(push))


def _pair_of_elements(
    atomic_numbers: np.ndarray, sender: np.ndarray, receiver: np.ndarray
) -> np.ndarray:
    """One number (E,) for the unordered pair of elements of each edge."""
    one = atomic_numbers[sender]
    other = atomic_numbers[receiver]
    light = np.minimum(one, other)
    heavy = np.maximum(one, other)
    # all atomic numbers are below 128
    return light * 128 + heavy


def _volume(structure: Structure) -> float:
    """Cell volume in A^3; 0 unless all three directions are periodic."""
    if not structure.pbc.all():
        return 0.0
    # the determinant of a left-handed cell is negative
    determinant = np.linalg.det(structure.cell)
    return float(abs(determinant))
