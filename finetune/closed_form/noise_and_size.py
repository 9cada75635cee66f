"""How much each kind of label counts in a refit, and how many features it uses.

Both are judged on structures that a fit has left out, as the prior is (prior.py).

Shapes: P unknowns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .design_rows import Unknowns
from .prior import ENERGY_LABELS, Fold, PriorChoice, choose_prior
from .ridge import NormalEquations


# Bounds of the estimated noise over the assumed one. The assumed noise contains the errors before
# the fit, so the estimate can only be lower.
NOISE_BOUNDS = (0.03, 1.0)
# Noise of the energies over the estimated one. A structure has one energy and many forces, so that
# the forces decide alone where features cannot explain both.
ENERGY_FACTORS = (1.0, 0.3, 0.1)
# What a further feature or another weight of the energies has to gain, as a part of the error.
LEAST_GAIN = 0.01


@dataclass(frozen=True)
class FitChoice:
    """The equations that are solved in the end, and what was chosen for them."""

    unknowns: Unknowns
    folds: list[Fold]
    """Over the estimated noise."""
    choice: PriorChoice
    factor: dict[str, float]
    """Estimated over assumed noise by label."""

    @property
    def error(self) -> float:
        """Geometric mean of the errors of energies and forces that were left out.

        In units of the assumed noise, which is the same for all that are compared.
        """
        logarithms = []
        for name in ("energy", "forces"):
            if name in self.choice.held_out:
                error = self.choice.held_out[name] * self.factor[name]
                logarithms.append(np.log(max(error, 1e-300)))
        return float(np.exp(np.mean(logarithms))) if logarithms else 1.0


def with_estimated_noise(folds: list[Fold], unknowns: Unknowns, reference: np.ndarray) -> FitChoice:
    """The fit with the noise that its left-out structures show; `reference` is E0's precision."""
    first = _choose_prior(folds, unknowns, reference)

    # Errors are in units of the assumed noise. Where they are smaller, so is the noise.
    factor = {}
    for name in ENERGY_LABELS:
        error = first.held_out.get(name, 1.0)
        factor[name] = float(np.clip(error, *NOISE_BOUNDS))
    return _with_noise(folds, unknowns, reference, factor)


def best_of_sizes(
    folds: list[Fold], unknowns: Unknowns, reference: np.ndarray, sizes: Sequence[int]
) -> FitChoice:
    """The number of features with the smallest error on left-out structures, and its fit.

    `sizes` are in growing order. A larger one has to be better by LEAST_GAIN. For the chosen one,
    energies may count more than their noise says, if that lowers the error as well.
    """
    best = None
    unscaled = folds
    for size in sizes:
        own = replace(unknowns, size=size)
        own_folds = _first_features(folds, unknowns, size)
        found = with_estimated_noise(own_folds, own, reference)
        if best is None or found.error < (1 - LEAST_GAIN) * best.error:
            best = found
            unscaled = own_folds
    assert best is not None, "no size to choose from"

    if "energy" not in best.choice.held_out or "forces" not in best.choice.held_out:
        return best
    estimated = best.factor
    for energy_factor in ENERGY_FACTORS[1:]:
        factor = estimated | {"energy": energy_factor * estimated["energy"]}
        found = _with_noise(unscaled, best.unknowns, reference, factor)
        if found.error < (1 - LEAST_GAIN) * best.error:
            best = found
    return best


def _choose_prior(folds: list[Fold], unknowns: Unknowns, reference: np.ndarray) -> PriorChoice:
    return choose_prior(
        folds,
        unknowns.pattern(shared=1.0),
        unknowns.pattern(own=1.0),
        unknowns.pattern(e0=reference),
    )


def _with_noise(
    folds: list[Fold], unknowns: Unknowns, reference: np.ndarray, factor: dict[str, float]
) -> FitChoice:
    divided = [fold.divided_by_noise(factor) for fold in folds]
    return FitChoice(unknowns, divided, _choose_prior(divided, unknowns, reference), factor)


def _first_features(folds: list[Fold], unknowns: Unknowns, size: int) -> list[Fold]:
    """The equations of the first `size` features of each block of weights, and of E0."""
    if size == unknowns.size:
        return folds
    in_block = np.arange(unknowns.size) < size
    blocks = 1 + len(unknowns.new_elements)
    of_e0 = np.ones(len(unknowns.elements), dtype=bool)
    kept = np.concatenate([np.tile(in_block, blocks), of_e0])

    smaller = []
    for fold in folds:
        equations = {}
        for name, whole in fold.equations.items():
            equations[name] = NormalEquations(
                matrix=whole.matrix[np.ix_(kept, kept)],
                moment=whole.moment[kept],
                square=whole.square,
                rows=whole.rows,
            )
        smaller.append(Fold(equations))
    return smaller
