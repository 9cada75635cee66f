"""How much each kind of label counts in a refit, and how many features it uses.

Both are judged on structures that a fit has left out, as the prior is (prior.py).

Shapes: P unknowns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .design_rows import Unknowns
from .folds import ENERGY_LABELS, Fold
from .prior import PriorChoice, choose_prior


# Bounds of the estimated noise over the assumed one. The assumed noise contains the errors before
# the fit, so the estimate can only be lower.
NOISE_BOUNDS = (0.03, 1.0)
# Noise of the energies that is tried, over the estimated one. A structure has one energy and many
# forces, so the forces alone decide where the features cannot explain both.
ENERGY_FACTORS = (1.0, 0.3, 0.1)
# More features, or another weight of the energies, must lower the error by this share of it,
LEAST_GAIN = 0.01
# and in this share of the draws of the folds: one standard error of a normal distribution.
CONFIRMED = 0.84


@dataclass(frozen=True)
class LeastPrecision:
    """The prior of a refit before any label is seen. The folds may only make it stronger."""

    weights: float
    """Precision of each weight."""
    e0: np.ndarray
    """(Z,) precision of the E0 of each element, 1/eV^2."""

    def of(self, unknowns: Unknowns) -> np.ndarray:
        """The precision of all unknowns (P,)."""
        return unknowns.pattern(shared=self.weights, own=self.weights, e0=self.e0)


@dataclass(frozen=True)
class FitChoice:
    """The equations that are solved in the end, and what was chosen for them."""

    unknowns: Unknowns
    folds: list[Fold]
    """Divided by the estimated noise."""
    choice: PriorChoice
    factor: dict[str, float]
    """Estimated over assumed noise by label."""

    def is_better_than(self, other: FitChoice) -> bool:
        """Whether left-out structures confirm it: nearly all draws of them, and by enough."""
        gain = other.choice.scores() - self.choice.scores()  # (D,)
        often_enough = (gain > 0).mean() >= CONFIRMED
        return bool(often_enough and gain.mean() > LEAST_GAIN)


def with_estimated_noise(folds: list[Fold], unknowns: Unknowns, least: LeastPrecision) -> FitChoice:
    """The fit with the noise that its left-out structures show."""
    first = _choose_prior(folds, unknowns, least)

    # Errors are in units of the assumed noise. Where they are smaller, so is the noise.
    factor = {}
    for name in ENERGY_LABELS:
        error = first.held_out.get(name, 1.0)
        factor[name] = float(np.clip(error, *NOISE_BOUNDS))
    return _with_noise(folds, unknowns, least, factor)


def best_of_sizes(
    folds: list[Fold], unknowns: Unknowns, least: LeastPrecision, sizes: Sequence[int]
) -> FitChoice:
    """The fit with the number of features that does best on left-out structures.

    `sizes` are in growing order; a larger one has to be confirmed as better. With the chosen size,
    energies may count more than their noise says, if that is confirmed as better too.
    """
    best = None
    # of the best size, with the assumed noise
    folds_of_best = folds
    for size in sizes:
        folds_of_size = _first_features(folds, unknowns, size)
        found = with_estimated_noise(folds_of_size, replace(unknowns, size=size), least)
        if best is None or found.is_better_than(best):
            best = found
            folds_of_best = folds_of_size
    assert best is not None, "no size to choose from"

    if "energy" not in best.choice.held_out or "forces" not in best.choice.held_out:
        return best
    estimated = best.factor
    for energy_factor in ENERGY_FACTORS[1:]:
        factor = estimated | {"energy": energy_factor * estimated["energy"]}
        found = _with_noise(folds_of_best, best.unknowns, least, factor)
        if found.is_better_than(best):
            best = found
    return best


def _choose_prior(folds: list[Fold], unknowns: Unknowns, least: LeastPrecision) -> PriorChoice:
    return choose_prior(
        folds,
        unknowns.pattern(shared=1.0),
        unknowns.pattern(own=1.0),
        least.of(unknowns),
    )


def _with_noise(
    folds: list[Fold], unknowns: Unknowns, least: LeastPrecision, factor: dict[str, float]
) -> FitChoice:
    divided = [fold.divided_by_noise(factor) for fold in folds]
    return FitChoice(unknowns, divided, _choose_prior(divided, unknowns, least), factor)


def _first_features(folds: list[Fold], unknowns: Unknowns, size: int) -> list[Fold]:
    """The equations of the first `size` features of each block of weights, and of E0."""
    if size == unknowns.size:
        return folds
    in_block = np.arange(unknowns.size) < size
    num_blocks = 1 + len(unknowns.new_elements)
    of_e0 = np.ones(len(unknowns.elements), dtype=bool)
    kept = np.concatenate([np.tile(in_block, num_blocks), of_e0])
    return [fold.of_unknowns(kept) for fold in folds]
