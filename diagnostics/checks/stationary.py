"""Where do the forces vanish, and are these stationary points of the right kind?

Small clusters start from random positions. A relaxation finds a minimum. From there, a search goes
uphill along the softest mode and downhill along all others, until it reaches a saddle. The Morse
index of a stationary point is the number of negative eigenvalues of its second derivatives: 0 for a
minimum, 1 for the saddle between two minima.

With an oracle, the search continues from each point with the oracle's forces. A minimum is false if
the oracle moves away from it, or has no minimum there. A minimum of the oracle is missed if the
potential moves away from it. A saddle of the oracle is lost if the potential has a minimum there: a
potential that is too smooth, for example after too strong a weight decay, has no barrier. Without
an oracle, the check lists the points and only judges whether each cluster has a minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, covalent_radii
from scipy.sparse.csgraph import connected_components

from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import ask, at_rest
from ..sanity.config import SanityConfig, Suite
from ..sanity.oracle import oracle_of
from ..sanity.verdicts import failures, with_progress
from .vibrations import second_derivatives


ELEMENTS: dict[Suite, int] = {"quick": 2, "standard": 4, "full": 20}
SIZES: dict[Suite, tuple[int, ...]] = {"quick": (4,), "standard": (4, 5), "full": (4, 5, 6, 7)}
STARTS: dict[Suite, int] = {"quick": 2, "standard": 8, "full": 30}

# A start fills a sphere whose radius is SPHERE times the covalent radius times the cube root of the
# number of atoms.
SPHERE = 2.2
CLOSEST = 1.6  # smallest distance of two atoms at the start, in covalent radii

LOOSE = 3.2  # largest distance of neighbours, in covalent radii; farther atoms have left

FMAX = 1e-3  # eV/A
MAX_STEPS = 300
SADDLE_STEPS = 40
LONGEST_STEP = 0.2  # A
# eV/A^2; an eigenvalue of the second derivatives that is smaller in size counts as zero.
FLAT = 0.01
# Two points are the same if their sorted distances differ by less than this share of the longest.
SAME = 0.05
# A point that has moved farther than this, by the same measure, has become another point.
LEFT = 0.15


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Minima and saddles of small clusters, with their Morse indices.

    With `oracle=`, false minima, missed minima and lost saddles count as failures.

    Example: evenfield check stationary --calculator ase.calculators.lj:LennardJones elements=[Ar]
    """
    calculator = model.calculator("float64")
    oracle = oracle_of(settings)
    symbols = settings.spread(model.symbols, ELEMENTS[settings.suite])
    formulas = [f"{symbol}{size}" for symbol in symbols for size in SIZES[settings.suite]]

    figures = [Figure("clusters", len(formulas), "", at_least=1)]
    lines = []
    false = []
    missed = []
    lost = []
    empty = []
    for formula in with_progress("stationary", formulas):
        own = stationary_points(calculator, formula, STARTS[settings.suite], settings.seed)
        if not own:
            empty.append(formula)
            continue
        lines.append(f"{formula}: {_listed(own)}")
        if oracle is None:
            continue
        theirs = stationary_points(oracle, formula, STARTS[settings.suite], settings.seed)
        lines.append(f"{formula}, oracle: {_listed(theirs)}")
        false += [f"{formula} {p}" for p in own if p.is_minimum and not confirmed(oracle, p)]
        missed += [
            f"{formula} {p}" for p in theirs if p.is_minimum and not confirmed(calculator, p)
        ]
        lost += [f"{formula} {p}" for p in theirs if p.index == 1 and is_lost(calculator, p)]

    if formulas:
        figure, named = failures("clusters without a minimum", empty)
        figures.append(figure)
        lines += named
    if oracle is not None:
        verdicts = {"false minima": false, "missed minima": missed, "lost saddles": lost}
        for what, names in verdicts.items():
            figure, named = failures(what, names)
            figures.append(figure)
            lines += named
    return CheckResult(figures, lines)


@dataclass(frozen=True)
class StationaryPoint:
    """A structure without forces.

    energy: eV. index: Morse index, the number of negative eigenvalues of the second derivatives.
    """

    atoms: Atoms
    energy: float
    index: int

    @property
    def is_minimum(self) -> bool:
        """Whether the Morse index is 0."""
        return self.index == 0

    @property
    def distances(self) -> np.ndarray:
        """All distances in A, ascending; independent of the order and orientation of the atoms."""
        return sorted_distances(self.atoms)

    def __str__(self) -> str:
        kind = "minimum" if self.is_minimum else f"saddle of index {self.index}"
        return f"{kind} at {self.energy:.3f} eV"


def _listed(points: list[StationaryPoint]) -> str:
    minima = [point for point in points if point.is_minimum]
    lowest = min(point.energy for point in points)
    saddles = [f"{p.energy - lowest:.3f} ({p.index})" for p in points if not p.is_minimum]
    shown = ", ".join(f"{point.energy - lowest:.3f}" for point in minima)
    text = f"minima at {shown} eV"
    if saddles:
        text += f"; saddles (index) at {', '.join(saddles)}"
    return text


def sorted_distances(atoms: Atoms) -> np.ndarray:
    """All distances of a cluster in A, ascending."""
    rows, columns = np.triu_indices(len(atoms), 1)
    distances: np.ndarray = np.sort(atoms.get_all_distances()[rows, columns])
    return distances


def stationary_points(
    calculator: Calculator, formula: str, starts: int, seed: int
) -> list[StationaryPoint]:
    """Distinct minima and the saddles above them, sorted by energy.

    starts: number of random starting structures.
    """
    found: list[StationaryPoint] = []
    for start in range(starts):
        # seeded for each start, so that more starts do not change the earlier ones
        rng = np.random.default_rng([seed, start])
        minimum = relaxed(calculator, random_cluster(formula, rng))
        if minimum is None or _is_known(minimum, found):
            continue
        found.append(minimum)
        saddle = _saddle_above(calculator, minimum, rng)
        if saddle is not None and not _is_known(saddle, found):
            found.append(saddle)
    return sorted(found, key=lambda point: point.energy)


def random_cluster(formula: str, rng: np.random.Generator) -> Atoms:
    """Random positions in a sphere, with a smallest distance between atoms."""
    atoms = Atoms(formula)
    radius = covalent_radii[atomic_numbers[atoms.get_chemical_symbols()[0]]]
    sphere = SPHERE * radius * len(atoms) ** (1 / 3)
    placed: list[np.ndarray] = []
    while len(placed) < len(atoms):
        point = rng.uniform(-sphere, sphere, 3)
        is_inside = np.linalg.norm(point) <= sphere
        is_free = all(np.linalg.norm(point - other) > CLOSEST * radius for other in placed)
        if is_inside and is_free:
            placed.append(point)
    atoms.positions = np.array(placed)
    return atoms


def relaxed(calculator: Calculator, atoms: Atoms) -> StationaryPoint | None:
    """The stationary point at the end of a relaxation.

    None if it does not converge, if the calculator fails, or if the cluster falls apart.
    """
    found = at_rest(calculator, atoms, FMAX, MAX_STEPS)
    if found is None:
        return None
    moved, is_at_rest = found
    if not is_at_rest or not _holds_together(moved):
        return None
    return _point(calculator, moved)


def _saddle_above(
    calculator: Calculator, minimum: StationaryPoint, rng: np.random.Generator
) -> StationaryPoint | None:
    """Follow the softest mode uphill to a saddle; None if the search finds none."""
    atoms = minimum.atoms.copy()
    size = 0.1 * float(minimum.distances[0])
    atoms.positions += rng.normal(0, size / np.sqrt(3), atoms.positions.shape)
    found = _newton(calculator, atoms, _uphill_along_the_softest)
    if found is None or not _holds_together(found):
        return None
    point = _point(calculator, found)
    return point if point.index > 0 else None


def inner_modes(calculator: Calculator, atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (M,) in eV/A^2, ascending, and modes (3N, M) of the second derivatives.

    Translations and rotations are projected out.
    """
    hessian = second_derivatives(calculator, atoms)
    hessian = (hessian + hessian.T) / 2
    centred = atoms.positions - atoms.positions.mean(axis=0)
    free = []
    for axis in np.eye(3):
        free.append(np.tile(axis, len(atoms)))
        free.append(np.cross(axis, centred).ravel())
    basis, sizes, _ = np.linalg.svd(np.array(free).T)
    # a linear cluster has one rotation less
    num_free = int((sizes > 1e-6 * sizes[0]).sum())
    inner = basis[:, num_free:]
    values, vectors = np.linalg.eigh(inner.T @ np.nan_to_num(hessian) @ inner)
    return values, inner @ vectors


def _point(calculator: Calculator, atoms: Atoms) -> StationaryPoint:
    values, _ = inner_modes(calculator, atoms)
    energy = ask(calculator, atoms).energy
    return StationaryPoint(atoms, energy, int((values < -FLAT).sum()))


def _holds_together(atoms: Atoms) -> bool:
    """Whether a chain of neighbours leads from each atom to every other."""
    radius = covalent_radii[atoms.numbers].max()
    near = atoms.get_all_distances() < LOOSE * radius
    num_parts, _ = connected_components(near)
    return bool(num_parts == 1)


def _is_known(point: StationaryPoint, others: list[StationaryPoint]) -> bool:
    return any(difference(point.atoms, other.atoms) < SAME for other in others)


def difference(first: Atoms, second: Atoms) -> float:
    """Largest difference between sorted distances, relative to the longest distance."""
    one = sorted_distances(first)
    other = sorted_distances(second)
    return float(np.abs(one - other).max() / one.max())


def confirmed(calculator: Calculator, point: StationaryPoint) -> bool:
    """Whether another calculator also has a minimum near this one."""
    there = relaxed(calculator, point.atoms)
    if there is None:
        return False
    return there.is_minimum and difference(there.atoms, point.atoms) < LEFT


def is_lost(calculator: Calculator, saddle: StationaryPoint) -> bool:
    """Whether this calculator has a minimum near a saddle of another calculator."""
    there = nearest(calculator, saddle.atoms)
    if there is None:
        return False
    return there.is_minimum and difference(there.atoms, saddle.atoms) < LEFT


def nearest(calculator: Calculator, start: Atoms) -> StationaryPoint | None:
    """The stationary point, of any index, that Newton's method reaches; None if it fails."""
    found = _newton(calculator, start, _as_it_is)
    return None if found is None else _point(calculator, found)


def _newton(
    calculator: Calculator, start: Atoms, stiffness_of: Callable[[np.ndarray], np.ndarray]
) -> Atoms | None:
    """Newton's method until no force exceeds FMAX; None if it does not converge.

    stiffness_of: eigenvalues (M,) -> divisors (M,) of the forces along the modes, eV/A^2.
    """
    atoms = start.copy()
    for _ in range(SADDLE_STEPS):
        forces = ask(calculator, atoms).forces
        if not np.isfinite(forces).all():
            return None
        if np.abs(forces).max() < FMAX:
            return atoms
        values, modes = inner_modes(calculator, atoms)
        step = modes @ ((modes.T @ forces.ravel()) / stiffness_of(values))
        longest = np.linalg.norm(step.reshape(-1, 3), axis=1).max()
        atoms.positions += step.reshape(-1, 3) * min(1.0, LONGEST_STEP / longest)
    return None


def _uphill_along_the_softest(values: np.ndarray) -> np.ndarray:
    """Divisors that step downhill along all modes except the softest, where they step uphill."""
    stiffness = np.maximum(np.abs(values), FLAT)
    stiffness[0] = -stiffness[0]
    return stiffness


def _as_it_is(values: np.ndarray) -> np.ndarray:
    """The eigenvalues themselves, bounded away from zero: a plain Newton step."""
    return np.where(np.abs(values) > FLAT, values, FLAT)
