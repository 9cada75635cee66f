"""How far a potential looks: what the energies of single atoms feel of one atom that moves, over distance.

A network of n layers cannot see further than n cutoffs; how far it does look, training decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator


STEP = 1e-3  # A, central differences
SHARE = 0.99  # of the squared response
NOTHING = 1e-9  # eV/A: below it there is rounding alone


@dataclass(frozen=True)
class Reach:
    """Of the other atoms: distance (N - 1,) in A from the one that moved, and response |dE_j / dr_i| in eV/A."""

    distance: np.ndarray
    response: np.ndarray

    @property
    def effective(self) -> float:
        """Distance in A within which 99 % of the squared response lies."""
        order = np.argsort(self.distance)
        total = np.cumsum(self.response[order] ** 2)
        return float(self.distance[order][np.searchsorted(total, SHARE * total[-1])])

    @property
    def largest(self) -> float:
        """Distance in A of the farthest atom that feels more than rounding."""
        return float(self.distance[self.response > 1e-9 * self.response.max()].max())

    def shells(self, width: float) -> list[tuple[float, float]]:
        """End in A of each shell of this width, and its share of the response squared."""
        shell, squared = np.ceil(self.distance / width).astype(int), self.response**2
        shares = np.bincount(shell, squared) / squared.sum()
        return [(width * number, float(share)) for number, share in enumerate(shares) if number]


def measure_reach(calculator: Calculator, atoms: Atoms, index: int = 0) -> Reach:
    """What each other atom's energy feels of atom `index`; needs float64 and a calculator with the property `energies`.

    The images of the atom move with it: a cell has to be thicker than twice the reach. ValueError if nothing is felt.
    """
    if "energies" not in calculator.implemented_properties:
        raise ValueError(
            f"{type(calculator).__name__} gives no energies of single atoms, which reach is read from"
        )
    response = np.zeros((len(atoms), 3))
    for axis in range(3):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[index, axis] += sign * STEP
            moved.calc = calculator
            ends.append(np.array(moved.get_potential_energies()))
        response[:, axis] = (ends[0] - ends[1]) / (2 * STEP)
    others = np.delete(np.arange(len(atoms)), index)
    size = np.linalg.norm(response[others], axis=1)
    if not size.max(initial=0.0) > NOTHING:
        raise ValueError(
            f"no other atom's energy feels atom {index}: there is none near, or symmetry forbids it"
        )
    return Reach(atoms.get_distances(index, others, mic=True), size)
