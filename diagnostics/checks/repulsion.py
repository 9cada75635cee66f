"""Do all pairs of elements repel each other at short distance, without holes?

A hole is a region at short distance where the energy of a dimer falls when it is compressed.
Dynamics at high temperature, relaxations of bad structures and random searches fall into it.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, covalent_radii

from ...core.figures.style import STYLE, figure_png
from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import Dimer, dimer_curves
from ..sanity.config import SanityConfig
from ..sanity.verdicts import failures, with_progress


CLOSEST = 0.3  # A
# Largest distance of a curve, relative to the sum of the covalent radii. The bond lengths of some
# oxides are below START, so the energy may still fall down to LAST_MINIMUM.
START = 0.7
LAST_MINIMUM = 0.55
POINTS = {"quick": 15, "standard": 25, "full": 50}

# Step of the finite difference for the force, relative to the distance; allowed difference between
# force and slope, relative plus in eV/A.
STEP = 1e-3
SLOPE_SHARE = 0.01
SLOPE_FORCE = 0.01

PAIRS_AT_ONCE = 100


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Do all pairs of elements repel each other down to 0.3 A?

    Also checks that the force is minus the slope of the energy.

    Example: evenfield check repulsion evenfield-s elements=[Cu,Au] --level-of-theory EMT
    """
    calculator = model.calculator("float64")
    symbols = settings.chosen(model.symbols)
    pairs = list(combinations_with_replacement(symbols, 2))
    starts = range(0, len(pairs), PAIRS_AT_ONCE)

    faults: dict[tuple[str, str], str] = {}
    for start in with_progress("repulsion", list(starts)):
        faults |= _faults(calculator, pairs[start : start + PAIRS_AT_ONCE], settings)

    figures = [Figure("pairs", len(pairs), "", at_least=1)]
    lines = [f"{len(pairs)} pairs of {len(symbols)} elements, down to {CLOSEST} A"]
    for what in ("pairs with a hole", "pairs without a finite energy", "pairs with a false force"):
        names = [f"{first}-{second}" for (first, second), fault in faults.items() if fault == what]
        figure, named = failures(what, names)
        figures.append(figure)
        lines += named
    pictures = {"repulsion.png": _picture(symbols, faults)} if faults else {}
    return CheckResult(figures, lines, pictures=pictures)


def _faults(
    calculator: Calculator, pairs: list[tuple[str, str]], settings: SanityConfig
) -> dict[tuple[str, str], str]:
    """Pair -> what is wrong with it, for the pairs with a fault."""
    num_points = POINTS[settings.suite]
    dimers = []
    for first, second in pairs:
        radii = _radii(first, second, num_points)
        middle = radii[num_points // 2]
        differences = [middle * (1 + STEP), middle * (1 - STEP)]
        dimers += [Dimer(first, second, float(radius)) for radius in [*radii, *differences]]

    energies, forces = dimer_curves(calculator, dimers)
    energies = energies.reshape(len(pairs), num_points + 2)
    forces = forces.reshape(len(pairs), num_points + 2)

    faults = {}
    for pair, energy, force in zip(pairs, energies, forces, strict=True):
        radii = _radii(*pair, num_points)
        fault = _fault(radii, energy, force)
        if fault is not None:
            faults[pair] = fault
    return faults


def _radii(first: str, second: str, num_points: int) -> np.ndarray:
    """Distances in A, from far to near."""
    start = max(START * _touching(first, second), 1.2 * CLOSEST)
    return np.geomspace(start, CLOSEST, num_points)


def _touching(first: str, second: str) -> float:
    return float(covalent_radii[atomic_numbers[first]] + covalent_radii[atomic_numbers[second]])


def _fault(radii: np.ndarray, energies: np.ndarray, forces: np.ndarray) -> str | None:
    """The name of the figure that counts this fault; None for a curve without a fault.

    radii: (R,) A. energies: (R + 2,) eV; the last two are at the middle of `radii`, plus and minus
    a small step. forces: (R + 2,) eV/A.
    """
    if not (np.isfinite(energies).all() and np.isfinite(forces).all()):
        return "pairs without a finite energy"

    curve = energies[:-2]
    may_fall = radii >= radii[0] * LAST_MINIMUM / START
    lowest = int(curve[may_fall].argmin())
    if not (np.diff(curve[lowest:]) > 0).all():
        return "pairs with a hole"

    middle = len(radii) // 2
    slope = (energies[-1] - energies[-2]) / (2 * STEP * radii[middle])
    allowed = SLOPE_FORCE + SLOPE_SHARE * abs(slope)
    return "pairs with a false force" if abs(slope - forces[middle]) > allowed else None


def _picture(symbols: list[str], faults: dict[tuple[str, str], str]) -> bytes:
    """PNG with a square for each pair, which is coloured if the pair has a fault."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Drawing

    place = {symbol: index for index, symbol in enumerate(symbols)}
    wrong = np.zeros((len(symbols), len(symbols)))
    for first, second in faults:
        wrong[place[first], place[second]] = wrong[place[second], place[first]] = 1

    with rc_context(STYLE):
        size = max(4.0, 0.14 * len(symbols))
        drawing = Drawing(figsize=(size, size), layout="constrained")
        axes = drawing.add_subplot()
        axes.imshow(wrong, cmap="Reds", vmin=0, vmax=1.3)
        axes.grid(visible=False)
        axes.set_xticks(range(len(symbols)), symbols, rotation=90, fontsize=7)
        axes.set_yticks(range(len(symbols)), symbols, fontsize=7)
        axes.set_title("pairs that do not repel as they should")
        return figure_png(drawing)
