"""What a calculator says about a structure, with NaN where it fails.

A failed call is a finding, and the check goes on. Many dimers are asked for in one call, far apart
from each other, where the calculator's energies of single atoms allow that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorError
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

# Dimers of one call, and the distance between them, which no cutoff reaches.
BLOCK = 2500
SPACING = 30.0  # A
# Dimers that are first computed together and alone; and how well both must agree, in eV and eV/A,
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
    batched = _in_blocks(calculator, dimers)
    if batched is not None:
        return batched
    answers = [ask(calculator, dimer.atoms()) for dimer in dimers]
    energies = np.array([answer.energy for answer in answers])
    forces = np.array([_apart(answer.forces) for answer in answers])
    return energies, forces


def _apart(forces: np.ndarray) -> np.ndarray:
    """Half the difference of the forces on two atoms along x; forces is (..., 2, 3)."""
    found: np.ndarray = (forces[..., 1, 0] - forces[..., 0, 0]) / 2
    return found


def _in_blocks(calculator: Calculator, dimers: list[Dimer]) -> tuple[np.ndarray, np.ndarray] | None:
    """All dimers in few calls; None if the calculator cannot do that, or answers differently."""
    if "energies" not in calculator.implemented_properties or not _is_local(calculator, dimers):
        return None
    energies = []
    forces = []
    for start in range(0, len(dimers), BLOCK):
        found = _block(calculator, dimers[start : start + BLOCK])
        if found is None:
            return None
        energies.append(found[0])
        forces.append(found[1])
    return np.concatenate(energies), np.concatenate(forces)


def _is_local(calculator: Calculator, dimers: list[Dimer]) -> bool:
    """Whether some of the dimers, far apart from each other, are what they are alone."""
    chosen = np.unique(np.linspace(0, len(dimers) - 1, SAMPLE).astype(int))
    sample = [dimers[index] for index in chosen]
    together = _block(calculator, sample)
    if together is None:
        return False
    for dimer, energy, force in zip(sample, *together, strict=True):
        alone = ask(calculator, dimer.atoms())
        scale = 1 + np.abs(alone.forces).max() + abs(alone.energy)
        error = max(abs(energy - alone.energy), abs(force - _apart(alone.forces)))
        agreement = AGREEMENT_SINGLE if alone.forces.dtype == np.float32 else AGREEMENT
        # `not <=` also catches NaN
        if not error <= agreement * scale:
            return False
    return True


def _block(calculator: Calculator, dimers: list[Dimer]) -> tuple[np.ndarray, np.ndarray] | None:
    side = int(np.ceil(len(dimers) ** (1 / 3)))
    corners = np.stack(np.unravel_index(np.arange(len(dimers)), (side, side, side)), 1) * SPACING
    positions = np.repeat(corners, 2, 0).astype(float)
    positions[1::2, 0] += [dimer.distance for dimer in dimers]
    symbols = [symbol for dimer in dimers for symbol in (dimer.first, dimer.second)]

    atoms = Atoms(symbols, positions)
    atoms.set_initial_magnetic_moments(None)
    try:
        atoms.calc = calculator
        with np.errstate(all="ignore"):
            energies = np.array(atoms.get_potential_energies())
            forces = np.array(atoms.get_forces())
    except FAILURES:
        # one bad dimer fails the whole call: each is then asked for alone
        return None
    return energies.reshape(-1, 2).sum(1), _apart(forces.reshape(-1, 2, 3))
