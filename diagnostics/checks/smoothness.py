"""Does the force jump, does its slope jump, and is the energy noisy?

Dimers are pulled apart to 10 A. Where the force changes most abruptly, the grid of distances is
refined by a factor of 400. On a finer grid a smooth force changes by less and less per interval,
but a jump stays. The atoms of crystals are moved along a line in steps of 10^-4 A. The residual of
a cubic fit to the energy is rounding noise. Larger moves give the slope of the energy, with which
the forces must agree. Such faults heat or cool a simulation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, covalent_radii

from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import Dimer, ask, dimer_curves
from ..sanity.choice import chosen_systems
from ..sanity.config import SanityConfig, Suite
from ..sanity.plots import curves_png
from ..sanity.systems import SYSTEMS, System
from ..sanity.verdicts import failures, with_progress


# Most elements that are checked.
MOST_ELEMENTS: dict[Suite, int] = {"quick": 8, "standard": 40, "full": 118}

# Distances of a dimer: NEAREST is relative to twice the covalent radius, the others are in A.
NEAREST = 0.8
FARTHEST = 10.0
SPACING = 0.02
# Each of two refinements divides an interval by DIVISIONS. SPOTS intervals of a curve are refined.
DIVISIONS = 20
SPOTS = 6

FORCE_JUMP = 1e-3  # eV/A
# For comparison, a metallic bond has a stiffness of a few eV/A^2.
SLOPE_JUMP = 1.0  # eV/A^2

# Moves of all atoms along a line. For comparison, a strain of 0.5 % costs about 0.1 meV/atom.
MOVES = 1e-4 * np.arange(-5, 6)  # A
RATTLE = 0.05  # A
NOISE = 0.01  # meV/atom
# Moves in A for the slope of the energy, and the allowed relative error of the forces.
LONG_MOVES = 0.01 * np.arange(-2, 3)
FORCE_ERROR = 0.01


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Does the force jump, is it the slope of the energy, and is the energy noisy?

    Example: evenfield check smoothness evenfield-s elements=[Cu,Au] --level-of-theory EMT
    """
    symbols = _spread(settings.chosen(model.symbols), MOST_ELEMENTS[settings.suite])
    # in float64, so that rounding does not look like a jump
    jumps = _jumps(model.calculator("float64"), symbols)
    force = [
        f"{each.symbol} ({each.force:.2g} eV/A at {each.distance:.2f} A)"
        for each in jumps
        if not each.force <= FORCE_JUMP
    ]
    slope = [
        f"{each.symbol} ({each.slope:.2g} eV/A^2 at {each.bend:.2f} A)"
        for each in jumps
        if not each.slope <= SLOPE_JUMP
    ]
    lines = [f"dimers of {len(symbols)} elements up to {FARTHEST:g} A"]
    figures = [Figure("elements", len(symbols), "", at_least=1)]
    if jumps:
        worst = max(jumps, key=lambda each: each.force)
        figures += [
            Figure("largest jump of a force", worst.force, "eV/A", limit=FORCE_JUMP),
            Figure(
                "largest jump of the slope of a force",
                max(each.slope for each in jumps),
                "eV/A^2",
                limit=SLOPE_JUMP,
            ),
        ]
    for what, names in (("forces that jump", force), ("forces whose slope jumps", slope)):
        lines += failures(what, names)[1]

    # the limit on the number of elements holds for dimers only
    quick = [system for system in SYSTEMS if system.is_quick]
    judged, skipped = chosen_systems(settings, model.symbols, built_in=quick)
    # in the default precision, as in a simulation
    calculator = model.calculator()
    walks = [_walk(calculator, system) for system in with_progress("smoothness", judged)]
    if walks:
        figures += [
            Figure("noise of the energy", max(w.noise for w in walks), "meV/atom", limit=NOISE),
            Figure(
                "largest error of a force as the slope",
                100 * max(walk.error for walk in walks),
                "%",
                limit=100 * FORCE_ERROR,
            ),
        ]
    lines += [str(walk) for walk in walks]
    pictures = {"smoothness.png": _picture(jumps)} if jumps else {}
    return CheckResult(figures, lines, skipped, pictures)


def _spread(symbols: list[str], most: int) -> list[str]:
    """At most `most` symbols, evenly spaced in the list."""
    if len(symbols) <= most:
        return symbols
    chosen = np.linspace(0, len(symbols) - 1, most).astype(int)
    return [symbols[index] for index in chosen]


@dataclass(frozen=True)
class Jumps:
    """The largest jumps of a dimer's force and of its slope.

    force: eV/A, at `distance` in A. slope: eV/A^2, at `bend` in A. radii, forces: the whole curve,
    (R,) in A and (R,) in eV/A.
    """

    symbol: str
    force: float
    distance: float
    slope: float
    bend: float
    radii: np.ndarray
    forces: np.ndarray


def _jumps(calculator: Calculator, symbols: list[str]) -> list[Jumps]:
    curves = [(symbol, _radii(symbol)) for symbol in symbols]
    coarse = _forces(calculator, curves)

    # one fine curve for each spot of each element
    fine = []
    for (symbol, radii), forces in zip(curves, coarse, strict=True):
        for spot in _spots(forces):
            fine.append((symbol, _finer(radii, spot)))
    finest = []
    bends = []
    for (symbol, radii), forces in zip(fine, _forces(calculator, fine), strict=True):
        slopes = np.diff(forces) / (radii[1] - radii[0])
        # doubled, because a bend between two points is spread over both intervals
        bent = 2 * _abruptness(slopes)
        worst = _argmax(bent)
        bends.append((symbol, float(bent[worst]), float(radii[worst + 2])))
        finest.append((symbol, _finer(radii, _argmax(_abruptness(forces)) + 1)))
    last = _forces(calculator, finest)

    results = []
    for (symbol, radii), forces in zip(curves, coarse, strict=True):
        own = [
            (float(_abruptness(found).max()), float(fine_radii[len(fine_radii) // 2]))
            for (name, fine_radii), found in zip(finest, last, strict=True)
            if name == symbol
        ]
        jump, distance = max(own, default=(np.nan, np.nan))
        slope, bend = max(((s, r) for name, s, r in bends if name == symbol), default=(np.nan,) * 2)
        results.append(Jumps(symbol, jump, distance, slope, bend, radii, forces))
    return results


def _radii(symbol: str) -> np.ndarray:
    start = NEAREST * 2 * float(covalent_radii[atomic_numbers[symbol]])
    return np.arange(start, FARTHEST, SPACING)


def _finer(radii: np.ndarray, spot: int) -> np.ndarray:
    """A finer grid for the interval after `spot` and its two neighbours."""
    low, high = max(spot - 1, 0), min(spot + 2, len(radii) - 1)
    return np.linspace(radii[low], radii[high], (high - low) * DIVISIONS + 1)


def _forces(calculator: Calculator, curves: list[tuple[str, np.ndarray]]) -> list[np.ndarray]:
    """The forces of each dimer curve in eV/A; NaN becomes zero, so that a failure is a jump."""
    if not curves:
        return []
    dimers = [Dimer(name, name, float(radius)) for name, radii in curves for radius in radii]
    _, forces = dimer_curves(calculator, dimers)
    ends = np.cumsum([len(radii) for _, radii in curves])[:-1]
    return [np.nan_to_num(part) for part in np.split(forces, ends)]


def _abruptness(values: np.ndarray) -> np.ndarray:
    """How far each difference of `values` (R,) is from the mean of its neighbours; (R - 3,)."""
    steps = np.diff(values)
    found: np.ndarray = np.abs(steps[1:-1] - (steps[:-2] + steps[2:]) / 2)
    return found


def _spots(forces: np.ndarray) -> list[int]:
    """Indices of the intervals with the most abrupt changes.

    Half of the candidates are the most abrupt in eV/A, half relative to their neighbours.
    """
    abrupt = _abruptness(forces)
    steps = np.abs(np.diff(forces))
    relative = abrupt / (steps[:-2] + steps[2:] + 1e-9)
    chosen: list[int] = []
    for measure in (abrupt, relative):
        order = np.argsort(-measure)
        chosen += [int(index) + 1 for index in order[: SPOTS // 2 * 3]]
    # adjacent intervals have the same refinement
    kept: list[int] = []
    for spot in chosen:
        if all(abs(spot - other) > 1 for other in kept):
            kept.append(spot)
    return kept[:SPOTS]


def _argmax(values: np.ndarray) -> int:
    return int(np.argmax(values))


@dataclass(frozen=True)
class Walk:
    """Results for a system that is moved along a line.

    noise: of the energy, meV/atom. error: relative error of the force along the line.
    """

    name: str
    noise: float
    error: float

    def __str__(self) -> str:
        return f"{self.name}: noise {self.noise:.2g} meV/atom, force {100 * self.error:.2g} % off"


def _walk(calculator: Calculator, system: System) -> Walk:
    atoms = system.atoms()
    rng = np.random.default_rng(3)
    atoms.positions += rng.normal(0, RATTLE, (len(atoms), 3))
    forces = ask(calculator, atoms).forces
    # mainly along the force, so that the slope is not a small difference of large terms
    direction = forces / np.linalg.norm(forces)
    aside = rng.normal(size=direction.shape)
    direction = direction + 0.3 * aside / np.linalg.norm(aside)

    energies = _energies(calculator, atoms, direction, MOVES)
    scaled = MOVES / MOVES.max()
    rest = energies - np.polyval(np.polyfit(scaled, energies, 3), scaled)
    # the cubic has four coefficients
    noise = 1000 * float(np.sqrt((rest**2).sum() / (len(MOVES) - 4))) / len(atoms)

    scaled = LONG_MOVES / LONG_MOVES.max()
    energies = _energies(calculator, atoms, direction, LONG_MOVES)
    slope = np.polyfit(scaled, energies, 4)[-2] / LONG_MOVES.max()
    expected = -float((forces * direction).sum())
    return Walk(system.name, noise, abs(slope - expected) / abs(expected))


def _energies(
    calculator: Calculator, atoms: Atoms, direction: np.ndarray, moves: np.ndarray
) -> np.ndarray:
    """Energies of the whole cell in eV after each move, relative to the middle one."""
    found = []
    for move in moves:
        moved = atoms.copy()
        moved.positions += move * direction
        found.append(ask(calculator, moved).energy)
    energies: np.ndarray = np.array(found) - found[len(found) // 2]
    return energies


def _picture(jumps: list[Jumps]) -> bytes:
    """PNG of the forces of the six elements with the largest jumps."""
    worst = sorted(jumps, key=lambda each: -each.force)[:6]
    curves = {each.symbol: (each.radii, each.forces) for each in worst}
    return curves_png(
        "force that pushes two atoms apart",
        "distance, A",
        "eV/A",
        curves,
        y_range=(-5, 5),
        markers=False,
    )
