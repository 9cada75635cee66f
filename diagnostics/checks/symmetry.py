"""What physics demands of any potential, checked on an ASE calculator: symmetry, images, derivatives, balance.

Every check gives an error relative to the size of the quantity; a torque and the energies of single atoms are allowed
ten times as much as the rest. The model only answers: crystal, slab and cluster are made here, of elements that the
caller names.
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

from ...model_zoo.potential.invariance import changes, random_cell


SINGLE, DOUBLE, DIFFERENCES = (
    1e-3,
    1e-8,
    1e-5,
)  # tolerances: float32, float64, finite differences in float64
STEP = 1e-4  # A, and of strain
VACUUM = 30.0  # A
SMALLEST_FORCE, SMALLEST_STRESS = 1e-3, 1e-5  # eV/A, eV/A^3: errors are relative to no less


@dataclass(frozen=True)
class Finding:
    """One check: what was asked, how wrong the answer is, and how wrong it may be."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True)
class _Answer:
    energy: float  # eV
    forces: np.ndarray  # (N, 3) eV/A
    stress: (
        np.ndarray | None
    )  # (3, 3) eV/A^3; None without periodicity or where the calculator has none


def audit(
    calculator: Calculator, symbols: list[str], *, single: bool = False, seed: int = 0
) -> list[Finding]:
    """All checks with structures of up to four of `symbols`; `single`: the calculator works in float32.

    Finite differences need float64 and are left out with `single`. ValueError when there is no element.
    """
    if not symbols:
        raise ValueError("symbols: name one element at least that the model knows")
    rng = np.random.default_rng(seed)
    crystal, tolerance = random_cell(rng, symbols), SINGLE if single else DOUBLE
    found = [
        *_symmetries(calculator, crystal, rng, tolerance),
        *_cells(calculator, crystal, tolerance),
    ]
    found += _balance(calculator, crystal, symbols[0], tolerance)
    return found if single else [*found, *_derivatives(calculator, crystal)]


def _symmetries(
    calculator: Calculator, atoms: Atoms, rng: np.random.Generator, tolerance: float
) -> Iterator[Finding]:
    before = _ask(calculator, atoms)
    for name, changed, turn, order in changes(rng, atoms):
        yield Finding(name, _difference(before, _ask(calculator, changed), turn, order), tolerance)


def _cells(calculator: Calculator, atoms: Atoms, tolerance: float) -> Iterator[Finding]:
    """One crystal told in three ways, and a slab with and without periodicity across its vacuum."""
    before, same = _ask(calculator, atoms), np.eye(3)
    sheared = atoms.copy()
    sheared.set_cell(np.array([[1, 0, 0], [2, 1, 0], [-1, 1, 1]]) @ atoms.cell.array)
    yield Finding(
        "other vectors of the same lattice",
        _difference(before, _ask(calculator, sheared), same),
        tolerance,
    )
    eight = _ask(calculator, atoms * 2)
    eighth = _Answer(eight.energy / 8, eight.forces[: len(atoms)], eight.stress)
    yield Finding("2 x 2 x 2 supercell", _difference(before, eighth, same), tolerance)
    slab = atoms.copy()
    slab.center(vacuum=VACUUM / 2, axis=2)
    slab.pbc = [True, True, False]
    closed = slab.copy()
    closed.pbc = True
    open_answer, closed_answer = (
        _ask(calculator, slab),
        replace(_ask(calculator, closed), stress=None),
    )
    yield Finding(
        "slab, periodic across its vacuum or not",
        _difference(open_answer, closed_answer, same),
        tolerance,
    )


def _balance(
    calculator: Calculator, crystal: Atoms, symbol: str, tolerance: float
) -> Iterator[Finding]:
    """No net force, no net torque on what is alone, and no force where symmetry forbids one."""
    cluster = crystal.copy()
    cluster.set_cell(None)
    cluster.pbc = False
    forces = _ask(calculator, cluster).forces
    scale = max(float(np.abs(forces).max()), SMALLEST_FORCE)
    torque = np.cross(cluster.positions - cluster.positions.mean(0), forces).sum(0)
    yield Finding("net force on a cluster", float(np.abs(forces.sum(0)).max() / scale), tolerance)
    yield Finding("net torque on a cluster", float(np.abs(torque).max() / scale), 10 * tolerance)
    spacing = 2.4 * covalent_radii[atomic_numbers[symbol]]
    perfect = bulk(symbol, "fcc", a=spacing * np.sqrt(2), cubic=True) * 2
    perfect.calc = calculator
    yield Finding(
        "forces in a perfect crystal", float(np.abs(perfect.get_forces()).max() / scale), tolerance
    )
    try:
        energies = perfect.get_potential_energies()
    except (NotImplementedError, KeyError):
        return  # a calculator need not say what single atoms have
    yield Finding(
        "atoms of a perfect crystal alike", float(np.ptp(energies)) / scale, 10 * tolerance
    )


def _derivatives(calculator: Calculator, atoms: Atoms) -> Iterator[Finding]:
    """Forces and stress beside ASE's central differences of the energy."""
    answer, atoms = _ask(calculator, atoms), atoms.copy()
    atoms.calc = calculator
    numerical = calculate_numerical_forces(atoms, eps=STEP)
    scale = max(float(np.abs(answer.forces).max()), SMALLEST_FORCE)
    yield Finding(
        "forces are -dE/dr", float(np.abs(numerical - answer.forces).max()) / scale, DIFFERENCES
    )
    if answer.stress is not None:
        numerical = calculate_numerical_stress(atoms, eps=STEP, voigt=False, force_consistent=False)
        scale = max(float(np.abs(answer.stress).max()), SMALLEST_STRESS)
        error = float(np.abs(numerical - answer.stress).max()) / scale
        yield Finding("stress is dE/dstrain / V", error, DIFFERENCES)


def _ask(calculator: Calculator, atoms: Atoms) -> _Answer:
    atoms = atoms.copy()
    atoms.calc = calculator
    has_stress = atoms.pbc.all() and "stress" in calculator.implemented_properties
    stress = voigt_6_to_full_3x3_stress(atoms.get_stress()) if has_stress else None
    return _Answer(atoms.get_potential_energy(), atoms.get_forces(), stress)


def _difference(
    before: _Answer, after: _Answer, turn: np.ndarray, order: np.ndarray | None = None
) -> float:
    """Largest of the errors of energy per atom, forces and stress, over the largest force and stress."""
    forces = before.forces @ turn.T
    scale = max(float(np.abs(forces).max()), SMALLEST_FORCE)
    errors = [
        abs(after.energy - before.energy) / (len(forces) * scale),
        np.abs(after.forces - (forces if order is None else forces[order])).max() / scale,
    ]
    if before.stress is not None and after.stress is not None:
        wanted = turn @ before.stress @ turn.T
        errors.append(
            np.abs(after.stress - wanted).max() / max(float(np.abs(wanted).max()), SMALLEST_STRESS)
        )
    return float(np.max(errors))  # Python's max would pass a NaN by
