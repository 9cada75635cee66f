"""Energies, forces and stress of a calculator, with NaN if it fails.

A failed call is a finding of the check, which goes on. If the calculator gives energies of single
atoms, many clusters are computed in one call, placed far apart from each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorError
from ase.optimize import BFGS
from ase.stress import voigt_6_to_full_3x3_stress

from ...core.errors import EvenfieldError


# Errors that count as a failure of a calculator. Programming errors (NameError, TypeError) do not.
FAILURES = (
    EvenfieldError,
    CalculatorError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    ValueError,
)

# Most clusters in one call, and the distance between them, which is beyond any cutoff. With 2400
# clusters in a call, each took 2.4 times as long, because the arrays do not fit into the caches.
BLOCK = 300
SPACING = 30.0  # A
# Calculator -> whether many clusters can be computed in one call; tested once for each calculator.
_LOCAL: WeakKeyDictionary[Calculator, bool] = WeakKeyDictionary()
# For this test, a sample of clusters is computed both together and one by one. SAMPLE is their
# number, and the others say how well both results must agree, relative to energy (eV) and force
# (eV/A). Electronic-structure methods fail the test: distant fragments still share charges and a
# Fermi level, and a large cell would take hours. These methods work in float64, so their looser
# agreement cannot be confused with the rounding of a network in float32.
SAMPLE = 5
AGREEMENT = 1e-9
AGREEMENT_SINGLE = 1e-3


@dataclass(frozen=True)
class Answer:
    """Result of one call, all NaN if it failed.

    energy: eV. forces: (N, 3) eV/A. stress: (3, 3) eV/A^3, NaN also if it was not requested.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray


def ask(calculator: Calculator, atoms: Atoms, *, stress: bool = False) -> Answer:
    """Energy and forces of a copy of `atoms`, and with `stress` also the stress."""
    atoms = atoms.copy()
    # ASE's builders set magnetic moments for some elements, which some calculators refuse
    atoms.set_initial_magnetic_moments(None)
    tensor = np.full((3, 3), np.nan)
    try:
        # in the try block, because some calculators refuse an unknown element right here
        atoms.calc = calculator
        with np.errstate(all="ignore"):
            energy = float(atoms.get_potential_energy())
            forces = np.array(atoms.get_forces())
            if stress:
                tensor = voigt_6_to_full_3x3_stress(atoms.get_stress())
    except FAILURES:
        return Answer(np.nan, np.full((len(atoms), 3), np.nan), tensor)
    return Answer(energy, forces, tensor)


def at_rest(
    calculator: Calculator, atoms: Atoms, fmax: float, steps: int
) -> tuple[Atoms, bool] | None:
    """Relax a copy of `atoms` in a fixed cell.

    Returns the copy, and whether its forces are below `fmax` (eV/A); None if the calculator fails.
    """
    moved = atoms.copy()
    moved.set_initial_magnetic_moments(None)
    moved.calc = calculator
    try:
        with np.errstate(all="ignore"):
            is_at_rest = BFGS(moved, logfile=None).run(fmax=fmax, steps=steps)
    except FAILURES:
        return None
    moved.calc = None
    return moved, bool(is_at_rest)


def energy_per_atom(calculator: Calculator, atoms: Atoms) -> float:
    """Energy in eV/atom; NaN if the call fails."""
    return ask(calculator, atoms).energy / len(atoms)


@dataclass(frozen=True)
class Dimer:
    """Two atoms at a distance in A."""

    first: str
    second: str
    distance: float

    def atoms(self) -> Atoms:
        """Both atoms on the x axis, without periodic boundaries."""
        return Atoms([self.first, self.second], [[0, 0, 0], [self.distance, 0, 0]])


def dimer_curves(calculator: Calculator, dimers: list[Dimer]) -> tuple[np.ndarray, np.ndarray]:
    """Energies (D,) in eV and forces (D,) in eV/A of D dimers; positive forces are repulsive."""
    answers = ask_many(calculator, [dimer.atoms() for dimer in dimers])
    energies = np.array([answer.energy for answer in answers])
    forces = np.array([(answer.forces[1, 0] - answer.forces[0, 0]) / 2 for answer in answers])
    return energies, forces


def ask_many(calculator: Calculator, clusters: list[Atoms]) -> list[Answer]:
    """Energy and forces of each of many clusters without periodic boundaries.

    If `is_local` holds for the calculator, a few calls compute all clusters.
    """
    if is_local(calculator, clusters):
        batched = _in_blocks(calculator, clusters)
        if batched is not None:
            return batched
    return [ask(calculator, cluster) for cluster in clusters]


def is_local(calculator: Calculator, clusters: list[Atoms]) -> bool:
    """Whether distant clusters have the same energies and forces as the clusters alone.

    Tested with a sample of `clusters`, once for each calculator.
    """
    known = _LOCAL.get(calculator)
    if known is None:
        known = "energies" in calculator.implemented_properties and _is_local(calculator, clusters)
        _LOCAL[calculator] = known
    return known


def _is_local(calculator: Calculator, clusters: list[Atoms]) -> bool:
    chosen = np.unique(np.linspace(0, len(clusters) - 1, SAMPLE).astype(int))
    sample = [clusters[index] for index in chosen]
    together = _block(calculator, sample)
    if together is None:
        return False
    for cluster, found in zip(sample, together, strict=True):
        alone = ask(calculator, cluster)
        scale = 1 + np.abs(alone.forces).max() + abs(alone.energy)
        error = max(abs(found.energy - alone.energy), np.abs(found.forces - alone.forces).max())
        agreement = AGREEMENT_SINGLE if alone.forces.dtype == np.float32 else AGREEMENT
        # `not <=` also catches NaN
        if not error <= agreement * scale:
            return False
    return True


def _in_blocks(calculator: Calculator, clusters: list[Atoms]) -> list[Answer] | None:
    """All clusters, BLOCK of them in each call; None if a call fails."""
    answers: list[Answer] = []
    for start in range(0, len(clusters), BLOCK):
        found = _block(calculator, clusters[start : start + BLOCK])
        if found is None:
            return None
        answers += found
    return answers


def _block(calculator: Calculator, clusters: list[Atoms]) -> list[Answer] | None:
    """Compute clusters in one call, placed on a cubic grid; None if the call fails."""
    side = int(np.ceil(len(clusters) ** (1 / 3)))
    widest = max(float(np.ptp(cluster.positions, axis=0).max()) for cluster in clusters)
    corners = np.stack(np.unravel_index(np.arange(len(clusters)), (side, side, side)), 1)
    shifted = [
        cluster.positions - cluster.positions[0] + corner * (SPACING + 2 * widest)
        for cluster, corner in zip(clusters, corners, strict=True)
    ]
    numbers = np.concatenate([cluster.numbers for cluster in clusters])
    atoms = Atoms(numbers, np.concatenate(shifted))
    atoms.set_initial_magnetic_moments(None)
    try:
        atoms.calc = calculator
        with np.errstate(all="ignore"):
            energies = np.array(atoms.get_potential_energies())
            forces = np.array(atoms.get_forces())
    except FAILURES:
        # one bad cluster fails the whole call, so the caller computes each cluster alone
        return None

    answers = []
    no_stress = np.full((3, 3), np.nan)
    ends = np.cumsum([len(cluster) for cluster in clusters])
    for end, cluster in zip(ends, clusters, strict=True):
        own = slice(end - len(cluster), end)
        answers.append(Answer(float(energies[own].sum()), forces[own], no_stress))
    return answers
