"""Calculators that sum over pairs, so that what a check should find is a closed form."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress


class Pairs(Calculator):
    """Energies of pairs, phi(r), up to 12 A, with forces, stress and energies of atoms."""

    implemented_properties: ClassVar = ["energy", "free_energy", "energies", "forces", "stress"]
    reach = 12.0

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy and its slope: Morse, 2 eV deep, at 2.2 A."""
        return morse(r, 1.6)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        first, r, vectors = neighbor_list("idD", self.atoms, self.reach)
        energy, slope = self.phi(r)
        energies = np.bincount(first, energy / 2, len(self.atoms))
        pulls = (slope / r)[:, None] * vectors
        forces = np.zeros((len(self.atoms), 3))
        np.add.at(forces, first, pulls)
        self.results = {"energy": energies.sum(), "free_energy": energies.sum()}
        self.results |= {"energies": energies, "forces": forces}
        if self.atoms.pbc.all():
            stress = np.einsum("pi,pj->ij", pulls, vectors) / 2 / self.atoms.get_volume()
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)
        self.spoil()

    def spoil(self) -> None:
        """Change `self.results`, which are those of `self.atoms`; a subclass may."""


def morse(r: np.ndarray, a: float) -> tuple[np.ndarray, np.ndarray]:
    """2 eV deep, at 2.2 A."""
    decay = np.exp(-a * (r - 2.2))
    return 2 * (decay**2 - 2 * decay), 4 * a * (decay - decay**2)


class TwoMinima(Pairs):
    """Morse with a second well, at 3.5 A."""

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energy, slope = morse(r, 1.6)
        second = -1.5 * np.exp(-(((r - 3.5) / 0.3) ** 2))
        return energy + second, slope - 2 * (r - 3.5) / 0.09 * second


class Springs(Pairs):
    """Nearest neighbours of fcc copper on harmonic springs of 2 eV/A^2."""

    constant = 2.0
    rest = 3.6 / np.sqrt(2)
    reach = 1.2 * rest

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        away = r - self.rest
        return self.constant * away**2 / 2, self.constant * away


class Bonds(Springs):
    """The springs, each of which also binds its atoms with 0.3 eV."""

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energy, slope = super().phi(r)
        return energy - 0.3, slope


class Nitrogen(Pairs):
    """Morse pairs 9.9 eV deep at 1.098 A, as two atoms of nitrogen."""

    depth = 9.9
    length = 1.098
    exponent = 2.69

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        decay = np.exp(-self.exponent * (r - self.length))
        energy = self.depth * (decay**2 - 2 * decay)
        return energy, 2 * self.depth * self.exponent * (decay - decay**2)


class SoftNitrogen(Nitrogen):
    """The same pair with a wider well, whose vibration is slower."""

    exponent = 1.5


class Charges(Pairs):
    """Equal charges that repel each other, 1 eV at 1 A; their sum is cut off at `reach`."""

    reach = 8.0

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return 1 / r, -1 / r**2


class ScreenedCharges(Charges):
    """The same charges in a medium that screens them."""

    length = 1.0

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        screening = np.exp(-r / self.length)
        return screening / r, -screening * (1 / r**2 + 1 / (self.length * r))


class Twisted(Nitrogen):
    """Forces that also turn all atoms about a diagonal, which no energy accounts for."""

    def spoil(self) -> None:
        arms = self.atoms.positions - self.atoms.positions.mean(axis=0)
        self.results["forces"] = self.results["forces"] + 6 * np.cross([1, 1, 1], arms)


class Near(Pairs):
    """Morse pairs that end at 5 A, which costs less."""

    reach = 5.0


class Held(Nitrogen):
    """Each atom is also held back to the origin, as by a field from outside."""

    def spoil(self) -> None:
        self.results["forces"] = self.results["forces"] - 0.5 * self.atoms.positions


class Nothing(Pairs):
    """No forces at all."""

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros_like(r), np.zeros_like(r)


class Handed(Nitrogen):
    """The energy also has the volume that the first four atoms span, with its sign."""

    def spoil(self) -> None:
        first, *others = self.atoms.positions[:4]
        self.results["energy"] += 0.1 * float(np.linalg.det(np.array(others) - first))


class Upside(Nitrogen):
    """Everything with the opposite sign."""

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energy, slope = super().phi(r)
        return -energy, -slope


class Alloy(Bonds):
    """Bonds between unlike atoms are stronger by `gain` (eV)."""

    gain = 0.01

    def spoil(self) -> None:
        first, second = neighbor_list("ij", self.atoms, self.reach)
        numbers = self.atoms.numbers
        unlike = int((numbers[first] != numbers[second]).sum())
        self.results["energy"] -= self.gain * unlike / 2


class Parting(Alloy):
    """Bonds between unlike atoms are weaker."""

    gain = -0.01


class Filled(Near):
    """Morse pairs with a pit where four atoms lie in a flat rhombus, a saddle of the others."""

    depth = 3.0
    width = 0.5

    def spoil(self) -> None:
        if len(self.atoms) != 4:
            return
        first, second = np.triu_indices(4, 1)
        vectors = self.atoms.positions[first] - self.atoms.positions[second]
        distances = np.linalg.norm(vectors, axis=1)
        order = np.argsort(distances)
        away = np.empty(6)
        # five sides, and a diagonal that is longer than they allow, so that the rhombus stays flat
        away[order] = distances[order] - np.array([2.2, 2.2, 2.2, 2.2, 2.2, 4.2])
        pit = self.depth * np.exp(-np.square(away).sum() / (2 * self.width**2))
        self.results["energy"] -= pit
        self.results["energies"] = self.results["energies"] - pit / 4
        slopes = pit * away / self.width**2
        pulls = (slopes / distances)[:, None] * vectors
        np.subtract.at(self.results["forces"], first, pulls)
        np.add.at(self.results["forces"], second, pulls)
