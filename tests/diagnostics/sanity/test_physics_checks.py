"""`evenfield check physics`: known answers of simple potentials, and planted faults."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress

from evenfield.diagnostics.check import CheckResult, check_function
from evenfield.diagnostics.checks import diatomics
from evenfield.diagnostics.checks.timestep import Scan
from evenfield.diagnostics.sanity.config import SanityConfig

from broken_calculators import Checked, Drift, Kinked, SinglePrecision, StrongForces


PNG = b"\x89PNG"


def made(
    name: str, calculator: type[Calculator], known: list[str], **settings: object
) -> CheckResult:
    config = SanityConfig.model_validate({"suite": "quick", **settings})
    return check_function(name)(Checked(calculator, known), config)


def values(result: CheckResult) -> dict[str, float]:
    return {figure.name: figure.value for figure in result.figures}


def failed(result: CheckResult) -> list[str]:
    return [figure.name for figure in result.figures if not figure.passed]


# --- time steps


def test_copper_stands_long_time_steps() -> None:
    result = made("timestep", EMT, ["Cu"], picoseconds=0.1)
    assert result.passed, result.lines
    # 8 fs, four times the usual step
    assert values(result)["largest safe step over the usual one"] == 4
    assert result.skipped == ["Si", "NaCl"]
    assert result.pictures["timestep.png"].startswith(PNG)


def test_forces_without_an_energy_drift_at_any_step() -> None:
    result = made("timestep", Drift, ["Cu"], picoseconds=0.05)
    assert failed(result) == [
        "largest safe step over the usual one",
        "systems with a drift that no time step removes",
    ]


def test_an_error_of_the_integrator_is_no_remainder() -> None:
    """Verlet's drift grows with the square of the step, a false force's does not."""
    steps = np.array([1.0, 2.0, 4.0])
    by_verlet = Scan("Cu", 1.0, steps, 0.6 * steps**2, np.full(3, 0.1))
    assert by_verlet.remainder == pytest.approx(0, abs=1e-12)
    assert by_verlet.largest_safe == 4.0
    by_forces = Scan("Cu", 1.0, steps, 12 + 0.6 * steps**2, np.full(3, 0.1))
    assert by_forces.remainder == pytest.approx(12)
    assert by_forces.largest_safe == 0.0
    broken = Scan("Cu", 1.0, steps, np.array([1.0, np.inf, np.inf]), np.array([0.1, np.inf, 9.0]))
    assert broken.remainder == 1.0 and broken.largest_safe == 1.0


# --- smoothness


def test_copper_is_smooth() -> None:
    result = made("smoothness", EMT, ["Cu"])
    assert result.passed, result.lines
    assert values(result)["noise of the energy"] < 1e-9


def test_the_jump_of_lennard_jones_at_its_cutoff_is_the_closed_form() -> None:
    """ASE shifts the energy at 3 sigma and leaves the force, 24 (2/3^13 - 1/3^7)."""
    result = made("smoothness", LennardJones, ["H"])
    expected = 24 * abs(2 * 3.0**-13 - 3.0**-7)
    assert values(result)["largest jump of a force"] == pytest.approx(expected, rel=1e-3)
    assert "at 3.00 A" in result.lines[1]

    class Smooth(LennardJones):
        def __init__(self) -> None:
            super().__init__(smooth=True)

    assert values(made("smoothness", Smooth, ["H"]))["largest jump of a force"] < 1e-3


@pytest.mark.parametrize(
    ("calculator", "fault"),
    [
        (Kinked, "largest jump of a force"),
        (StrongForces, "largest error of a force as the slope"),
        (SinglePrecision, "noise of the energy"),
    ],
)
def test_faults_of_smoothness_are_found(calculator: type[EMT], fault: str) -> None:
    assert failed(made("smoothness", calculator, ["Cu"]))[0] == fault


# --- two atoms


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


def morse(r: np.ndarray, a: float) -> tuple[np.ndarray, np.ndarray]:
    """2 eV deep, at 2.2 A."""
    decay = np.exp(-a * (r - 2.2))
    return 2 * (decay**2 - 2 * decay), 4 * a * (decay - decay**2)


class NoRepulsion(Pairs):
    """A Gaussian well at zero distance."""

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energy = -2 * np.exp(-(r**2) / 2)
        return energy, -r * energy


class Oversmoothed(Pairs):
    """Morse with a well four times as wide."""

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return morse(r, 0.5)


class TwoMinima(Pairs):
    """Morse with a second well, at 3.5 A."""

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energy, slope = morse(r, 1.6)
        second = -1.5 * np.exp(-(((r - 3.5) / 0.3) ** 2))
        return energy + second, slope - 2 * (r - 3.5) / 0.09 * second


def test_the_frequency_of_a_well_is_the_closed_form() -> None:
    """A Morse well has the curvature 2 D a^2, and its wave number is sqrt(k / mu) / (2 pi c)."""
    (curve,) = diatomics.pair_curves(Pairs(), ["Cu"], 140)
    assert curve.length == pytest.approx(2.2, rel=1e-6)
    curvature = 2 * 2.0 * 1.6**2
    mass = 63.546 / 2
    expected = np.sqrt(curvature * 1.602176634e-19 / 1e-20 / (mass * 1.66053907e-27))
    expected /= 2 * np.pi * 2.99792458e10
    assert curve.frequency == pytest.approx(expected, rel=1e-6)
    assert curve.stiffness == pytest.approx(curvature * 2.2**2 / 2, rel=1e-2)
    assert made("diatomics", Pairs, ["Cu"]).passed


def test_two_atoms_of_emt_metals() -> None:
    result = made("diatomics", EMT, ["Cu", "Ag", "Ni"])
    assert result.passed, result.lines
    assert result.pictures["diatomics.png"].startswith(PNG)


@pytest.mark.parametrize(
    ("calculator", "fault"),
    [
        (NoRepulsion, "elements that do not repel"),
        (Oversmoothed, "elements with a well that is too soft"),
        (TwoMinima, "elements with several minima"),
        (StrongForces, "elements with a force that is not the slope"),
    ],
)
def test_faults_of_two_atoms_are_found(calculator: type[Calculator], fault: str) -> None:
    assert failed(made("diatomics", calculator, ["Cu"])) == [fault]
