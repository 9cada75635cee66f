"""Do relaxations of distorted structures converge to a lower energy without fusing atoms?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import FAILURES
from ..sanity.choice import chosen_systems
from ..sanity.config import SanityConfig
from ..sanity.systems import PairDistances, System
from ..sanity.verdicts import failures, with_progress


DISPLACEMENT = 0.08  # A, of each coordinate, as a standard deviation
STRAIN = 0.02  # largest entry
FMAX = 0.05  # eV/A
MAX_STEPS = 600


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Do relaxations of distorted crystals, slabs, clusters and molecules converge?

    Example: evenfield check relaxations evenfield-s elements=[Cu] --level-of-theory EMT
    """
    calculator = model.calculator("float64")
    systems, skipped = chosen_systems(settings, model.symbols)
    ends = []
    for system in with_progress("relaxations", systems):
        ends.append(relax(calculator, system, settings.seed))

    figures = [Figure("systems", len(ends), "")]
    lines: list[str] = []
    if ends:
        wrong = [f"{end.name} ({end.failure})" for end in ends if end.failure]
        figure, lines = failures("relaxations that fail", wrong)
        steps = float(np.median([end.steps for end in ends]))
        figures += [figure, Figure("median number of steps", steps, "")]
    return CheckResult(figures, lines, skipped)


@dataclass(frozen=True)
class End:
    """How a relaxation ended; failure: the reason, empty if it succeeded."""

    name: str
    steps: int
    failure: str


def relax(calculator: Calculator, system: System, seed: int) -> End:
    """Distort a system and relax it; the cell is relaxed only for crystals."""
    start = system.atoms()
    distances = PairDistances(start)
    atoms = distorted(start, system, seed)
    atoms.calc = calculator
    try:
        with np.errstate(all="ignore"):
            before = float(atoms.get_potential_energy())
            moved = FrechetCellFilter(atoms) if system.is_crystal else atoms
            optimizer = FIRE(moved, logfile=None)
            has_converged = optimizer.run(fmax=FMAX, steps=MAX_STEPS)
            after = float(atoms.get_potential_energy())
    except FAILURES:
        return End(system.name, 0, "no energy or forces")

    fused = distances.fused(atoms)
    failure = ""
    if fused is not None:
        failure = fused
    elif not has_converged:
        failure = f"not converged in {MAX_STEPS} steps"
    elif not after <= before:
        failure = "uphill"
    return End(system.name, int(optimizer.nsteps), failure)


def distorted(start: Atoms, system: System, seed: int) -> Atoms:
    """A copy with randomly displaced atoms; a crystal is also strained at random."""
    rng = np.random.default_rng(seed)
    atoms = start.copy()
    if system.is_crystal:
        strain = rng.uniform(-STRAIN, STRAIN, (3, 3))
        deformation = np.eye(3) + (strain + strain.T) / 2
        atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    atoms.positions += rng.normal(0, DISPLACEMENT, atoms.positions.shape)
    return atoms
