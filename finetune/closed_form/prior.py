"""The choice of the prior precision by cross-validation: how far the data may move the readout.

A fold contains whole structures. Generalised cross-validation would take the force components of
one structure for independent measurements, and was measured to overfit here (docs/decisions/0004).
Leaving out whole structures is exact, and costs only solves: the equations of all folds but one
are a difference of sums.

Shapes: P parameters, F folds, K candidate precisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from .ridge import NormalEquations


# The labels that are linear in the weights of the energy readout.
ENERGY_LABELS = ("energy", "forces", "stress")
# The label whose held-out error is compared: the first of these that the data have. Energies do not
# come first, because they also test the E0 of elements that no other structure may contain.
SCORED_FIRST = ("forces", "energy", "stress")
# Labels whose held-out error must not rise.
GUARDED = ("energy", "stress")

# Strengths that are tried, in units of the mean diagonal of the matrix.
STRENGTHS = np.logspace(-8, 4, 25)
# Precision of weights that all elements share, over that of weights of a single element.
SHARED_RATIOS = (1.0, 10.0, 1e3, 1e12)
# A precision that leaves the weights as they are.
UNCHANGED = 1e20

# Standard errors by which a guarded error may rise before a precision is refused.
VETO = 2.0
# The part of a normal distribution below plus one standard error. For few folds Student's t tells
# how wide that is.
ONE_STANDARD_ERROR = 0.8413


@dataclass
class Fold:
    """Normal equations of some structures, one for each label: each label has its own noise."""

    equations: dict[str, NormalEquations]

    @classmethod
    def empty(cls, size: int) -> Fold:
        """No rows yet, for `size` parameters."""
        return cls({name: NormalEquations.empty(size) for name in ENERGY_LABELS})

    @property
    def all(self) -> NormalEquations:
        """All labels together."""
        return NormalEquations.total(self.equations.values())

    def divided_by_noise(self, noise: dict[str, float]) -> Fold:
        """Each label divided by its noise."""
        divided = {}
        for name, equations in self.equations.items():
            divided[name] = equations.divided_by_noise(noise[name])
        return Fold(divided)


@dataclass(frozen=True)
class PriorChoice:
    """The chosen precision, and what it does on structures that the fit has not seen."""

    precision: np.ndarray
    """(P,)"""
    error_before: float
    """RMS error of the scored label without a change, in units of its noise."""
    error_after: float
    """The same with the chosen precision."""
    held_out: dict[str, float]
    """RMS error with the chosen precision by label, for those that the data have."""


def choose_prior(
    folds: list[Fold], shared: np.ndarray, own: np.ndarray, fixed: np.ndarray
) -> PriorChoice:
    """The strongest prior toward the pretrained weights that is as good as any on left-out folds.

    `shared` and `own` (P,) are 1 on the weights that all elements use and on those of single
    elements; `fixed` (P,) is added as it is.

    As good as any: the paired difference of errors to the best candidate, summed over the folds, is
    within one standard error (the one-standard-error rule of Breiman et al. 1984), and no guarded
    error is above that of unchanged weights by more than VETO standard errors.
    """
    total = NormalEquations.total(fold.all for fold in folds)
    candidates = _candidates(total.matrix, shared, own, fixed)
    unchanged = len(candidates) - 1
    errors = _held_out_errors(folds, total, candidates)

    rows = {}
    for name in ENERGY_LABELS:
        rows[name] = sum(fold.equations[name].rows for fold in folds)
    present = [name for name in SCORED_FIRST if rows[name]]
    scored = present[0] if present else SCORED_FIRST[0]

    harmless = np.ones(len(candidates), dtype=bool)
    for name in GUARDED:
        rise = _excess(errors[name], errors[name][unchanged], VETO)
        harmless &= rise <= 0

    # `unchanged` is always harmless, so there is a best one
    score = errors[scored]
    score_of_harmless = score[harmless]
    best = np.argmin(score_of_harmless.sum(1))
    as_good = _excess(score, score_of_harmless[best]) <= 0
    allowed = np.flatnonzero(harmless & as_good)

    # Of precisions that the folds cannot tell apart, the strongest changes the model least.
    weights = shared + own > 0
    chosen = max(allowed, key=lambda index: candidates[index][weights].sum())

    rms = {}
    for name in ENERGY_LABELS:
        # expanding a square can leave a sum that is negative by rounding
        squares = np.maximum(errors[name].sum(1), 0.0)
        rms[name] = np.sqrt(squares / max(1, rows[name]))
    return PriorChoice(
        precision=candidates[chosen],
        error_before=float(rms[scored][unchanged]),
        error_after=float(rms[scored][chosen]),
        held_out={name: float(rms[name][chosen]) for name in ENERGY_LABELS if rows[name]},
    )


def _candidates(
    matrix: np.ndarray, shared: np.ndarray, own: np.ndarray, fixed: np.ndarray
) -> list[np.ndarray]:
    """The precisions (P,) that are tried; the last leaves all weights unchanged."""
    weights = shared + own > 0
    matrix_of_weights = matrix[weights][:, weights]
    mean_diagonal = np.trace(matrix_of_weights) / max(1, weights.sum())
    # a matrix of zeros, without any label, has no unit of its own
    unit = mean_diagonal or 1.0

    # without weights of single elements, a ratio to them has no effect
    ratios = SHARED_RATIOS if own.any() else SHARED_RATIOS[:1]

    candidates = []
    for ratio in ratios:
        for strength in STRENGTHS:
            candidates.append(unit * strength * (own + ratio * shared) + fixed)
    candidates.append(UNCHANGED * unit * (own + shared) + fixed)
    return candidates


def _held_out_errors(
    folds: list[Fold], total: NormalEquations, candidates: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """Squared errors (K, F) of each label, summed over every fold, by a fit to all other folds."""
    errors = {name: np.empty((len(candidates), len(folds))) for name in ENERGY_LABELS}
    for row, precision in enumerate(candidates):
        for column, fold in enumerate(folds):
            all_other_folds = total - fold.all
            solution = all_other_folds.solve(precision)
            for name, equations in fold.equations.items():
                errors[name][row, column] = equations.squared_error(solution)
    return errors


def _excess(errors: np.ndarray, reference: np.ndarray, standard_errors: float = 1.0) -> np.ndarray:
    """How far sums over folds of `errors` (K, F) are above that of `reference` (F,), as (K,).

    `standard_errors` of the paired difference are subtracted. With few folds a standard error is
    itself uncertain: Student's t makes it as wide as necessary.
    """
    difference = errors - reference
    num_folds = errors.shape[1]
    if num_folds < 2:
        # a single fold has no spread
        return difference.sum(1)

    quantile = student.ppf(ONE_STANDARD_ERROR, num_folds - 1)
    spread = difference.std(axis=1, ddof=1)
    # the standard error of a sum over folds grows with their root
    width = quantile * spread * np.sqrt(num_folds)
    return difference.sum(1) - standard_errors * width
