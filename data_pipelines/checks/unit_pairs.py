"""Geometric evidence about units: work between close frames, the pull of bonds, pressure by volume.

Energies and labels of two close frames are tied by the first law, whatever the material:

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
# smaller displacements and strains are rounding, and do no work
MIN_STEP = 1e-4
MIN_STRAIN = 1e-6
# two cells whose mean has a volume outside this range use different settings of lattice vectors
VOLUME_RANGE = (0.8, 1.25)
MIN_VOLUME_CHANGE = 0.01
# eV/A RMS; at smaller forces, bonds of one structure differ more by their kind than by stretching
MIN_FORCE = 0.3
# they touch at twice their covalent radii
NOBLE_GASES = {2, 10, 18, 36, 54, 86}
# A; long enough to find nearest neighbours even if Bohr were read as A
LONGEST_BOND = 6.0
# bonds up to this factor times the shortest one count as nearest neighbours
NEAREST = 1.25


@dataclass(frozen=True)
class Works:
    """Energy differences of P pairs of close frames, and the work that the labels claim, in eV."""

    energy: np.ndarray
    """(P,)"""
    forces: np.ndarray
    """(P,)"""
    stress: np.ndarray
    """(P,) zero where the cell does not change"""


def works_between_frames(structures: list[Structure]) -> Works:
    """The works of all pairs of close frames that have the labels."""
    rows = []
    for one, other in close_pairs(structures):
        row = _works(one, other)
        if row is not None:
            rows.append(row)
    table = np.array(rows).reshape(-1, 3)
    return Works(*table.T)


def close_pairs(structures: list[Structure]) -> Iterator[tuple[Structure, Structure]]:
    """Candidates: frames of the same atoms that are neighbours in the source, or in volume."""
    families: dict[tuple[str, bytes], list[Structure]] = defaultdict(list)
    for structure in structures:
        key = (structure.level_of_theory, structure.atomic_numbers.tobytes())
        families[key].append(structure)

    for frames in families.values():
        orders = [list(range(len(frames)))]
        volumes = [_volume(frame) for frame in frames]
        if any(volumes):
            orders.append(np.argsort(volumes, kind="stable").tolist())
        seen = set()
        for order in orders:
            for lag in (1, 2):
                for first, second in zip(order, order[lag:], strict=False):
                    pair = (min(first, second), max(first, second))
                    if pair not in seen:
                        seen.add(pair)
                        yield frames[first], frames[second]


def _works(one: Structure, other: Structure) -> tuple[float, float, float] | None:
    """dE, work of forces, work of stress in eV; None without labels or for frames too far apart."""
    if one.energy is None or other.energy is None or one.forces is None or other.forces is None:
        return None
    moved = _displacement(one, other)
    if moved is None:
        return None
    strain, step = moved
    if np.abs(step).max() > MAX_STEP or np.abs(strain).max() > MAX_STRAIN:
        return None

    work_of_stress = 0.0
    if np.abs(strain).max() > MIN_STRAIN:
        if one.stress is None or other.stress is None:
            return None
        volume = 0.5 * (_volume(one) + _volume(other))
        mean_stress = 0.5 * (one.stress + other.stress)
        work_of_stress = volume * float((mean_stress * strain).sum())
    elif np.abs(step).max() < MIN_STEP:
        return None
    work_of_forces = -0.5 * float(((one.forces + other.forces) * step).sum())
    return other.energy - one.energy, work_of_forces, work_of_stress


def _displacement(one: Structure, other: Structure) -> tuple[np.ndarray, np.ndarray] | None:
    """Strain (3, 3) between the cells, and displacements (N, 3) at fixed cell shape.

    None where the cells cannot be compared.
    """
    if not (one.pbc.all() and other.pbc.all()):
        if np.abs(one.cell - other.cell).max() > 1e-6:
            return None
        return np.zeros((3, 3)), other.positions - one.positions

    mean_cell = 0.5 * (one.cell + other.cell)
    low, high = VOLUME_RANGE
    if not low < abs(np.linalg.det(mean_cell)) / _volume(one) < high:
        return None
    strain = np.linalg.solve(mean_cell, other.cell - one.cell)
    # a rotation of the cell does no work
    strain = 0.5 * (strain + strain.T)

    before = np.linalg.solve(one.cell.T, one.positions.T)
    after = np.linalg.solve(other.cell.T, other.positions.T)
    fractional = after - before
    # atoms may have been wrapped into the cell between the frames
    fractional -= np.rint(fractional)
    # moving all atoms together does no work
    fractional -= fractional.mean(axis=1, keepdims=True)
    return strain, fractional.T @ mean_cell


def pressure_steps(structures: list[Structure]) -> np.ndarray:
    """Relative change of volume and change of pressure (eV/A^3) of close pairs, (P, 2)."""
    rows = []
    labelled = [
        structure
        for structure in structures
        if structure.stress is not None and structure.pbc.all()
    ]
    for one, other in close_pairs(labelled):
        assert one.stress is not None and other.stress is not None
        change = _volume(other) / _volume(one) - 1
        if abs(change) > MIN_VOLUME_CHANGE:
            rows.append((change, -(np.trace(other.stress) - np.trace(one.stress)) / 3))
    return np.array(rows).reshape(-1, 2)


@dataclass(frozen=True)
class Bonds:
    """Nearest neighbours: their lengths, and how forces push them apart."""

    closest: np.ndarray
    """(S,) smallest length over the sum of covalent radii in each structure"""
    stretch: np.ndarray
    """(B,) A, length minus the mean of its pair of elements in its structure"""
    push: np.ndarray
    """(B,) eV/A, (F_j - F_i)/2 along i -> j, minus the mean of the same bonds"""


def bonds(structures: list[Structure]) -> Bonds:
    """Bonds of structures, each counted once; without neighbours a structure has none."""
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
        atomic_numbers = structure.atomic_numbers
        radii = covalent_radii[atomic_numbers]
        ratio = lengths / (radii[receiver] + radii[sender])
        if not set(structure.elements.tolist()) <= NOBLE_GASES:
            closest.append(ratio.min())
        if structure.forces is None or np.sqrt((structure.forces**2).mean()) < MIN_FORCE:
            continue

        # each bond once
        near = (ratio < NEAREST * ratio.min()) & (receiver < sender)
        difference = structure.forces[sender] - structure.forces[receiver]
        along = (difference * vectors).sum(1) / lengths / 2
        light = np.minimum(atomic_numbers[receiver], atomic_numbers[sender])
        heavy = np.maximum(atomic_numbers[receiver], atomic_numbers[sender])
        kind = light * 128 + heavy
        for key in np.unique(kind[near]):
            same = near & (kind == key)
            # a single bond has no mean to be compared with
            if same.sum() > 1:
                stretch += (lengths[same] - lengths[same].mean()).tolist()
                push += (along[same] - along[same].mean()).tolist()
    return Bonds(np.array(closest), np.array(stretch), np.array(push))


def _volume(structure: Structure) -> float:
    """A^3; 0 where the structure is not periodic in three directions."""
    return float(abs(np.linalg.det(structure.cell))) if structure.pbc.all() else 0.0
