"""What `evenfield data inspect` measures on a structure: energy after E0, forces, pressure, neighbours, distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols, covalent_radii
from ase.units import GPa

from ..census.census import NUM_ELEMENTS
from ..neighbours import neighbour_list
from ..structure import Structure


CUTOFF = 5.0  # A, for the number of neighbours


@dataclass(frozen=True)
class Labels:
    """Labels of S structures, one number each; NaN where the label, or E0 of one of its elements, is missing."""

    COLUMNS = ("structure_id", "level_of_theory", "atomic_numbers", "energy", "forces", "stress")

    structure_ids: list[str]
    levels: np.ndarray  # (S,) str
    num_atoms: np.ndarray  # (S,)
    energy: np.ndarray  # (S,) eV per atom after E0
    force: np.ndarray  # (S,) eV/A, largest norm in the structure
    pressure: np.ndarray  # (S,) GPa, positive when the structure wants to expand
    has: dict[str, np.ndarray]  # label -> (S,) bool
    force_norms: np.ndarray  # eV/A, of all atoms with forces, one structure after the other
    num_forces: np.ndarray  # (S,) atoms with forces: all or none of a structure

    @classmethod
    def of(cls, table: pa.Table, e0: dict[str, np.ndarray]) -> Labels:
        """Of a table that has COLUMNS of the canonical schema; e0 is that of `reference_energies`."""
        levels = np.array(table["level_of_theory"].to_pylist(), dtype=object)
        z, num_atoms = _lists(table, "atomic_numbers")
        forces, num_components = _lists(table, "forces")
        stress, num_stress = _lists(table, "stress")
        energy = table["energy"].to_numpy()
        norms = np.linalg.norm(forces.reshape(-1, 3).astype(np.float64), axis=1)
        pressure = np.full(len(energy), np.nan)
        pressure[num_stress > 0] = -np.trace(stress.reshape(-1, 3, 3), axis1=1, axis2=2) / 3 / GPa
        has = {"energy": ~np.isnan(energy), "forces": num_components > 0, "stress": num_stress > 0}
        return cls(
            structure_ids=table["structure_id"].to_pylist(),
            levels=levels,
            num_atoms=num_atoms,
            energy=_energy_after_e0(energy, z, num_atoms, levels, e0),
            force=_largest(norms, num_components // 3),
            pressure=pressure,
            has=has,
            force_norms=norms,
            num_forces=num_components // 3,
        )


def reference_energies(census: dict[str, Any]) -> dict[str, np.ndarray]:
    """Level of theory -> E0 (119,) in eV, NaN for an element that the level's training data do not have."""
    found = {}
    for level, row in census["levels_of_theory"].items():
        found[level] = np.full(NUM_ELEMENTS, np.nan)
        for symbol, energy in row["e0"].items():
            found[level][number_of[symbol]] = energy
    return found


@dataclass(frozen=True)
class Surroundings:
    """Neighbours of a structure's atoms within CUTOFF, and its most suspicious distance.

    `bond_share` is the smallest distance in units of the sum of the two covalent radii, NaN without neighbours.
    """

    num_neighbours: np.ndarray  # (N,)
    bond_share: float
    distance: float  # A, of that pair
    pair: tuple[str, str]

    @classmethod
    def of(cls, structure: Structure) -> Surroundings:
        """One neighbour search."""
        cell = structure.cell
        (sender, receiver), shifts = neighbour_list(
            structure.positions, cell, structure.pbc, CUTOFF
        )
        num_neighbours = np.bincount(receiver, minlength=len(structure))
        if not len(sender):
            return cls(num_neighbours, float("nan"), float("nan"), ("", ""))
        z = structure.atomic_numbers
        distances = np.linalg.norm(
            structure.positions[sender] - structure.positions[receiver] + shifts @ cell, axis=1
        )
        shares = distances / (covalent_radii[z[sender]] + covalent_radii[z[receiver]])
        k = int(np.argmin(shares))
        pair = (chemical_symbols[z[sender[k]]], chemical_symbols[z[receiver[k]]])
        return cls(num_neighbours, float(shares[k]), float(distances[k]), pair)


def _lists(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values of a list column end to end, and the number of them in each row, 0 where it is null."""
    column = table[name].combine_chunks()
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False), lengths


def _largest(norms: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Largest norm of each structure, NaN where it has none."""
    largest = np.full(len(counts), np.nan)
    labelled = counts > 0
    if labelled.any():
        starts = np.cumsum(counts[labelled]) - counts[labelled]
        largest[labelled] = np.maximum.reduceat(norms, starts)
    return largest


def _energy_after_e0(
    energy: np.ndarray,
    z: np.ndarray,
    num_atoms: np.ndarray,
    levels: np.ndarray,
    e0: dict[str, np.ndarray],
) -> np.ndarray:
    """(E - sum of E0) / N of each structure, eV per atom."""
    starts, reference = np.cumsum(num_atoms) - num_atoms, np.full(len(energy), np.nan)
    for level in set(levels) & set(e0):
        own = levels == level
        reference[own] = np.add.reduceat(e0[level][z], starts)[own]
    return (energy - reference) / num_atoms
