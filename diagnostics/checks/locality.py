"""How far does a push reach, and does it reach as far as it should?

One atom of a crystal is moved, and the forces on all others change:

    response_ij = -dF_i/dr_j, its largest singular value, over the distance of i and j

A potential with a cutoff answers nothing beyond its receptive field, whatever nature does there. An
oracle shows what is missing: in metals the response dies within two shells, in salts it falls off
slowly. The responses to one atom sum to zero, because a push on all atoms at once changes nothing.
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


# Cubic crystals with their lattice parameters in A, and how many cubes lie along an edge.
CRYSTALS: dict[str, tuple[str, float, int]] = {
    "Cu": ("fcc", 3.61, 3),
    "Al": ("fcc", 4.05, 3),
    "Si": ("diamond", 5.43, 2),
    "NaCl": ("rocksalt", 5.64, 2),
    "MgO": ("rocksalt", 4.21, 3),
}
QUICK = ("Cu", "Si", "NaCl")

STEP = 0.01  # A
SHELLS = np.array([0.5, 3.2, 4.5, 6.0, 8.0])  # A, bounds between which the largest is reported
# Largest sum of all responses over the response of an atom to itself.
SUM = 1e-4
# A response that is smaller than this share of the atom's own does not matter.
NEGLIGIBLE = 0.01
# Largest share of the oracle's response, summed over atoms, that lies where the potential has none.
MISSED = 0.1


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """The response of forces to the motion of one atom, over the distance; beside an oracle.

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
        if oracle is None:
            continue

        theirs = response_of(oracle, atoms)
        curves[f"{name}, oracle"] = (theirs.distances[1:], theirs.responses[1:])
        missed = theirs.share_beyond(own.extent)
        lines.append(f"{name}, oracle: {theirs}; {100 * missed:.1f} % beyond {own.extent:.1f} A")
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


@dataclass(frozen=True)
class Response:
    """How the forces of a crystal change when its first atom moves.

    distances: (N,) A, ascending, the atom itself first. responses: (N,) eV/A^2.
    sum: of all changes, relative to the atom's own.
    """

    distances: np.ndarray
    responses: np.ndarray
    sum: float

    @property
    def reach(self) -> float:
        """The largest distance in A with a response that matters."""
        matters = self.responses >= NEGLIGIBLE * self.responses[0]
        return float(self.distances[matters].max())

    @property
    def extent(self) -> float:
        """The largest distance in A with any response beyond the noise of finite differences."""
        there = self.responses >= 1e-6 * self.responses[0]
        return float(self.distances[there].max())

    def share_beyond(self, distance: float) -> float:
        """Share of the response of the other atoms that lies beyond a distance in A."""
        others = self.responses[1:]
        return float(others[self.distances[1:] > distance + 0.01].sum() / others.sum())

    def __str__(self) -> str:
        parts = []
        for low, high in pairwise(SHELLS):
            inside = (self.distances > low) & (self.distances <= high)
            if inside.any():
                largest = self.responses[inside].max()
                parts.append(f"{largest:.2g} up to {high:g} A")
        return f"{self.responses[0]:.2g} eV/A^2 of its own, " + ", ".join(parts)


def response_of(calculator: Calculator, atoms: Atoms) -> Response:
    """Move the first atom along each axis; NaN where the calculator fails."""
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
