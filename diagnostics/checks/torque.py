"""Do the torques of the forces agree with the slope of the energy?

Two isolated triangles of three atoms each are tilted against each other. A rigid rotation of one
triangle by an angle theta about an axis through its centre c changes the energy, and

    torque = sum_i (r_i - c) x F_i = -dE/dtheta

for each of the three axes. The net force and the net torque on all six atoms are zero, because
nothing outside acts on them. Networks that predict forces directly violate both rules.
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


# Edge of a triangle relative to the covalent radius; vertical and lateral shift of the second
# triangle, relative to the edge. Whatever the tilt, atoms of the two triangles are at least an edge
# apart.
EDGE = 2.3
HEIGHT = 1.6
SIDEWAYS = 0.3

# Most elements in the quick suite.
QUICK = 12

ANGLE = 1e-3  # radian, of the finite differences

# Tolerances: of a torque, relative to it; of a net force or torque, relative to its terms.
SLOPE = 0.01
BALANCE = 1e-4
# The divisor of a torque's error is at least this share of its terms, which may cancel.
SHARE = 0.02
# Lower bound of all divisors, in eV and eV/A, for elements with tiny forces, such as noble gases.
SMALLEST = 0.01


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Is the torque on a group of atoms the slope of the energy?

    Also checks that the net force and the net torque on an isolated cluster vanish.

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
    # `not <=` also catches NaN
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
    """Results for two triangles of an element; NaN if the calculator fails.

    torque: (3,) eV, on the first triangle. slope: (3,) eV, minus the derivative of the energy with
    respect to its rotation. scale: eV, the sum of |r - c| |F| over its atoms. net_force,
    net_torque: of all six atoms, relative to the largest force and to the scale of all six.
    """

    symbol: str
    torque: np.ndarray
    slope: np.ndarray
    scale: float
    net_force: float
    net_torque: float

    @property
    def slope_error(self) -> float:
        """Largest difference between torque and slope, relative to the largest slope."""
        largest = max(float(np.abs(self.slope).max()), SHARE * self.scale, SMALLEST)
        return float(np.abs(self.torque - self.slope).max() / largest)


def turned(calculator: Calculator, symbol: str, seed: int) -> Turned:
    """Compute torques and slopes for two triangles of an element."""
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
    """The largest torque that forces of this size could exert, in eV."""
    return float((np.linalg.norm(arms, axis=1) * np.linalg.norm(forces, axis=1)).sum())


def two_triangles(symbol: str, seed: int) -> Atoms:
    """Two equal triangles of three atoms, the second above the first and tilted at random."""
    edge = EDGE * covalent_radii[atomic_numbers[symbol]]
    angles = np.radians([0.0, 120.0, 240.0])
    corners = np.stack([np.cos(angles), np.sin(angles), np.zeros(3)], axis=1) * edge / np.sqrt(3)
    tilt = Rotation.random(random_state=np.random.default_rng(seed))
    above = tilt.apply(corners) + edge * np.array([SIDEWAYS, 0.0, HEIGHT])
    return Atoms(f"{symbol}6", np.concatenate([corners, above]))
