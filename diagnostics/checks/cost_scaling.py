"""How the time of a call grows with the number of atoms, and from how many atoms on one potential beats another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from scipy.optimize import brentq, nnls


MOST_ATOMS = 1e9  # a break-even beyond it is none


@dataclass(frozen=True)
class CostLaw:
    """seconds = fixed + factor * atoms^exponent, by least squares of the relative errors."""

    fixed: float
    factor: float
    exponent: float

    def seconds(self, atoms: float) -> float:
        return self.fixed + self.factor * atoms**self.exponent


def fit_cost(atoms: Sequence[int], seconds: Sequence[float]) -> CostLaw:
    """The law of measured times; ValueError below three sizes, which three numbers need."""
    if len(set(atoms)) < 3:
        raise ValueError("atoms: a law of cost needs three sizes at least")
    size, wanted = np.asarray(atoms, float), np.asarray(seconds, float)

    def fit(exponent: float) -> tuple[float, np.ndarray]:
        terms = np.stack([np.ones_like(size), size**exponent], 1) / wanted[:, None]
        scale = terms.max(0)
        weights, residual = nnls(terms / scale, np.ones_like(size))
        return float(residual), weights / scale

    best = min(np.arange(0.5, 4.001, 0.01), key=lambda exponent: fit(exponent)[0])
    fixed, factor = fit(best)[1]
    return CostLaw(float(fixed), float(factor), round(float(best), 2))


def break_even(ours: CostLaw, other: CostLaw) -> float | None:
    """Number of atoms from which `ours` is the cheaper one for good; 1 if it always is, None if it never is."""

    def lead(log_atoms: float) -> float:
        return np.log(other.seconds(np.exp(log_atoms))) - np.log(ours.seconds(np.exp(log_atoms)))

    grid = np.linspace(0.0, np.log(MOST_ATOMS), 400)
    leads = np.array([lead(x) for x in grid])
    if leads[-1] <= 0:
        return None
    behind = np.flatnonzero(leads <= 0)
    return (
        float(np.exp(brentq(lead, grid[behind[-1]], grid[behind[-1] + 1]))) if len(behind) else 1.0
    )


def time_calls(
    calculator: Calculator,
    cells: Sequence[Atoms],
    rounds: int = 5,
    clock: Callable[[], float] = time.process_time,
) -> list[float]:
    """Median seconds of energy and forces for each cell; every atom moves by some 0.02 A before every call."""
    rng, medians = np.random.default_rng(0), []
    for cell in cells:
        samples, atoms = [], cell.copy()
        atoms.calc = calculator
        for _ in range(rounds + 1):
            atoms.positions = cell.positions + rng.normal(0, 0.02, cell.positions.shape)
            started = clock()
            atoms.get_forces()
            samples.append(clock() - started)
        medians.append(float(np.median(samples[1:])))  # the first call of a size may have to set up
    return medians
