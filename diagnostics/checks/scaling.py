"""How the time of a call grows with the number of atoms, and from which size a model is cheaper.

The law is t(N) = fixed + factor * N^exponent. A speed is meaningful only together with an error, so
the error of the model's forces against each other potential is shown with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorError
from scipy.optimize import brentq, nnls

from ...data_pipelines.demo.oracles import GFN1_LEVEL, oracle_calculator
from ..check import (
    CheckedModel,
    CheckError,
    CheckResult,
    Figure,
    OtherCalculator,
    structure_argument,
)
from ..sanity.answers import ask


OURS = "this model"
MOST_ATOMS = 1e9  # a break-even beyond this number does not count
EXPONENTS = np.arange(0.5, 4.001, 0.01)
DISPLACEMENT = 0.02  # A, between calls
# Random displacement for the comparison of forces, in A, as at room temperature; and the number of
# structures that are compared.
COMPARED_AT = 0.1
COMPARED = 5


def check(
    model: CheckedModel,
    structure: Annotated[Atoms, structure_argument("periodic structure that is repeated")],
    doublings: Annotated[
        int, typer.Option(min=2, help="of the structure, along one axis after the other")
    ] = 4,
    xtb: Annotated[
        bool, typer.Option("--xtb", help="compare with GFN1-xTB, on clusters (extra `demo`)")
    ] = False,
    oracle: Annotated[
        str | None,
        typer.Option("--oracle", help="compare with a calculator of ASE, as module:name"),
    ] = None,
) -> CheckResult:
    """How the time of a call grows with the number of atoms, in processor seconds.

    Runs on one torch thread. Atoms move a little between calls, as in dynamics, so that neighbours
    are searched only now and then. --xtb and --oracle also show from how many atoms on the model is
    cheaper, and how far its forces are from the other calculator's on the smallest cell.

    Example: evenfield check scaling evenfield-s copper.cif --doublings 8 --level-of-theory EMT
    """
    import torch

    if structure.cell.rank < 3:
        raise CheckError(
            "the structure has no cell of three vectors",
            remedy="give a crystal, which can be repeated",
        )

    cells = doubled(structure, doublings)
    calculators = {OURS: model.calculator()}
    if oracle is not None:
        other = OtherCalculator(oracle, option="--oracle ")
        calculators[other.level] = other.calculator()
    if xtb:
        calculators[GFN1_LEVEL] = oracle_calculator(GFN1_LEVEL)
        for cell in cells:
            # with periodicity, tblite samples only the Gamma point, which is wrong for small cells
            cell.pbc = False
    # one thread, because the processor times of several threads would add up
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _compare(calculators, cells, doublings)
    finally:
        torch.set_num_threads(threads_before)


def _compare(calculators: dict[str, Calculator], cells: list[Atoms], doublings: int) -> CheckResult:
    """Times, cost laws, and the sizes from which the model is cheaper than other calculators."""
    sizes = [len(cell) for cell in cells]
    laws = {}
    figures = []
    lines = []
    for name, calculator in calculators.items():
        try:
            seconds = time_calls(calculator, cells)
        except CalculatorError as error:
            raise CheckError(
                f"{name} fails on the structure: {error}",
                remedy="give a crystal of closed-shell molecules",
            ) from None

        law = fit_cost(sizes, seconds)
        laws[name] = law
        for size, spent in zip(sizes, seconds, strict=True):
            figures.append(Figure(f"{name}, {size} atoms", spent, "s"))
            lines.append(
                f"{name}: {size:6} atoms {1e3 * spent:10.1f} ms, "
                f"{1e6 * spent / size:8.1f} us an atom"
            )

        figures.append(Figure(f"{name}, exponent", law.exponent, ""))
        lines.append(
            f"{name}: {1e3 * law.fixed:.1f} ms a call + "
            f"{1e6 * law.factor:.1f} us x atoms^{law.exponent:.2f}"
        )

    for name, calculator in calculators.items():
        if name == OURS:
            continue
        atoms_needed = break_even(laws[OURS], laws[name])
        if atoms_needed is None:
            verdict = "never"
        else:
            figures.append(Figure(f"break-even with {name}", atoms_needed, "atoms"))
            verdict = f"from {atoms_needed:.0f} atoms on"
            if atoms_needed > sizes[-1]:
                verdict += f", more than were timed: raise --doublings above {doublings} to see it"
        lines.append(f"cheaper than {name}: {verdict}")

        mean_error, typical = force_error(calculators[OURS], calculator, cells[0])
        figures.append(Figure(f"force MAE against {name}", mean_error, "eV/A"))
        lines.append(
            f"force MAE against {name}: {mean_error:.3f} eV/A, of forces of {typical:.3f} eV/A "
            f"(RMS), with atoms displaced by {COMPARED_AT:g} A"
        )
    return CheckResult(figures, lines)


def force_error(own: Calculator, other: Calculator, cell: Atoms) -> tuple[float, float]:
    """MAE of the force components of `own` against `other`, and RMS of the forces of `other`.

    Both in eV/A, over COMPARED structures with random displacements; NaN if a calculator fails.
    """
    rng = np.random.default_rng(1)
    errors = []
    squares = []
    for _ in range(COMPARED):
        moved = cell.copy()
        moved.positions += rng.normal(0, COMPARED_AT, cell.positions.shape)
        theirs = ask(other, moved).forces
        errors.append(np.abs(ask(own, moved).forces - theirs).mean())
        squares.append(np.square(theirs).mean())
    return float(np.mean(errors)), float(np.sqrt(np.mean(squares)))


def doubled(atoms: Atoms, doublings: int) -> list[Atoms]:
    """The structure and its supercells, each twice as large as the one before.

    They are doubled along x, y and z in turn.
    """
    cells = []
    for count in range(doublings + 1):
        # x is doubled at the 1st, 4th, ... count, y at the 2nd, z at the 3rd
        repeats = [2 ** ((count + 2 - axis) // 3) for axis in range(3)]
        cells.append(atoms * repeats)
    return cells


@dataclass(frozen=True)
class CostLaw:
    """The cost law: seconds = fixed + factor * atoms^exponent."""

    fixed: float
    factor: float
    exponent: float

    def seconds(self, atoms: float) -> float:
        """Time of one call in seconds."""
        return self.fixed + self.factor * atoms**self.exponent


def fit_cost(atoms: Sequence[int], seconds: Sequence[float]) -> CostLaw:
    """Fit the cost law to measured times, by least squares of the relative errors.

    For each exponent on a grid, `fixed` and `factor` follow from a non-negative linear fit.

    Raises:
        CheckError: fewer than three sizes, which cannot determine three numbers.
    """
    if len(set(atoms)) < 3:
        raise CheckError("atoms: a law of cost needs at least three sizes")
    size = np.asarray(atoms, float)
    measured = np.asarray(seconds, float)

    def fit(exponent: float) -> tuple[float, np.ndarray]:
        """Residual and coefficients of the best law with this exponent."""
        columns = np.stack([np.ones_like(size), size**exponent], 1)
        # divided by the measured times, so that the residual is relative
        terms = columns / measured[:, None]
        # scaled, because the columns differ by many orders of magnitude
        scale = terms.max(0)
        weights, residual = nnls(terms / scale, np.ones_like(size))
        return float(residual), weights / scale

    best = min(EXPONENTS, key=lambda exponent: fit(exponent)[0])
    _, (fixed, factor) = fit(best)
    return CostLaw(float(fixed), float(factor), round(float(best), 2))


def break_even(ours: CostLaw, other: CostLaw) -> float | None:
    """Number of atoms from which on `ours` is cheaper than `other`.

    1 if it always is. None if it is not at MOST_ATOMS atoms.
    """

    def lead(log_atoms: float) -> float:
        """Logarithm of the ratio of times, other / ours; negative if ours is more expensive."""
        atoms = np.exp(log_atoms)
        theirs = np.log(other.seconds(atoms))
        return theirs - np.log(ours.seconds(atoms))

    grid = np.linspace(0.0, np.log(MOST_ATOMS), 400)
    leads = np.array([lead(log_atoms) for log_atoms in grid])
    # not cheaper even at the largest size that counts
    if leads[-1] <= 0:
        return None
    behind = np.flatnonzero(leads <= 0)
    if not len(behind):
        return 1.0

    # the lead changes its sign for the last time between these two sizes
    last = behind[-1]
    crossing = brentq(lead, grid[last], grid[last + 1])
    return float(np.exp(crossing))


def time_calls(
    calculator: Calculator,
    cells: Sequence[Atoms],
    rounds: int = 5,
    clock: Callable[[], float] = time.process_time,
) -> list[float]:
    """Median time of energy and forces in seconds, for each cell.

    Every atom moves by about 0.02 A before each call, as it would in dynamics. The first call is
    not counted.
    """
    rng = np.random.default_rng(0)
    medians = []
    for cell in cells:
        samples = []
        atoms = cell.copy()
        atoms.calc = calculator
        for _ in range(rounds + 1):
            # new positions each time, because calculators cache the result for the last structure
            moves = rng.normal(0, DISPLACEMENT, cell.positions.shape)
            atoms.positions = cell.positions + moves

            started = clock()
            atoms.get_forces()
            spent = clock() - started
            samples.append(spent)

        # the first call of a size may include a set-up
        medians.append(float(np.median(samples[1:])))
    return medians
