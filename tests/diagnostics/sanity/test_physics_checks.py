"""`evenfield check physics`: known answers of simple potentials, and planted faults."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from ase import units
from ase.build import bulk, fcc100, fcc111
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.optimize import BFGS

from evenfield.core.errors import MissingPackageError
from evenfield.diagnostics.checks import defects, diatomics, phonons
from evenfield.diagnostics.checks.timestep import Scan
from evenfield.diagnostics.sanity.answers import ask
from evenfield.diagnostics.sanity.crystals import minimum

from broken_calculators import (
    Drift,
    Faulty,
    Kinked,
    SinglePrecision,
    StrongForces,
    failed,
    made,
    values,
)
from pair_calculators import Bonds, Pairs, Springs, TwoMinima, morse


PNG = b"\x89PNG"


@pytest.fixture
def phonopy() -> None:
    pytest.importorskip("phonopy", reason="comes with the phonons extra")


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


class NoRepulsion(Pairs):
    """A Gaussian well at zero distance."""

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energy = -2 * np.exp(-(r**2) / 2)
        return energy, -r * energy


class Oversmoothed(Pairs):
    """Morse with a well four times as wide."""

    def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return morse(r, 0.5)


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


# --- phonons


def in_terahertz(squared: float, mass: float = 63.546) -> float:
    """The frequency of a force constant in eV/A^2."""
    return float(np.sqrt(squared / mass) * units.s / (2 * np.pi) / 1e12)


@pytest.mark.usefixtures("phonopy")
def test_springs_vibrate_as_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """At X the two transverse modes have 4 k / m, the longitudinal one 8 k / m."""
    monkeypatch.setattr(phonons, "DISPLACEMENT", 1e-4)
    atoms = bulk("Cu", a=3.6)
    found = phonons.force_constants(Springs(), atoms, 4)
    bands = phonons.frequencies_at(found, atoms, np.array([[1 / 3.6, 0, 0]]))[0]
    expected = [in_terahertz(4 * 2.0), in_terahertz(4 * 2.0), in_terahertz(8 * 2.0)]
    assert sorted(bands) == pytest.approx(expected, rel=1e-6)
    # C11 = 2 k / a and C44 = k / a for springs between nearest neighbours
    c11, c44 = phonons.sound(found, atoms)
    assert [c11, c44] == pytest.approx([2 * 2 / 3.6 / units.GPa, 2 / 3.6 / units.GPa], rel=1e-3)


@pytest.mark.usefixtures("phonopy")
def test_phonons_of_copper_by_an_independent_route() -> None:
    """A frozen wave of the zone's edge, and matscipy's elastic constants: within 1 %."""
    vibrations = phonons.vibrations_of(EMT(), "Cu", 4)
    assert vibrations is not None and vibrations.is_stable
    assert vibrations.by_sound == pytest.approx((172.6, 89.9), rel=0.01)
    # 3 k at high temperature; copper has 2.9 at 300 K
    assert 2.8 < vibrations.heat_capacity < 3.0

    volume = minimum(EMT(), "Cu", "fcc", 11.6).volume
    atoms = bulk("Cu", a=(4 * volume) ** (1 / 3), cubic=True)
    upper = atoms.positions[:, 2] > 0.1
    for axis, band in ((2, -1), (0, 0)):
        moved = atoms.copy()
        moved.positions[:, axis] += np.where(upper, 0.01, -0.01)
        forces = ask(EMT(), moved).forces
        constant = float(np.abs(forces[:, axis]).mean()) / 0.01
        at_x = vibrations.bands[phonons.PATH_POINTS]
        assert sorted(at_x)[band] == pytest.approx(in_terahertz(constant), rel=0.01)


@pytest.mark.usefixtures("phonopy")
def test_a_soft_shear_is_slow_sound_or_imaginary() -> None:
    """Springs in compression push atoms off their lines."""

    class Compressed(Springs):
        def phi(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            energy, slope = super().phi(r)
            return energy - 1.5 * (r - self.rest), slope - 1.5

    atoms = bulk("Cu", a=3.6)
    found = phonons.force_constants(Compressed(), atoms, 3)
    found.run_mesh([5] * 3, is_gamma_center=True)
    assert found.mesh.frequencies.min() < -1


@pytest.mark.usefixtures("phonopy")
def test_sound_against_strain_finds_forces_that_are_too_strong() -> None:
    result = made("phonons", StrongForces, ["Cu"])
    assert result.passed, result.lines
    assert result.pictures["phonons Cu.png"].startswith(PNG)

    class TwiceAsStrong(StrongForces):
        def spoil(self) -> None:
            self.results["forces"] = 2 * self.results["forces"]

    what = "crystals whose sound is not that of their elastic constants"
    assert failed(made("phonons", TwiceAsStrong, ["Cu"])) == [what]


def test_phonons_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phonopy", None)
    with pytest.raises(MissingPackageError, match="phonopy"):
        phonons.force_constants(EMT(), bulk("Cu"), 2)

    # the battery goes on without it
    result = made("physics", EMT, ["Cu"], checks=["phonons", "diatomics"])
    assert result.passed
    assert not [each.name for each in result.figures if each.name.startswith("phonons")]


# --- defects


def test_defects_of_bonds_between_neighbours_are_counts_of_bonds() -> None:
    """Six bonds for a vacancy; half of three and four bonds for each atom of (111) and (100)."""
    cohesive = -6 * 0.3
    formation, _ = defects.vacancy(Bonds(), "Cu", 3.6, cohesive)
    assert formation == pytest.approx(1.8, abs=1e-6)

    joule = units.J / units.m**2
    close_packed = defects.surface_energy(Bonds(), fcc111("Cu", (1, 1, 7), a=3.6), cohesive)
    square = defects.surface_energy(Bonds(), fcc100("Cu", (1, 1, 7), a=3.6), cohesive)
    spacing = 3.6 / np.sqrt(2)
    assert close_packed == pytest.approx(0.45 / (spacing**2 * np.sqrt(3) / 2) / joule, rel=1e-6)
    assert square == pytest.approx(0.6 / spacing**2 / joule, rel=1e-6)
    assert defects.stacking_fault(Bonds(), "Cu", 3.6) == pytest.approx(0, abs=1e-6)


def test_a_stacking_fault_is_two_layers_of_hcp() -> None:
    """That is exact where layers feel the next two only, as in EMT."""
    edge = 3.6
    spacing = edge / np.sqrt(2)
    hexagonal = bulk("Cu", "hcp", a=spacing, covera=np.sqrt(8 / 3))
    difference = ask(EMT(), hexagonal).energy / 2 - ask(EMT(), bulk("Cu", a=edge)).energy
    expected = 2 * difference / (spacing**2 * np.sqrt(3) / 2) * 1000 / (units.J / units.m**2)
    assert defects.stacking_fault(EMT(), "Cu", edge) == pytest.approx(expected, rel=0.01)


def test_the_barrier_of_a_jump_is_that_of_its_middle() -> None:
    """By symmetry the saddle is half-way: the atom is held there, and the others relax."""
    edge = 3.59
    cohesive = ask(EMT(), bulk("Cu", a=edge)).energy
    _, path = defects.vacancy(EMT(), "Cu", edge, cohesive)
    atoms = bulk("Cu", a=edge, cubic=True) * 2
    jumping = int(np.argsort(atoms.get_distances(0, range(len(atoms)), mic=True))[1])
    atoms.positions[jumping] -= atoms.get_distance(0, jumping, mic=True, vector=True) / 2
    del atoms[0]
    atoms.set_constraint(FixAtoms([jumping - 1]))
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=0.01)
    start = bulk("Cu", a=edge, cubic=True) * 2
    del start[0]
    start.calc = EMT()
    BFGS(start, logfile=None).run(fmax=0.01)
    barrier = atoms.get_potential_energy() - start.get_potential_energy()
    assert path.max() == pytest.approx(barrier, abs=0.005)


def test_metals_that_are_bound_far_too_strongly_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Strong(Faulty):
        """Four times the energy of EMT."""

        def spoil(self) -> None:
            for name in ("energy", "energies", "forces"):
                self.results[name] = 4 * self.results[name]

    # a rough answer is enough for a gross fault
    monkeypatch.setattr(defects, "MAX_STEPS", 4)
    monkeypatch.setattr(defects, "IMAGES", 1)
    good = made("defects", EMT, ["Cu"])
    assert good.passed, good.lines
    assert good.pictures["defects.png"].startswith(PNG)
    assert failed(made("defects", Strong, ["Cu"])) == [
        "vacancies far from experiment",
        "jumps of vacancies far from experiment",
        "surfaces far from experiment",
    ]


def test_rates_of_a_wrong_barrier() -> None:
    """Too low by k T ln 10 means ten times as fast."""
    rates = defects.rate_factors(-units.kB * 300 * np.log(10))
    assert rates[300] == pytest.approx(10)
    assert rates[600] == pytest.approx(np.sqrt(10))
