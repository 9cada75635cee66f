"""What a calculator says about a structure, with NaN where it fails.

A failed call is a finding, and the check goes on. Many clusters are asked for in one call, far
apart from each other, where the calculator's energies of single atoms allow that.
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


# How calculators fail. A broken program (NameError, TypeError) is not among them.
FAILURES = (
    EvenfieldError,
    CalculatorError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    ValueError,
)

# Clusters of one call, and the distance between them, which no cutoff reaches. Of 2400 clusters in
# a call, each took 2.4 times as long: their arrays do not fit into the caches.
BLOCK = 300
SPACING = 30.0  # A
# Whether a calculator may be asked for many at once: found out once for each.
_LOCAL: WeakKeyDictionary[Calculator, bool] = WeakKeyDictionary()
# Clusters that are first computed together and alone; and how well both must agree, in eV and eV/A,
# relative to energy and force. Methods with electrons miss that: their fragments share charges and
# a Fermi level at any distance, and a large cell would take hours. They work in float64, so that
# the rounding of a network in float32 cannot be mistaken for it.
SAMPLE = 5
AGREEMENT = 1e-9
AGREEMENT_SINGLE = 1e-3


@dataclass(frozen=True)
class Answer:
    """energy: eV. forces: (N, 3) eV/A. stress: (3, 3) eV/A^3. All NaN where a call failed."""

    energy: float
    forces: np.ndarray
    stress: np.ndarray


def ask(calculator: Calculator, atoms: Atoms, *, stress: bool = False) -> Answer:
    """Energy and forces of a copy of `atoms`, and the stress if it is wanted."""
    atoms = atoms.copy()
    # ASE gives some elements a magnetic moment, which some calculators refuse
    atoms.set_initial_magnetic_moments(None)
    tensor = np.full((3, 3), np.nan)
    try:
        # some refuse an unknown element as soon as they get the atoms
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
    """A copy of `atoms` after a relaxation in its cell, and whether forces are below `fmax` (eV/A).

    None where the calculator fails.
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
    """eV/atom, NaN where the call fails."""
    return ask(calculator, atoms).energy / len(atoms)


@dataclass(frozen=True)
class Dimer:
    """Two atoms at a distance in A."""

    first: str
    second: str
    distance: float

    def atoms(self) -> Atoms:
        """The two along x, without periodicity."""
        return Atoms([self.first, self.second], [[0, 0, 0], [self.distance, 0, 0]])


def dimer_curves(calculator: Calculator, dimers: list[Dimer]) -> tuple[np.ndarray, np.ndarray]:
    """Energies (D,) in eV, and forces (D,) in eV/A that push the two atoms apart."""
    answers = ask_many(calculator, [dimer.atoms() for dimer in dimers])
    energies = np.array([answer.energy for answer in answers])
    forces = np.array([(answer.forces[1, 0] - answer.forces[0, 0]) / 2 for answer in answers])
    return energies, forces


def ask_many(calculator: Calculator, clusters: list[Atoms]) -> list[Answer]:
    """Energy and forces of each of many clusters, which are not periodic.

    Where the calculator's energies of single atoms allow it, they are asked for in few calls.
    """
    if is_local(calculator, clusters):
        batched = _in_blocks(calculator, clusters)
        if batched is not None:
            return batched
    return [ask(calculator, cluster) for cluster in clusters]


def is_local(calculator: Calculator, clusters: list[Atoms]) -> bool:
    """Whether clusters that are far apart from each other are what they are alone.

    It is tried with some of `clusters`, once for each calculator.
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
    """All clusters in few calls; None where one of them fails."""
    answers: list[Answer] = []
    for start in range(0, len(clusters), BLOCK):
        found = _block(calculator, clusters[start : start + BLOCK])
        if found is None:
            return None
        answers += found
    return answers


def _block(calculator: Calculator, clusters: list[Atoms]) -> list[Answer] | None:
    """Clusters at the points of a grid, in one call; None where it fails."""
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
        # one bad cluster fails the whole call: each is then asked for alone
        return None

    answers = []
    no_stress = np.full((3, 3), np.nan)
    ends = np.cumsum([len(cluster) for cluster in clusters])
    for end, cluster in zip(ends, clusters, strict=True):
        own = slice(end - len(cluster), end)
        answers.append(Answer(float(energies[own].sum()), forces[own], no_stress))
    return answers
