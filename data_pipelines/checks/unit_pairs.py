"""Geometric evidence about units: work between neighbouring frames, how bonds push back, how pressure follows volume.

Energies and labels of two close frames are tied by the first law, whatever the material:

    dE = -(F_1 + F_2)/2 . u  +  V (sigma_1 + sigma_2)/2 : eps

with u the displacements at fixed cell shape (A) and eps the strain between the cells.  A wrong unit or sign of a
label shows as a slope that is not one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii

from ..neighbours import neighbour_list
from ..structure import Structure


MAX_STEP = 0.35  # A; beyond it, the midpoint rule for the work is no longer good
MAX_STRAIN = 0.06
MIN_FORCE = (
    0.3  # eV/A RMS; below, bonds of one structure differ more by their kind than by their stretch
)
NOBLE_GASES = {2, 10, 18, 36, 54, 86}
LONGEST_BOND = 6.0  # A; so long that nearest neighbours are found even if Bohr were read as A


@dataclass(frozen=True)
class Works:
    """Energy differences (eV) of pairs of close frames, and the work that forces and stress claim."""

    energy: np.ndarray  # (P,)
    forces: np.ndarray  # (P,)
    stress: np.ndarray  # (P,)


def works_between_frames(structures: list[Structure]) -> Works:
    """The works of all pairs of close frames; the stress's is zero where the cell stays."""
    rows = []
    for one, other in close_pairs(structures):
        row = _works(one, other)
        if row is not None:
            rows.append(row)
    table = np.array(rows).reshape(-1, 3)
    return Works(*table.T)


def close_pairs(structures: list[Structure]) -> Iterator[tuple[Structure, Structure]]:
    """Candidates: frames of the same atoms that follow each other in the source, or in volume."""
    families: dict[tuple[str, bytes], list[Structure]] = defaultdict(list)
    for structure in structures:
        families[structure.level_of_theory, structure.atomic_numbers.tobytes()].append(structure)
    for frames in families.values():
        orders = [range(len(frames))]
        volumes = [_volume(frame) for frame in frames]
        if any(volumes):
            orders.append(np.argsort(volumes, kind="stable").tolist())
        seen = set()
        for order in orders:
            for lag in (1, 2):
                for a, b in zip(order, order[lag:], strict=False):
                    if (min(a, b), max(a, b)) not in seen:
                        seen.add((min(a, b), max(a, b)))
                        yield frames[a], frames[b]


def _works(one: Structure, other: Structure) -> tuple[float, float, float] | None:
    """(dE, work of forces, work of stress) in eV; None for a pair that is too far apart or lacks a label."""
    if one.energy is None or other.energy is None or one.forces is None or other.forces is None:
        return None
    strain, step = np.zeros((3, 3)), other.positions - one.positions
    if one.pbc.all() and other.pbc.all():
        mean_cell = 0.5 * (one.cell + other.cell)
        if (
            not 0.8 < abs(np.linalg.det(mean_cell)) / _volume(one) < 1.25
        ):  # another setting of the lattice vectors
            return None
        strain = np.linalg.solve(mean_cell, other.cell - one.cell)
        strain = 0.5 * (strain + strain.T)
        fractional = np.linalg.solve(other.cell.T, other.positions.T) - np.linalg.solve(
            one.cell.T, one.positions.T
        )
        fractional -= np.rint(fractional)
        fractional -= fractional.mean(axis=1, keepdims=True)  # moving everything does no work
        step = fractional.T @ mean_cell
    elif np.abs(one.cell - other.cell).max() > 1e-6:
        return None
    if np.abs(step).max() > MAX_STEP or np.abs(strain).max() > MAX_STRAIN:
        return None
    work_of_stress = 0.0
    if np.abs(strain).max() > 1e-6:
        if one.stress is None or other.stress is None:
            return None
        volume = 0.5 * (_volume(one) + _volume(other))
        work_of_stress = volume * float((0.5 * (one.stress + other.stress) * strain).sum())
    elif np.abs(step).max() < 1e-4:
        return None
    work_of_forces = -0.5 * float(((one.forces + other.forces) * step).sum())
    return other.energy - one.energy, work_of_forces, work_of_stress


def pressure_steps(structures: list[Structure]) -> np.ndarray:
    """Change of pressure (eV/A^3) by change of volume per atom, (P, 2), of frames of the same atoms."""
    rows = []
    for one, other in close_pairs([s for s in structures if s.stress is not None and s.pbc.all()]):
        assert one.stress is not None and other.stress is not None
        change = _volume(other) / _volume(one) - 1
        if abs(change) > 0.01:
            rows.append((change, -(np.trace(other.stress) - np.trace(one.stress)) / 3))
    return np.array(rows).reshape(-1, 2)


@dataclass(frozen=True)
class Bonds:
    """Nearest neighbours: length over the sum of covalent radii, and how forces push them apart."""

    closest: np.ndarray  # (S,) smallest ratio of length to radii in each structure
    stretch: np.ndarray  # (B,) length minus the mean of its pair of elements in its structure, A
    push: np.ndarray  # (B,) (F_i - F_j)/2 along j -> i, minus the same mean, eV/A


def bonds(structures: list[Structure]) -> Bonds:
    """Bonds of the structures, each counted once; those with no neighbours within 6 A are left out."""
    closest, stretch, push = [], [], []
    for structure in structures:
        edge_index, shifts = neighbour_list(
            structure.positions, structure.cell, structure.pbc, LONGEST_BOND
        )
        if not edge_index.shape[1]:
            continue
        j, i = edge_index
        vectors = structure.positions[j] - structure.positions[i] + shifts @ structure.cell
        lengths = np.linalg.norm(vectors, axis=1)
        z = structure.atomic_numbers
        ratio = lengths / (covalent_radii[z[i]] + covalent_radii[z[j]])
        if not set(structure.elements.tolist()) <= NOBLE_GASES:  # they touch at twice their radii
            closest.append(ratio.min())
        if structure.forces is None or np.sqrt((structure.forces**2).mean()) < MIN_FORCE:
            continue
        near = (ratio < 1.25 * ratio.min()) & (i < j)
        along = ((structure.forces[j] - structure.forces[i]) * vectors).sum(1) / lengths / 2
        kind = np.minimum(z[i], z[j]) * 128 + np.maximum(z[i], z[j])
        for key in np.unique(kind[near]):
            these = near & (kind == key)
            if these.sum() > 1:
                stretch += (lengths[these] - lengths[these].mean()).tolist()
                push += (along[these] - along[these].mean()).tolist()
    return Bonds(np.array(closest), np.array(stretch), np.array(push))


def _volume(structure: Structure) -> float:
    return float(abs(np.linalg.det(structure.cell))) if structure.pbc.all() else 0.0
