"""Quantities that `evenfield data inspect` measures: labels, neighbours and distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols, covalent_radii
from ase.units import GPa

from ...core.labels import LABELS
from ..census.census import NUM_ELEMENTS
from ..neighbours import neighbour_list
from ..structure import Structure


# A, radius within which neighbours are counted
CUTOFF = 5.0


@dataclass(frozen=True)
class Measures:
    """One number per quantity for each of S structures; NaN if the label is missing."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        "structure_id",
        "level_of_theory",
        "atomic_numbers",
        *LABELS,
    )

    structure_ids: list[str]
    levels: np.ndarray
    """(S,) level of theory"""
    num_atoms: np.ndarray
    """(S,)"""
    energy: np.ndarray
    """(S,) eV/atom after subtracting E0; NaN also if the E0 of an element is unknown"""
    force: np.ndarray
    """(S,) largest force norm in the structure, eV/A"""
    pressure: np.ndarray
    """(S,) GPa, positive if the structure tends to expand"""
    has: dict[str, np.ndarray]
    """Label -> whether each structure has it, (S,) bool"""
    force_norms: np.ndarray
    """Force norms of all atoms with forces, eV/A, concatenated over structures"""
    num_forces: np.ndarray
    """(S,) number of atoms with forces: all or none of a structure"""

    @classmethod
    def of(cls, table: pa.Table, e0: dict[str, np.ndarray]) -> Measures:
        """Measure the structures of a table with COLUMNS; `e0` comes from `reference_energies`."""
        levels = np.array(table["level_of_theory"].to_pylist(), dtype=object)
        atomic_numbers, num_atoms = _lists(table, "atomic_numbers")
        energy = table["energy"].to_numpy()

        components, num_components = _lists(table, "forces")
        forces = components.reshape(-1, 3)
        # forces are stored as float32, whose squares would overflow at 1e19
        norms = np.linalg.norm(forces.astype(np.float64), axis=1)
        num_forces = num_components // 3

        components, num_components = _lists(table, "stress")
        stress = components.reshape(-1, 3, 3)
        trace = np.trace(stress, axis1=1, axis2=2)
        pressure = np.full(len(energy), np.nan)
        # the stress is tensile-positive, the pressure compressive-positive
        pressure[num_components > 0] = -trace / 3 / GPa

        return cls(
            structure_ids=table["structure_id"].to_pylist(),
            levels=levels,
            num_atoms=num_atoms,
            energy=_energy_after_e0(energy, atomic_numbers, num_atoms, levels, e0),
            force=_largest(norms, num_forces),
            pressure=pressure,
            has={name: _is_labelled(table, name) for name in LABELS},
            force_norms=norms,
            num_forces=num_forces,
        )


def reference_energies(census: dict[str, Any]) -> dict[str, np.ndarray]:
    """Level of theory -> E0 (119,) in eV; NaN for elements without an E0 at the level."""
    found = {}
    for level, row in census["levels_of_theory"].items():
        e0 = np.full(NUM_ELEMENTS, np.nan)
        for symbol, energy in row["e0"].items():
            e0[number_of[symbol]] = energy
        found[level] = e0
    return found


@dataclass(frozen=True)
class Surroundings:
    """Neighbours of a structure's atoms within CUTOFF, and its most suspicious distance."""

    num_neighbours: np.ndarray
    """(N,)"""
    bond_share: float
    """Smallest ratio of a distance to the sum of the covalent radii; NaN without neighbours."""
    distance: float
    """Distance of that pair, A; NaN without neighbours."""
    pair: tuple[str, str]
    """Element symbols of that pair."""

    @classmethod
    def of(cls, structure: Structure) -> Surroundings:
        """Measure one structure, with a single neighbour search."""
        edge_index, shifts = neighbour_list(
            structure.positions, structure.cell, structure.pbc, CUTOFF
        )
        sender, receiver = edge_index
        num_neighbours = np.bincount(receiver, minlength=len(structure))
        if not len(sender):
            return cls(num_neighbours, float("nan"), float("nan"), ("", ""))

        vectors = structure.positions[sender] - structure.positions[receiver]
        vectors = vectors + shifts @ structure.cell
        distances = np.linalg.norm(vectors, axis=1)
        radii = covalent_radii[structure.atomic_numbers]
        shares = distances / (radii[sender] + radii[receiver])
        closest = int(np.argmin(shares))
        first = structure.atomic_numbers[sender[closest]]
        second = structure.atomic_numbers[receiver[closest]]
        return cls(
            num_neighbours=num_neighbours,
            bond_share=float(shares[closest]),
            distance=float(distances[closest]),
            pair=(chemical_symbols[first], chemical_symbols[second]),
        )


def _lists(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The concatenated values of a list column, and the length of each row (0 if null), (S,)."""
    column = table[name].combine_chunks()
    lengths = column.value_lengths().fill_null(0)
    # unlike `.values`, this leaves out values stored behind null rows
    values = column.flatten()
    return values.to_numpy(zero_copy_only=False), lengths.to_numpy(zero_copy_only=False)


def _is_labelled(table: pa.Table, name: str) -> np.ndarray:
    """Whether each structure has a label, (S,) bool. NaN and empty lists count as missing."""
    column = table[name]
    if pa.types.is_floating(column.type):
        return ~np.isnan(column.to_numpy())
    _, lengths = _lists(table, name)
    return lengths > 0


def _largest(norms: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Largest norm of each structure, (S,); NaN if it has no forces.

    norms: of all atoms with forces, concatenated. counts: (S,) number of them in each structure.
    """
    largest = np.full(len(counts), np.nan)
    labelled = counts > 0
    # reduceat fails without segments, and gives wrong values for empty segments
    if labelled.any():
        num_own = counts[labelled]
        starts = np.cumsum(num_own) - num_own
        largest[labelled] = np.maximum.reduceat(norms, starts)
    return largest


def _energy_after_e0(
    energy: np.ndarray,
    atomic_numbers: np.ndarray,
    num_atoms: np.ndarray,
    levels: np.ndarray,
    e0: dict[str, np.ndarray],
) -> np.ndarray:
    """(E - sum of E0) / N of each structure, (S,) in eV/atom; NaN if an E0 is unknown."""
    starts = np.cumsum(num_atoms) - num_atoms
    reference = np.full(len(energy), np.nan)
    for level in set(levels) & set(e0):
        own = levels == level
        # summed for all structures, although only those of this level are used
        of_atoms = e0[level][atomic_numbers]
        of_structures = np.add.reduceat(of_atoms, starts)
        reference[own] = of_structures[own]
    return (energy - reference) / num_atoms
