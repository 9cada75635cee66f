"""How far a potential looks: how the energies of other atoms change when one atom moves.

A network of n layers cannot see beyond its receptive field of n cutoffs. How far it actually looks
depends on its training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from ase import Atoms
from ase.calculators.calculator import Calculator

from ..check import CheckedModel, CheckError, CheckResult, Figure, structure_argument


STEP = 1e-3  # A, of central differences
SHARE = 0.99  # of the squared response, for the effective reach

# Smaller responses are rounding: NO_RESPONSE (eV/A) bounds the largest response of all atoms, and
# RELATIVE_ROUNDING, relative to the largest response, that of a single atom.
NO_RESPONSE = 1e-9
RELATIVE_ROUNDING = 1e-9


def check(
    model: CheckedModel,
    structure: Annotated[Atoms, structure_argument("structure in any file that ASE reads")],
    index: Annotated[int, typer.Option(help="the atom that moves, counted from 0")] = 0,
) -> CheckResult:
    """How far the model looks: response of atomic energies to the motion of one atom.

    A crystal is repeated until no atom is within reach of two images of the moving atom.

    Example: evenfield check reach evenfield-s copper.cif --level-of-theory EMT
    """
    if not 0 <= index < len(structure) or len(structure) < 2:
        raise CheckError(
            f"--index {index}: the structure has {len(structure)} atoms",
            remedy="name one of them, in a structure that has others too",
        )

    potential = model.loaded.potential
    cutoff = potential.cutoff
    receptive_field = potential.backbone.receptive_field

    # twice the receptive field: no atom may be within reach of the moved atom and of its image
    large = _repeated(structure, 2 * receptive_field)
    calculator = model.calculator("float64")
    reach = measure_reach(calculator, large, index)

    figures = [
        Figure("distance with 99 % of the squared response", reach.effective, "A"),
        Figure("largest distance with a response", reach.largest, "A"),
        Figure("receptive field", receptive_field, "A"),
    ]
    lines = []
    for end, share in reach.shells(cutoff):
        start = end - cutoff
        name = f"squared response from {start:g} to {end:g} A"
        figures.append(Figure(name, share, ""))
        lines.append(f"{start:5.1f} to {end:5.1f} A: {100 * share:9.5f} % of the squared response")
    lines.append(
        f"99 % within {reach.effective:.1f} A, none beyond {reach.largest:.1f} A; "
        f"with a cutoff of {cutoff:g} A this network cannot see beyond {receptive_field:g} A"
    )
    return CheckResult(figures, lines)


@dataclass(frozen=True)
class Reach:
    """The response of all other atoms to the motion of one atom.

    distance: (N - 1,) in A from the moving atom.
    response: (N - 1,) in eV/A, |dE_j / dr_i| of atom j to a move of atom i.
    """

    distance: np.ndarray
    response: np.ndarray

    @property
    def effective(self) -> float:
        """Distance in A within which 99 % of the squared response lies."""
        order = np.argsort(self.distance)
        distance = self.distance[order]
        response = self.response[order]

        # cumulative squared response up to each distance; the last entry is the total
        total = np.cumsum(response**2)
        last_needed = np.searchsorted(total, SHARE * total[-1])
        return float(distance[last_needed])

    @property
    def largest(self) -> float:
        """Distance in A of the farthest atom with a response above rounding."""
        rounding = RELATIVE_ROUNDING * self.response.max()
        felt = self.response > rounding
        return float(self.distance[felt].max())

    def shells(self, width: float) -> list[tuple[float, float]]:
        """Outer radius in A of each shell of this width, and its share of the squared response."""
        shell = np.ceil(self.distance / width).astype(int)
        squared = self.response**2
        shares = np.bincount(shell, squared) / squared.sum()

        # shell 0 would be the moving atom itself, which is not in the arrays
        shells = []
        for number, share in enumerate(shares):
            if number > 0:
                shells.append((width * number, float(share)))
        return shells


def measure_reach(calculator: Calculator, atoms: Atoms, index: int = 0) -> Reach:
    """The response of the energy of each other atom to the motion of atom `index`.

    The calculator must work in float64 and have the property `energies`. Periodic images of the
    atom move with it, so the cell has to be thicker than twice the reach.

    Raises:
        CheckError: the calculator gives no energies of atoms, or no other atom responds.
    """
    if "energies" not in calculator.implemented_properties:
        name = type(calculator).__name__
        raise CheckError(f"{name} gives no energies of single atoms, which reach is read from")

    response = np.zeros((len(atoms), 3))
    for axis in range(3):
        forward = _energies(calculator, atoms, index, axis, STEP)
        backward = _energies(calculator, atoms, index, axis, -STEP)
        response[:, axis] = (forward - backward) / (2 * STEP)

    # leave out the moving atom, whose own energy changes too
    everyone = np.arange(len(atoms))
    others = np.delete(everyone, index)
    size = np.linalg.norm(response[others], axis=1)
    # `not >` also catches NaN
    if not size.max(initial=0.0) > NO_RESPONSE:
        raise CheckError(
            f"no other atom's energy feels atom {index}: "
            "none is near enough, or symmetry forbids a response"
        )
    distance = atoms.get_distances(index, others, mic=True)
    return Reach(distance, size)


def _energies(
    calculator: Calculator, atoms: Atoms, index: int, axis: int, step: float
) -> np.ndarray:
    """The energies of all atoms (N,) in eV after one of them has moved by `step` A along `axis`."""
    moved = atoms.copy()
    moved.positions[index, axis] += step
    moved.calc = calculator
    # a copy, because a calculator may reuse its array of results
    energies = moved.get_potential_energies()
    return np.array(energies)


def _repeated(atoms: Atoms, thickness: float) -> Atoms:
    """Repeat along periodic directions up to at least this thickness in A.

    The atoms of the first copy keep their indices.
    """
    # imported here, because it imports torch, which the help of the command does not need
    from ...data_pipelines.neighbours import cell_heights

    repeats = [1, 1, 1]
    heights = cell_heights(atoms.cell.array)
    for axis, height in enumerate(heights):
        if atoms.pbc[axis] and height > 0:
            repeats[axis] = math.ceil(thickness / height)
    return atoms * repeats
