"""How far does the displacement of an atom reach, and does it reach as far as it should?

One atom of a crystal is moved, and the forces on all other atoms change:

    response_ij = -dF_i/dr_j, its largest singular value, over the distance of i and j

A potential with a cutoff has no response beyond its receptive field, whatever happens in nature. An
oracle shows what is missing: in metals the response vanishes within two shells, and in salts it
decays slowly. The responses to the motion of one atom sum to zero, because a translation of all
atoms changes nothing.

The decay determines what a larger cutoff gains. The response of bare charges decays as r^-3. If
atoms move independently of each other, the error of a potential with the cutoff r then decays as
r^-1.5, the root of the integral of r^-6 over the volume outside. The response of screened charges
decays as exp(-r / length), and a cutoff of a few lengths is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.geometry import get_distances

from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import ask
from ..sanity.config import SanityConfig
from ..sanity.oracle import oracle_of
from ..sanity.plots import curves_png
from ..sanity.verdicts import failures, with_progress


# Name -> structure, lattice parameter in A, and number of cubic cells along each edge.
CRYSTALS: dict[str, tuple[str, float, int]] = {
    "Cu": ("fcc", 3.61, 3),
    "Al": ("fcc", 4.05, 3),
    "Si": ("diamond", 5.43, 2),
    "NaCl": ("rocksalt", 5.64, 2),
    "MgO": ("rocksalt", 4.21, 3),
}
QUICK = ("Cu", "Si", "NaCl")

STEP = 0.01  # A
SHELLS = np.array([0.5, 3.2, 4.5, 6.0, 8.0])  # A; the largest response in each range is reported
# Largest sum of all responses, relative to the response of the moved atom itself.
SUM = 1e-4
# Responses below this share of the moved atom's own response are negligible.
NEGLIGIBLE = 0.01
# Largest share of the oracle's response, summed over atoms, at distances where the potential has
# none.
MISSED = 0.1
# Cutoffs for which the truncation error is reported, A.
CUTOFFS = (4.0, 5.0, 6.0, 8.0)
# Range of the shells to which the law of the decay is fitted, and the smallest number of them. The
# upper end is a share of the largest distance, which is half of the diagonal of the cell. Touching
# neighbours are left out, and so are atoms beyond half an edge, which respond to several images.
FITTED_FROM = 2.6  # A
FITTED_SHARE = 0.56
FEWEST_SHELLS = 4


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Response of forces to the motion of one atom, over the distance.

    With `oracle=`, the response of the oracle is shown and compared.

    Example: evenfield check locality evenfield-s elements=[Cu] --level-of-theory EMT
    oracle=ase.calculators.emt:EMT
    """
    calculator = model.calculator("float64")
    oracle = oracle_of(settings)
    known = set(settings.chosen(model.symbols))
    wanted = QUICK if settings.suite == "quick" else tuple(CRYSTALS)
    judged = [name for name in wanted if set(Atoms(name).symbols) <= known]
    skipped = [name for name in wanted if name not in judged]

    figures = [Figure("crystals", len(judged), "")]
    lines: list[str] = []
    pictures = {}
    unbalanced = []
    curves = {}
    for name in with_progress("locality", judged):
        structure, edge, repeats = CRYSTALS[name]
        atoms = bulk(name, structure, a=edge, cubic=True) * repeats
        own = response_of(calculator, atoms)
        curves[name] = (own.distances[1:], own.responses[1:])
        if not own.sum <= SUM:
            unbalanced.append(name)
        lines.append(f"{name}: {own}; beyond {own.reach:.1f} A nothing above 1 % of its own")
        lines += _of_truncation(name, own)
        if oracle is None:
            continue

        theirs = response_of(oracle, atoms)
        curves[f"{name}, oracle"] = (theirs.distances[1:], theirs.responses[1:])
        missed = theirs.share_beyond(own.extent)
        lines.append(f"{name}, oracle: {theirs}; {100 * missed:.1f} % beyond {own.extent:.1f} A")
        lines += _of_truncation(f"{name}, oracle", theirs)
        figures.append(Figure(f"{name}: response that cannot be felt", missed, "", limit=MISSED))

    if judged:
        figure, named = failures("crystals whose responses do not sum to zero", unbalanced)
        figures.insert(1, figure)
        lines += named
        pictures["locality.png"] = curves_png(
            "forces change when one atom moves",
            "distance from it, A",
            "largest change, eV/A^2",
            {name: (x, np.maximum(y, 1e-6)) for name, (x, y) in curves.items()},
            logarithmic=True,
        )
    return CheckResult(figures, lines, skipped, pictures)


def _of_truncation(name: str, response: Response) -> list[str]:
    """A line on the error of a cutoff at several radii, and on the law of the decay."""
    shares = [
        f"{100 * response.truncation_error(radius):.2g} % at {radius:g} A"
        for radius in CUTOFFS
        if radius < response.distances[-1]
    ]
    law = response.decay()
    falls = "" if law is None else f"; the response falls as {law}"
    return [f"{name}: a cutoff misses {', '.join(shares)} of forces{falls}"]


@dataclass(frozen=True)
class Decay:
    """The law by which a response decays with the distance r: r^-exponent, or exp(-r / length).

    length: A. is_power: whether the power law fits better.
    """

    exponent: float
    length: float
    is_power: bool

    def __str__(self) -> str:
        return f"r^-{self.exponent:.1f}" if self.is_power else f"exp(-r / {self.length:.2g} A)"


@dataclass(frozen=True)
class Response:
    """How the forces of a crystal change when its first atom moves.

    distances: (N,) A, ascending, the moved atom first. responses: (N,) eV/A^2.
    sum: of all responses, relative to the moved atom's own.
    """

    distances: np.ndarray
    responses: np.ndarray
    sum: float

    @property
    def reach(self) -> float:
        """The largest distance in A with a response that is not negligible."""
        matters = self.responses >= NEGLIGIBLE * self.responses[0]
        return float(self.distances[matters].max())

    @property
    def extent(self) -> float:
        """The largest distance in A with a response above the noise of finite differences."""
        there = self.responses >= 1e-6 * self.responses[0]
        return float(self.distances[there].max())

    def share_beyond(self, distance: float) -> float:
        """Share of the summed response of the other atoms that lies beyond a distance in A."""
        others = self.responses[1:]
        return float(others[self.distances[1:] > distance + 0.01].sum() / others.sum())

    def truncation_error(self, radius: float) -> float:
        """Share of the fluctuation of a force that comes from atoms beyond a radius in A.

        Assumes that the other atoms move at random and independently, so that squares add up.
        """
        squares = self.responses[1:] ** 2
        outside = squares[self.distances[1:] > radius].sum()
        # if no atom responds at all, nothing is missed
        return float(np.sqrt(outside / squares.sum())) if squares.any() else 0.0

    def decay(self) -> Decay | None:
        """The law that fits best; None if there are fewer than FEWEST_SHELLS shells to fit."""
        shells, place = np.unique(self.distances.round(2), return_inverse=True)
        strongest = np.zeros(len(shells))
        np.maximum.at(strongest, place, self.responses)
        inside = (shells >= FITTED_FROM) & (shells <= FITTED_SHARE * shells[-1])
        fitted = inside & (strongest > 1e-5 * self.responses[0])
        if fitted.sum() < FEWEST_SHELLS:
            return None
        logarithm = np.log(strongest[fitted])
        power, of_power = _line(np.log(shells[fitted]), logarithm)
        rate, of_rate = _line(shells[fitted], logarithm)
        return Decay(-power, -1 / rate, is_power=of_power <= of_rate)

    def __str__(self) -> str:
        parts = []
        for low, high in pairwise(SHELLS):
            inside = (self.distances > low) & (self.distances <= high)
            if inside.any():
                largest = self.responses[inside].max()
                parts.append(f"{largest:.2g} up to {high:g} A")
        return f"{self.responses[0]:.2g} eV/A^2 of its own, " + ", ".join(parts)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of the least-squares line through points, and the sum of squared residuals."""
    slope, height = np.polyfit(x, y, 1)
    return float(slope), float(np.square(y - slope * x - height).sum())


def response_of(calculator: Calculator, atoms: Atoms) -> Response:
    """Response to the motion of the first atom by central differences; NaN if a call fails."""
    columns = []
    for axis in range(3):
        forces = []
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.positions[0, axis] += sign * STEP
            forces.append(ask(calculator, moved).forces)
        columns.append(-(forces[1] - forces[0]) / (2 * STEP))
    matrices = np.stack(columns, axis=2)  # (N, 3, 3)

    _, distances = get_distances(
        atoms.positions[:1], atoms.positions, cell=atoms.cell, pbc=atoms.pbc
    )
    order = np.argsort(distances[0], kind="stable")
    finite = bool(np.isfinite(matrices).all())
    sizes = np.linalg.norm(matrices, ord=2, axis=(1, 2)) if finite else np.full(len(atoms), np.nan)
    total = np.abs(matrices.sum(axis=0)).max() / max(float(sizes[0]), 1e-9)
    return Response(distances[0][order], sizes[order], float(total))
