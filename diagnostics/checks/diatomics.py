"""Homonuclear dimers of every element: one minimum, repulsion, force equal to slope, a stiff well.

A dimer is the simplest system that a potential can get wrong. Its stiffness is the curvature of the
well, times the squared bond length, divided by the depth. This is a dimensionless number: 4 for H2,
14 for Na2, 18 for N2, 72 for Lennard-Jones. If a potential has smeared out the well, it is smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from ase import units
from ase.calculators.calculator import Calculator
from ase.data import atomic_masses, atomic_numbers, covalent_radii
from scipy.interpolate import CubicSpline

from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import Dimer, dimer_curves
from ..sanity.config import SanityConfig, Suite
from ..sanity.plots import curves_png
from ..sanity.verdicts import failures
from .bound import deep_minima


# Range of distances, relative to twice the covalent radius; `repulsion` covers shorter distances.
NEAREST = 0.6
FARTHEST = 3.5
POINTS: dict[Suite, int] = {"quick": 80, "standard": 200, "full": 400}

# Allowed difference between force and slope: relative, plus in eV/A.
SLOPE_SHARE = 0.02
SLOPE_FORCE = 0.02

# Most points of a curve that are checked again by finite differences, and their step in A.
MOST_SUSPICIOUS = 12
SMALL_STEP = 1e-4

# Smallest stiffness that passes; H2 has 4.
SOFTEST = 3.0
# Depth in eV below which the shape of a well is not judged, as for noble gases.
SHALLOW = 0.1

# The search for a minimum divides its bracket by this many points, and repeats that for ROUNDS.
DIVISIONS = 12
ROUNDS = 3

# Step in A and weights of the five-point stencil for the slope of the force.
STEP = 0.005
WEIGHTS = np.array([1, -8, 0, 8, -1]) / 12


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Are dimer curves of the elements repulsive and consistent, with one minimum?

    Consistent means that the force is minus the slope of the energy.

    Example: evenfield check diatomics evenfield-s elements=[Cu,Au] --level-of-theory EMT
    """
    calculator = model.calculator("float64")
    symbols = settings.chosen(model.symbols)
    curves = pair_curves(calculator, symbols, POINTS[settings.suite]) if symbols else []
    figures = [Figure("elements", len(symbols), "", at_least=1)]
    lines = []
    questions: tuple[tuple[str, Callable[[Curve], bool]], ...] = (
        ("elements without a finite curve", lambda curve: curve.is_finite),
        ("elements with several minima", lambda curve: curve.minima <= 1),
        ("elements that do not repel", lambda curve: curve.repels),
        ("elements with a force that is not the slope", lambda curve: curve.error <= 1),
        ("elements with a well that is too soft", lambda curve: not curve.stiffness < SOFTEST),
    )
    wrong = set()
    for what, is_right in questions:
        # if a curve is not finite, the other questions have no answer
        asked = [c for c in curves if c.is_finite or "finite" in what]
        names = [curve.symbol for curve in asked if not is_right(curve)]
        wrong |= set(names)
        figure, named = failures(what, names)
        figures.append(figure)
        lines += named
    lines += [str(curve) for curve in curves if np.isfinite(curve.length)]

    shown = [curve for curve in curves if curve.symbol in wrong] or curves
    pictures = {"diatomics.png": _picture(shown)} if shown else {}
    return CheckResult(figures, lines, pictures=pictures)


@dataclass(frozen=True)
class Curve:
    """The energy curve of a homonuclear dimer.

    radii: (R,) A. energies: (R,) eV. minima: number of deep minima. repels: whether the energy
    rises from the lowest point to the shortest distance. error: largest difference between force
    and slope, relative to the allowed one. length: A, depth: eV, frequency: 1/cm, stiffness:
    dimensionless; these four are NaN without a well.
    """

    symbol: str
    radii: np.ndarray
    energies: np.ndarray
    minima: int
    repels: bool
    error: float
    length: float = np.nan
    depth: float = np.nan
    frequency: float = np.nan
    stiffness: float = np.nan

    @property
    def is_finite(self) -> bool:
        """Whether all energies and forces are finite."""
        return bool(np.isfinite(self.energies).all() and np.isfinite(self.error))

    @property
    def fall(self) -> float:
        """Energy at the largest distance minus the lowest energy, in eV."""
        return float(self.energies[-1] - self.energies.min())

    @property
    def has_well(self) -> bool:
        """Whether the curve repels and has a minimum that is deep enough to be judged."""
        is_inside = 0 < int(self.energies.argmin()) < len(self.radii) - 1
        return self.is_finite and self.repels and is_inside and self.fall > SHALLOW

    def __str__(self) -> str:
        return (
            f"{self.symbol:2} {self.length:6.3f} A, {self.depth:6.2f} eV, "
            f"{self.frequency:5.0f} /cm, stiffness {self.stiffness:.1f}"
        )


def pair_curves(calculator: Calculator, symbols: list[str], points: int) -> list[Curve]:
    """The energy curve of each element, with `points` distances."""
    grid = np.linspace(NEAREST, FARTHEST, points)
    radii = np.array([grid * 2 * covalent_radii[atomic_numbers[symbol]] for symbol in symbols])
    energies, forces = _ask(calculator, symbols, radii)

    curves = []
    for symbol, own_radii, energy, force in zip(symbols, radii, energies, forces, strict=True):
        if not (np.isfinite(energy).all() and np.isfinite(force).all()):
            curves.append(Curve(symbol, own_radii, energy, 0, False, np.nan))
            continue
        curves.append(_judged(calculator, symbol, own_radii, energy, force))
    return _with_wells(calculator, curves)


def _ask(
    calculator: Calculator, symbols: list[str], radii: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Energies (S, R) in eV and forces (S, R) in eV/A of S elements at distances (S, R) in A."""
    dimers = [
        Dimer(symbol, symbol, float(radius))
        for symbol, row in zip(symbols, radii, strict=True)
        for radius in row
    ]
    energies, forces = dimer_curves(calculator, dimers)
    return energies.reshape(radii.shape), forces.reshape(radii.shape)


def _judged(
    calculator: Calculator,
    symbol: str,
    radii: np.ndarray,
    energies: np.ndarray,
    forces: np.ndarray,
) -> Curve:
    slopes = CubicSpline(radii, energies)(radii, 1)
    # a spline is inaccurate near its ends
    inner = slice(2, -2)
    errors = _slope_errors(forces, slopes)[inner]
    error = float(errors.max())
    if error > 1:
        # where the force changes fast, the spline itself may be wrong
        error = _error_by_differences(calculator, symbol, radii[inner], errors)

    lowest = int(energies.argmin())
    # without a well, the lowest energy is at the largest distance
    repels = lowest > 0 and bool((np.diff(energies[: lowest + 1]) < 0).all())
    return Curve(symbol, radii, energies, len(deep_minima(energies)), repels, error)


def _with_wells(calculator: Calculator, curves: list[Curve]) -> list[Curve]:
    """The curves, with length, depth, frequency and stiffness filled in for those with a well."""
    deep = [place for place, curve in enumerate(curves) if curve.has_well]
    if not deep:
        return curves
    symbols = [curves[place].symbol for place in deep]
    brackets = []
    for place in deep:
        lowest = int(curves[place].energies.argmin())
        brackets.append((curves[place].radii[lowest - 1], curves[place].radii[lowest + 1]))
    # all elements at once, because each call has an overhead
    lengths, curvatures = wells(calculator, symbols, np.array(brackets))

    completed = list(curves)
    for place, length, curvature in zip(deep, lengths, curvatures, strict=True):
        curve = curves[place]
        reduced_mass = atomic_masses[atomic_numbers[curve.symbol]] / 2
        # ASE's unit of time is A sqrt(u / eV)
        angular = np.sqrt(max(curvature, 0.0) / reduced_mass)
        completed[place] = replace(
            curve,
            length=float(length),
            depth=curve.fall,
            frequency=float(angular * units._hbar / units._e * units.s / units.invcm),
            stiffness=float(curvature * length**2 / curve.fall),
        )
    return completed


def _slope_errors(forces: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Difference between each force and minus the slope, relative to the allowed difference."""
    allowed = SLOPE_FORCE + SLOPE_SHARE * np.abs(slopes)
    errors: np.ndarray = np.abs(forces + slopes) / allowed
    return errors


def _error_by_differences(
    calculator: Calculator, symbol: str, radii: np.ndarray, errors: np.ndarray
) -> float:
    """The largest error of the most suspicious points, with slopes from central differences."""
    suspicious = radii[np.argsort(errors)[-MOST_SUSPICIOUS:]]
    around = suspicious[:, None] + SMALL_STEP * np.array([-1, 0, 1])
    energies, forces = _ask(calculator, [symbol], around.reshape(1, -1))
    energies = energies.reshape(around.shape)
    slopes = (energies[:, 2] - energies[:, 0]) / (2 * SMALL_STEP)
    return float(_slope_errors(forces.reshape(around.shape)[:, 1], slopes).max())


def wells(
    calculator: Calculator, symbols: list[str], brackets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the minimum of each of S elements within brackets (S, 2) in A.

    Returns bond lengths (S,) in A, where the force is zero, and curvatures (S,) in eV/A^2, which
    are minus the slope of the force by a five-point stencil.
    """
    brackets = brackets.copy()
    lengths = brackets.mean(axis=1)
    for _ in range(ROUNDS):
        between = np.linspace(brackets[:, 0], brackets[:, 1], DIVISIONS, axis=1)
        _, forces = _ask(calculator, symbols, between)
        for row, (radii, force) in enumerate(zip(between, forces, strict=True)):
            # if forces are not slopes of the energy, there may be no zero; then keep the midpoint
            crossing = np.flatnonzero((force[:-1] > 0) & (force[1:] <= 0))
            if len(crossing):
                before = int(crossing[0])
                ends = slice(before, before + 2)
                brackets[row] = radii[ends]
                lengths[row] = np.interp(0.0, -force[ends], radii[ends])
    points = lengths[:, None] + STEP * np.arange(-2, 3)
    _, forces = _ask(calculator, symbols, points)
    return lengths, -(forces @ WEIGHTS) / STEP


def _picture(curves: list[Curve]) -> bytes:
    shown = {
        curve.symbol: (curve.radii, curve.energies - curve.energies[-1]) for curve in curves[:12]
    }
    return curves_png(
        "two atoms of an element",
        "distance, A",
        "energy, eV",
        shown,
        y_range=(-8, 8),
        markers=False,
    )
