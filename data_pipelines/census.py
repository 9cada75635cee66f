"""What a data set holds: counts and force RMS per element and split, levels of theory, reference energies E0.

Everything is a sum, so two censuses add up: shards or ranks can count on their own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from .schema import MAX_ATOMIC_NUMBER, Structure
from .shards import read_info


NUM_ELEMENTS = MAX_ATOMIC_NUMBER + 1  # index 0 is unused, so that Z is the index


class Census:
    """Streaming counts over structures."""

    def __init__(self) -> None:
        self.structures: dict[str, np.ndarray] = defaultdict(_per_element)  # split -> (119,)
        self.atoms: dict[str, np.ndarray] = defaultdict(_per_element)
        self.force_square = _per_element()  # eV^2/A^2 per component, train split
        self.force_count = _per_element()
        self.references: dict[str, ReferenceFit] = defaultdict(ReferenceFit)
        self.level_counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    @property
    def levels(self) -> list[str]:
        """Levels of theory, in the order of their number of structures."""
        return sorted(self.level_counts, key=lambda level: -sum(self.level_counts[level].values()))

    def add(self, structure: Structure, split: str) -> None:
        """Count one structure."""
        z = structure.atomic_numbers
        self.structures[split][structure.elements] += 1
        self.atoms[split] += np.bincount(z, minlength=NUM_ELEMENTS)
        self.level_counts[structure.level_of_theory][split] += 1
        if split != "train":
            return
        if structure.forces is not None:
            np.add.at(self.force_square, z, (structure.forces**2).sum(1))
            np.add.at(self.force_count, z, 3)
        if structure.energy is not None:
            self.references[structure.level_of_theory].add(z, structure.energy)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready summary; elements by symbol, energies in eV, forces in eV/A."""
        per_element = {}
        for z in np.flatnonzero(sum(self.structures.values(), _per_element())):
            per_element[chemical_symbols[z]] = {
                "structures": {split: int(n[z]) for split, n in self.structures.items()},
                "atoms": {split: int(n[z]) for split, n in self.atoms.items()},
                "force_rms": float(np.sqrt(self.force_square[z] / self.force_count[z]))
                if self.force_count[z]
                else None,
            }
        levels = {}
        for level in self.levels:
            levels[level] = {"structures": dict(self.level_counts[level]), **self.references[level].to_dict()}
        return {"per_element": per_element, "levels_of_theory": levels}


class ReferenceFit:
    """Reference energies E0 (eV per atom of each element) by ridge least squares on composition.

    Minimises sum_s (E_s - sum_z n_sz E0_z)^2 / N_s^2 + ridge * sum_z A_zz (E0_z - prior_z)^2, where
    A_zz = sum_s (n_sz / N_s)^2, so that the ridge weighs on a rare element no more than on a common one.  The
    prior is the mean energy per atom, then once more the first solution, which takes the ridge's bias away
    where the data speak.  An element is undetermined when the compositions leave its E0 to the ridge.
    """

    RIDGE = 1e-6

    def __init__(self) -> None:
        self.normal = np.zeros((NUM_ELEMENTS, NUM_ELEMENTS))
        self.moment = np.zeros(NUM_ELEMENTS)
        self.energy_per_atom = 0.0
        self.count = 0

    def add(self, atomic_numbers: np.ndarray, energy: float) -> None:
        """Count one labelled structure."""
        share = np.bincount(atomic_numbers, minlength=NUM_ELEMENTS) / len(atomic_numbers)
        self.normal += np.outer(share, share)
        self.moment += share * energy / len(atomic_numbers)
        self.energy_per_atom += energy / len(atomic_numbers)
        self.count += 1

    def solve(self) -> tuple[dict[int, float], list[int]]:
        """E0 by atomic number, and the elements that the data leave undetermined."""
        present = np.flatnonzero(np.diag(self.normal))
        if not len(present):
            return {}, []
        normal = self.normal[np.ix_(present, present)]
        own = np.sqrt(np.diag(normal))
        values, vectors = np.linalg.eigh(normal / np.outer(own, own))
        inverse = (vectors / (values + self.RIDGE)) @ vectors.T / np.outer(own, own)
        e0 = np.full(len(present), self.energy_per_atom / self.count)
        for _ in range(2):
            e0 += inverse @ (self.moment[present] - normal @ e0)
        free = np.abs(vectors[:, values < self.RIDGE]) > 1e-4
        undetermined = present[free.any(axis=1)]
        return dict(zip(present.tolist(), e0.tolist(), strict=True)), [int(z) for z in undetermined]

    def to_dict(self) -> dict[str, Any]:
        """E0 by symbol (eV) and the symbols of undetermined elements."""
        e0, undetermined = self.solve()
        return {
            "e0": {chemical_symbols[z]: value for z, value in e0.items()},
            "undetermined": [chemical_symbols[z] for z in undetermined],
        }


def _per_element() -> np.ndarray:
    return np.zeros(NUM_ELEMENTS)


def read_census(folder: Path | str) -> dict[str, Any]:
    """The census of a converted data set."""
    read_info(folder)
    return json.loads((Path(folder) / "census.json").read_text())
