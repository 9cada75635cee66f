"""How far a potential looks: what the energies of other atoms feel when one atom moves.

A network of n layers cannot see further than its receptive field of n cutoffs. How far it does look
is decided by training.
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

# Below these a response is rounding: in eV/A for all atoms, and relative to the largest for one.
NO_RESPONSE = 1e-9
RELATIVE_ROUNDING = 1e-9


def check(
    model: CheckedModel,
    structure: Annotated[Atoms, structure_argument("structure in any file that ASE reads")],
    index: Annotated[int, typer.Option(help="the atom that moves, counted from 0")] = 0,
) -> CheckResult:
    """How far the model looks: what the energies of other atoms feel when one of them moves.

    A crystal is repeated until no atom can feel two images of the one that moves.

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

    # twice the reach: the moved atom and its image must not be felt by the same atom
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
    """The response of all other atoms to one that moves.

    distance: (N - 1,) in A from the atom that moves.
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

        # the response of all atoms up to each distance; its last entry is that of all
        total = np.cumsum(response**2)
        last_needed = np.searchsorted(total, SHARE * total[-1])
        return float(distance[last_needed])

    @property
    def largest(self) -> float:
        """Distance in A of the farthest atom that feels more than rounding."""
        rounding = RELATIVE_ROUNDING * self.response.max()
        felt = self.response > rounding
        return float(self.distance[felt].max())

    def shells(self, width: float) -> list[tuple[float, float]]:
        """The end in A of each shell of this width, and its share of the squared response."""
        shell = np.ceil(self.distance / width).astype(int)
        squared = self.response**2
        shares = np.bincount(shell, squared) / squared.sum()

        # shell 0 holds distance 0 only: the atom itself, which is not in the arrays
        shells = []
        for number, share in enumerate(shares):
            if number > 0:
                shells.append((width * number, float(share)))
        return shells


def measure_reach(calculator: Calculator, atoms: Atoms, index: int = 0) -> Reach:
    """What the energy of each other atom feels of atom `index`.

    The calculator works in float64 and has the property `energies`. The images of the atom move
    with it, so a cell has to be thicker than twice the reach.

    Raises:
        CheckError: the calculator gives no energies of atoms, or no other atom feels anything.
    """
    if "energies" not in calculator.implemented_properties:
        name = type(calculator).__name__
        raise CheckError(f"{name} gives no energies of single atoms, which reach is read from")

    response = np.zeros((len(atoms), 3))
    for axis in range(3):
        forward = _energies(calculator, atoms, index, axis, STEP)
        backward = _energies(calculator, atoms, index, axis, -STEP)
        response[:, axis] = (forward - backward) / (2 * STEP)

    # the atom's own energy changes too, but that is no reach
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
    """The energies of all atoms (N,) in eV after one of them has moved."""
    moved = atoms.copy()
    moved.positions[index, axis] += step
    moved.calc = calculator
    # a copy, because a calculator may reuse its array of results
    energies = moved.get_potential_energies()
    return np.array(energies)


def _repeated(atoms: Atoms, thickness: float) -> Atoms:
    """Repeat along periodic directions up to this thickness in A.

    The first copy keeps its indices.
    """
    # the module of neighbour lists brings in torch, which the help of the command does not need
    from ...data_pipelines.neighbours import cell_heights

    repeats = [1, 1, 1]
    heights = cell_heights(atoms.cell.array)
    for axis, height in enumerate(heights):
        if atoms.pbc[axis] and height > 0:
            repeats[axis] = math.ceil(thickness / height)
    return atoms * repeats
