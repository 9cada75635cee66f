"""Does an ASE calculator obey the symmetries and derivatives that physics demands?

The tests are rotation, inversion, translation and renumbering; other descriptions of the same
crystal; zero net force and torque; forces and stress as derivatives of the energy. The structures
are made here, from elements that the caller names.

Every error is relative to the largest force or stress. Torques and the energies of single atoms are
sums of many terms, so their tolerance is ten times larger.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.data import atomic_numbers, covalent_radii
from ase.stress import voigt_6_to_full_3x3_stress

from ..check import CheckedModel, CheckError, CheckResult, Figure


# Tolerances: in float32, in float64, and for finite differences in float64.
SINGLE = 1e-3
DOUBLE = 1e-8
DIFFERENCES = 1e-5

STEP = 1e-4  # of finite differences: displacement in A, and strain
VACUUM = 30.0  # A

# Lower bounds of the divisors of relative errors, so that nothing is divided by zero.
SMALLEST_FORCE = 1e-3  # eV/A
SMALLEST_STRESS = 1e-5  # eV/A^3

# Other vectors for the same lattice; and the rotation that changes nothing.
SHEAR = np.array([[1, 0, 0], [2, 1, 0], [-1, 1, 1]])
IDENTITY = np.eye(3)


def check(model: CheckedModel) -> CheckResult:
    """Are predictions invariant, and are forces derivatives of the energy?

    Structures are rotated, moved, renumbered, and described by other cells. The exit code is 1 if a
    test fails.

    Example: evenfield check symmetry evenfield-s --level-of-theory EMT
    """
    figures = []
    lines = []
    for dtype in ("float32", "float64"):
        calculator = model.calculator(dtype)
        for finding in audit(calculator, model.symbols, single=dtype == "float32"):
            name = f"{dtype} {finding.name}"
            figure = Figure(name, finding.error, "", limit=finding.tolerance)
            figures.append(figure)

            verdict = "ok    " if finding.passed else "FAILED"
            lines.append(
                f"{dtype} {verdict} {finding.error:.1e} of {finding.tolerance:.0e} allowed: "
                f"{finding.name}"
            )
    return CheckResult(figures, lines)


@dataclass(frozen=True)
class Finding:
    """The result of one test: the error and its tolerance."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; False for NaN."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class _Answer:
    """Predictions for a structure.

    energy: eV. forces: (N, 3) eV/A. stress: (3, 3) eV/A^3, or None if there is no stress.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None


def audit(
    calculator: Calculator, symbols: list[str], *, single: bool = False, seed: int = 0
) -> list[Finding]:
    """Run all tests, on structures with up to four of `symbols`.

    single: the calculator works in float32; finite differences, which need float64, are left out.

    Raises:
        CheckError: `symbols` is empty.
    """
    # imported here, because it imports torch, which the help of the command does not need
    from ...model_zoo.potential.invariance import random_cell

    if not symbols:
        raise CheckError("symbols: at least one element is needed, which the model knows")

    rng = np.random.default_rng(seed)
    # a random cell has no symmetry that could hide an error
    crystal = random_cell(rng, symbols)
    tolerance = SINGLE if single else DOUBLE
    found = [
        *_symmetries(calculator, crystal, rng, tolerance),
        *_cells(calculator, crystal, tolerance),
        *_balance(calculator, crystal, symbols[0], tolerance),
    ]
    if not single:
        found += _derivatives(calculator, crystal)
    return found


def _symmetries(
    calculator: Calculator, atoms: Atoms, rng: np.random.Generator, tolerance: float
) -> Iterator[Finding]:
    """Changes that leave the energy invariant, and rotate or permute the forces."""
    from ...model_zoo.potential.invariance import changes

    before = _ask(calculator, atoms)
    for name, changed, turn, order in changes(rng, atoms):
        after = _ask(calculator, changed)
        error = _difference(before, after, turn, order)
        yield Finding(name, error, tolerance)


def _cells(calculator: Calculator, atoms: Atoms, tolerance: float) -> Iterator[Finding]:
    """One crystal in three descriptions; a slab with and without periodicity across its vacuum."""
    before = _ask(calculator, atoms)

    sheared = atoms.copy()
    sheared.set_cell(SHEAR @ atoms.cell.array)
    error = _difference(before, _ask(calculator, sheared), IDENTITY)
    yield Finding("other vectors of the same lattice", error, tolerance)

    eight = _ask(calculator, atoms * 2)
    # ASE puts the original atoms first
    first_forces = eight.forces[: len(atoms)]
    eighth = _Answer(eight.energy / 8, first_forces, eight.stress)
    error = _difference(before, eighth, IDENTITY)
    yield Finding("2 x 2 x 2 supercell", error, tolerance)

    slab = atoms.copy()
    # wider than any cutoff, so that periodic images do not interact
    slab.center(vacuum=VACUUM / 2, axis=2)
    slab.pbc = [True, True, False]
    open_answer = _ask(calculator, slab)

    periodic_slab = slab.copy()
    periodic_slab.pbc = True
    periodic_answer = _ask(calculator, periodic_slab)
    # the open slab has no stress, so the two are compared without it
    periodic_answer = replace(periodic_answer, stress=None)
    error = _difference(open_answer, periodic_answer, IDENTITY)
    yield Finding("slab, periodic across its vacuum or not", error, tolerance)


def _balance(
    calculator: Calculator, crystal: Atoms, symbol: str, tolerance: float
) -> Iterator[Finding]:
    """No net force and torque on an isolated cluster; no forces in a perfect crystal."""
    cluster = crystal.copy()
    cluster.set_cell(None)
    cluster.pbc = False
    forces = _ask(calculator, cluster).forces
    scale = _scale(forces, SMALLEST_FORCE)
    net_force = np.abs(forces.sum(0)).max()
    yield Finding("net force on a cluster", float(net_force / scale), tolerance)

    # about the centre, because the rounding of a cross product grows with the arms
    arms = cluster.positions - cluster.positions.mean(0)
    torque = np.cross(arms, forces).sum(0)
    largest_torque = np.abs(torque).max()
    yield Finding("net torque on a cluster", float(largest_torque / scale), 10 * tolerance)

    # nearest neighbours are 2.4 covalent radii apart, as is usual in a metal
    spacing = 2.4 * covalent_radii[atomic_numbers[symbol]]
    cube = bulk(symbol, "fcc", a=spacing * np.sqrt(2), cubic=True)
    perfect = cube * 2
    perfect.calc = calculator
    largest_force = np.abs(perfect.get_forces()).max()
    yield Finding("forces in a perfect crystal", float(largest_force / scale), tolerance)

    try:
        energies = perfect.get_potential_energies()
    except (NotImplementedError, KeyError):
        # a calculator need not give the energies of single atoms
        return
    spread = float(np.ptp(energies)) / scale
    yield Finding("atoms of a perfect crystal alike", spread, 10 * tolerance)


def _derivatives(calculator: Calculator, atoms: Atoms) -> Iterator[Finding]:
    """Compare forces and stress with ASE's central differences of the energy."""
    answer = _ask(calculator, atoms)
    # a copy, because ASE moves the atoms in place
    atoms = atoms.copy()
    atoms.calc = calculator

    numerical = calculate_numerical_forces(atoms, eps=STEP)
    scale = _scale(answer.forces, SMALLEST_FORCE)
    error = float(np.abs(numerical - answer.forces).max()) / scale
    yield Finding("forces are -dE/dr", error, DIFFERENCES)

    if answer.stress is not None:
        numerical = calculate_numerical_stress(atoms, eps=STEP, voigt=False, force_consistent=False)
        scale = _scale(answer.stress, SMALLEST_STRESS)
        error = float(np.abs(numerical - answer.stress).max()) / scale
        yield Finding("stress is dE/dstrain / V", error, DIFFERENCES)


def _scale(values: np.ndarray, smallest: float) -> float:
    """The divisor of relative errors: the largest entry, but at least `smallest`."""
    largest = float(np.abs(values).max())
    return max(largest, smallest)


def _ask(calculator: Calculator, atoms: Atoms) -> _Answer:
    """Predictions for a copy of the atoms, so that the caller's atoms do not change."""
    atoms = atoms.copy()
    atoms.calc = calculator

    stress = None
    if atoms.pbc.all() and "stress" in calculator.implemented_properties:
        stress = voigt_6_to_full_3x3_stress(atoms.get_stress())
    return _Answer(atoms.get_potential_energy(), atoms.get_forces(), stress)


def _difference(
    before: _Answer, after: _Answer, turn: np.ndarray, order: np.ndarray | None = None
) -> float:
    """Largest of the relative errors of energy per atom, forces and stress.

    turn: (3, 3) rotation or inversion from `before` to `after`. order: (N,) indices of the atoms of
    `before` in the order of `after`; None if the order is the same.
    """
    forces = before.forces @ turn.T
    if order is not None:
        forces = forces[order]

    scale = _scale(forces, SMALLEST_FORCE)
    energy_error = abs(after.energy - before.energy)
    errors = [
        # the energy in units of the largest force times 1 A
        energy_error / (len(forces) * scale),
        np.abs(after.forces - forces).max() / scale,
    ]

    if before.stress is not None and after.stress is not None:
        expected = turn @ before.stress @ turn.T
        stress_scale = _scale(expected, SMALLEST_STRESS)
        errors.append(np.abs(after.stress - expected).max() / stress_scale)
    # NumPy's maximum propagates NaN, Python's may not
    return float(np.max(errors))
