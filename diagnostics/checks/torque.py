"""Do forces turn things as the energy says?

Two triangles of three atoms each hang in the void, tilted against each other. A rigid turn of one
of them by an angle theta about an axis through its centre c changes the energy, and

    torque = sum_i (r_i - c) x F_i = -dE/dtheta

for each of the three axes. All six atoms together feel no net force and no net torque, because
nothing outside can push or turn them. Forces that a network predicts directly break both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, covalent_radii
from scipy.spatial.transform import Rotation

from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import ask_many
from ..sanity.config import SanityConfig
from ..sanity.verdicts import failures, with_progress


# Edge of a triangle over the covalent radius, and the height of the second above the first in
# edges: whatever its tilt, no atom of one is closer to the other than an edge.
EDGE = 2.3
HEIGHT = 1.6
SIDEWAYS = 0.3

# Elements that the quick suite looks at.
QUICK = 12

ANGLE = 1e-3  # radian, of the finite differences

# Largest errors that pass: of a torque, relative to it; of a sum, relative to its terms.
SLOPE = 0.01
BALANCE = 1e-4
# A torque is compared with no less than this share of its terms, which may cancel.
SHARE = 0.02
# Forces that sum to less, in eV and eV/A, turn nothing: those of noble gases.
SMALLEST = 0.01


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Is the torque on a group of atoms the slope of the energy, and does nothing turn by itself?

    Example: evenfield check torque evenfield-s elements=[Cu,Au] --level-of-theory EMT
    """
    calculator = model.calculator("float64")
    most = QUICK if settings.suite == "quick" else len(model.symbols)
    symbols = settings.spread(model.symbols, most)
    found = [
        turned(calculator, symbol, settings.seed) for symbol in with_progress("torque", symbols)
    ]
    figures = [Figure("elements", len(symbols), "", at_least=1)]
    lines: list[str] = []
    # `not <=` also names the elements that have no finite answer
    for what, names in (
        (
            "elements that push themselves",
            [each.symbol for each in found if not each.net_force <= BALANCE],
        ),
        (
            "elements that turn themselves",
            [each.symbol for each in found if not each.net_torque <= BALANCE],
        ),
        (
            "elements whose torque is not the slope of the energy",
            [each.symbol for each in found if not each.slope_error <= SLOPE],
        ),
    ):
        figure, named = failures(what, names)
        figures.append(figure)
        lines += named
    if found:
        worst = max(found, key=lambda each: np.nan_to_num(each.slope_error, nan=np.inf))
        lines.append(
            f"largest difference between torque and slope: {100 * worst.slope_error:.2g} %, "
            f"{worst.symbol}"
        )
    return CheckResult(figures, lines)


@dataclass(frozen=True)
class Turned:
    """What two triangles of an element do to each other; NaN where the calculator fails.

    torque, slope: (3,) eV, on the first triangle, and minus the slope of the energy by its turns.
    scale: eV, the sum of |r - c| |F| over its atoms. net_force, net_torque: of all six atoms,
    relative to the largest force and to their own scale.
    """

    symbol: str
    torque: np.ndarray
    slope: np.ndarray
    scale: float
    net_force: float
    net_torque: float

    @property
    def slope_error(self) -> float:
        """Largest difference between torque and slope over the largest slope."""
        largest = max(float(np.abs(self.slope).max()), SHARE * self.scale, SMALLEST)
        return float(np.abs(self.torque - self.slope).max() / largest)


def turned(calculator: Calculator, symbol: str, seed: int) -> Turned:
    """Ask for the torques on two triangles of an element."""
    atoms = two_triangles(symbol, seed)
    centre = atoms.positions[:3].mean(axis=0)
    arms = atoms.positions[:3] - centre
    moved = [atoms]
    for axis in np.eye(3):
        for sign in (-1, 1):
            copy = atoms.copy()
            copy.positions[:3] = centre + Rotation.from_rotvec(sign * ANGLE * axis).apply(arms)
            moved.append(copy)

    still, *turns = ask_many(calculator, moved)
    forces = still.forces
    torque = np.cross(arms, forces[:3]).sum(axis=0)
    energies = np.array([answer.energy for answer in turns])
    slope = -(energies[1::2] - energies[::2]) / (2 * ANGLE)

    all_arms = atoms.positions - atoms.positions.mean(axis=0)
    net_torque = np.linalg.norm(np.cross(all_arms, forces).sum(axis=0))
    return Turned(
        symbol,
        torque,
        slope,
        scale=_scale(arms, forces[:3]),
        net_force=float(np.linalg.norm(forces.sum(axis=0)) / max(np.abs(forces).max(), SMALLEST)),
        net_torque=float(net_torque / max(_scale(all_arms, forces), SMALLEST)),
    )


def _scale(arms: np.ndarray, forces: np.ndarray) -> float:
    """The largest torque that forces of this size could have, in eV."""
    return float((np.linalg.norm(arms, axis=1) * np.linalg.norm(forces, axis=1)).sum())


def two_triangles(symbol: str, seed: int) -> Atoms:
    """Two equal triangles, one above the other and tilted at random."""
    edge = EDGE * covalent_radii[atomic_numbers[symbol]]
    angles = np.radians([0.0, 120.0, 240.0])
    corners = np.stack([np.cos(angles), np.sin(angles), np.zeros(3)], axis=1) * edge / np.sqrt(3)
    tilt = Rotation.random(random_state=np.random.default_rng(seed))
    above = tilt.apply(corners) + edge * np.array([SIDEWAYS, 0.0, HEIGHT])
    return Atoms(f"{symbol}6", np.concatenate([corners, above]))
