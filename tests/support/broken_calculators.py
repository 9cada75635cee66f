"""EMT with one deliberate fault each, and a way to check any calculator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress

from evenfield.diagnostics.check import CheckedCalculator, CheckResult, check_function
from evenfield.diagnostics.sanity.config import SanityConfig


METALS = ["Cu", "Ag", "Au", "Ni", "Pd", "Pt", "Al"]


@dataclass(frozen=True)
class Checked(CheckedCalculator):
    """A calculator of a test."""

    make: Callable[[], Calculator]
    known: list[str]
    label: str = "test"

    @property
    def name(self) -> str:
        return self.label

    @property
    def level(self) -> str:
        return "EMT"

    @property
    def symbols(self) -> list[str]:
        return self.known

    @property
    def knows_free_atoms(self) -> bool:
        return True

    def calculator(self, dtype: str | None = None) -> Calculator:
        return self.make()


def made(
    name: str, calculator: type[Calculator], known: list[str], **settings: object
) -> CheckResult:
    """The result of a check of a calculator; quick unless settings say otherwise."""
    config = SanityConfig.model_validate({"suite": "quick", **settings})
    return check_function(name)(Checked(calculator, known), config)


def values(result: CheckResult) -> dict[str, float]:
    """Figure -> its value."""
    return {figure.name: figure.value for figure in result.figures}


def failed(result: CheckResult) -> list[str]:
    """Names of the figures that failed."""
    return [figure.name for figure in result.figures if not figure.passed]


class Faulty(EMT):
    """EMT whose results are changed after each calculation."""

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.spoil()

    def spoil(self) -> None:
        """Change `self.results`, which are those of `self.atoms`."""
        raise NotImplementedError


class Hole(Faulty):
    """Two atoms closer than 0.6 A gain energy; forces and energies stay consistent."""

    def spoil(self) -> None:
        first, distances, vectors = neighbor_list("idD", self.atoms, 0.6)
        # -DEPTH (0.6 - r)^2 for each pair, half of it for each atom
        depth = 1e5
        energies = -0.5 * depth * (0.6 - distances) ** 2
        self.results["energies"] = self.results["energies"].copy()
        np.add.at(self.results["energies"], first, energies)
        self.results["energy"] += energies.sum()
        pull = 2 * depth * (0.6 - distances) / distances
        forces = self.results["forces"].copy()
        np.add.at(forces, first, pull[:, None] * vectors)
        self.results["forces"] = forces


class StrongForces(Faulty):
    """Forces that are a tenth larger than the slope."""

    def spoil(self) -> None:
        self.results["forces"] = 1.1 * self.results["forces"]


class WrongStress(Faulty):
    """The stress has the wrong sign."""

    def spoil(self) -> None:
        if "stress" in self.results:
            self.results["stress"] = -self.results["stress"]


class SoftShear(Faulty):
    """An fcc crystal gains energy when it is sheared; energy and stress stay consistent."""

    def spoil(self) -> None:
        cell = self.atoms.cell.array
        self.results["energy"] += _shear_energy(cell)
        self.results["free_energy"] = self.results["energy"]
        if "stress" in self.results:
            slopes = np.zeros((3, 3))
            step = 1e-5
            for row in range(3):
                for column in range(3):
                    strain = np.zeros((3, 3))
                    strain[row, column] += step / 2
                    strain[column, row] += step / 2
                    up = _shear_energy(cell @ (np.eye(3) + strain))
                    down = _shear_energy(cell @ (np.eye(3) - strain))
                    slopes[row, column] = (up - down) / (2 * step)
            added = full_3x3_to_voigt_6_stress(slopes / self.atoms.get_volume())
            self.results["stress"] = self.results["stress"] + added


def _shear_energy(cell: np.ndarray) -> float:
    """-120 GPa times half the squared shears of a primitive fcc cell, in eV."""
    volume = abs(np.linalg.det(cell))
    half_edge = (volume / 2) ** (1 / 3)
    perfect = half_edge * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    deformation = np.linalg.solve(perfect, cell)
    green = (deformation @ deformation.T - np.eye(3)) / 2
    shears = np.array([green[0, 1], green[0, 2], green[1, 2]])
    return float(-0.5 * 0.75 * volume * ((2 * shears) ** 2).sum())


class Drift(Faulty):
    """A constant force on every atom, which no energy accounts for."""

    def spoil(self) -> None:
        self.results["forces"] = self.results["forces"] + np.array([0.1, 0.0, 0.0])


class Shifted(Faulty):
    """Crystals lie above free atoms: each atom with neighbours costs 10 eV."""

    def spoil(self) -> None:
        if self.atoms.pbc.any():
            self.results["energy"] += 10.0 * len(self.atoms)


class OnlyCopper(EMT):
    """Refuses other elements already when it is given to the atoms, through ASE's hook."""

    def set_atoms(self, atoms: Atoms) -> None:
        if set(atoms.symbols) != {"Cu"}:
            raise ValueError("unknown element")


class Kinked(Faulty):
    """Pairs attract with 0.02 eV/A up to 4 A and not beyond; forces and energies agree."""

    def spoil(self) -> None:
        first, distances, vectors = neighbor_list("idD", self.atoms, 4.0)
        pull = 0.02
        energies = -0.5 * pull * (4.0 - distances)
        self.results["energies"] = self.results["energies"].copy()
        np.add.at(self.results["energies"], first, energies)
        self.results["energy"] += energies.sum()
        forces = self.results["forces"].copy()
        np.add.at(forces, first, -pull * vectors / distances[:, None])
        self.results["forces"] = forces


class SinglePrecision(Faulty):
    """A total energy of float32, with the -1000 eV that a method with all electrons has."""

    def spoil(self) -> None:
        shifted = self.results["energy"] - 1000.0 * len(self.atoms)
        self.results["energy"] = float(np.float32(shifted))
