"""The choice of the prior precision by cross-validation: how far the data may move the readout.

A fold contains whole structures. Generalised cross-validation would take the force components of
one structure for independent measurements, and was measured to overfit here (docs/decisions/0004).
Leaving out whole structures is exact, and costs only solves: the equations of all folds but one
are a difference of sums.

Few structures cannot tell which precision is best: other structures would favour another one. So
none is chosen. Instead the folds are weighted at random many times (the Bayesian bootstrap, Rubin
1981). Each draw votes for the precision with the lowest error, and the solutions are averaged by
their shares of the votes (pseudo-BMA+, Yao et al. 2018). One candidate leaves everything unchanged,
so the average is cautious where the folds disagree (docs/decisions/0033).

Shapes: P parameters, F folds, K candidate precisions, D draws of the folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .folds import ENERGY_LABELS, Fold
from .ridge import NormalEquations, posterior_covariance


# Labels that candidates are compared by: the geometric mean of their held-out errors. Data with
# neither are compared by the stress.
SCORED = ("energy", "forces")
# The label whose error must not rise. A structure has one energy and many forces, so a fit might
# sacrifice the energy to them.
GUARDED = "energy"
# eV/atom, eV/A, eV/A^3. Errors far below these all count as equally small.
LEAST_ERROR = {"energy": 1e-4, "forces": 1e-4, "stress": 1e-6}

# Precisions that are tried, in units of the mean diagonal of the matrix.
STRENGTHS = np.logspace(-8, 4, 25)
# Precision of the weights that all elements share, over that of the weights of a single element.
SHARED_RATIOS = (1.0, 10.0, 1e3, 1e12)
# A precision that leaves the weights as they are.
UNCHANGED = 1e20

# Draws of the folds that vote.
DRAWS = 200
# Scores that differ by less, relatively, are equal.
ROUNDING = 1e-9


@dataclass(frozen=True)
class FoldErrors:
    """Absolute errors of one label in folds that fits have not seen."""

    errors: np.ndarray
    """(K, F) weighted sums over the labels of each fold, for each candidate."""
    weights: np.ndarray
    """(F,) sums of the weights of the labels."""

    def of_draws(self) -> np.ndarray:
        """Mean absolute errors (D, K) of the draws of the folds."""
        generator = np.random.default_rng(0)
        draws = generator.dirichlet(np.ones(len(self.weights)), DRAWS)
        return (draws @ self.errors.T) / (draws @ self.weights)[:, None]


@dataclass(frozen=True)
class Mixture:
    """Ridge solutions of several precisions, averaged.

    The shares may add up to less than 1. The rest stands for no change at all.
    """

    precisions: np.ndarray
    """(K, P)"""
    shares: np.ndarray
    """(K,) positive; their sum is at most 1."""
    unchanged: np.ndarray
    """(P,) the precision that stands for no change."""

    def solutions(self, equations: NormalEquations) -> np.ndarray:
        """The solutions (K, P) that are averaged."""
        solutions = np.empty((len(self.shares), len(self.unchanged)))
        for index, precision in enumerate(self.precisions):
            solutions[index] = equations.solve(precision)
        return solutions

    def solve(self, equations: NormalEquations) -> np.ndarray:
        """The mean (P,) of the solutions, weighted by their shares."""
        return self.shares @ self.solutions(equations)

    def covariance(self, equations: NormalEquations) -> np.ndarray:
        """The covariance (P, P) of the mixture of posteriors.

        It is the mean of their covariances plus the scatter of their means.
        """
        solutions = self.solutions(equations)
        mean = self.shares @ solutions
        share_unchanged = 1 - self.shares.sum()
        total = share_unchanged * np.outer(mean, mean)
        if share_unchanged > 0:
            total += share_unchanged * posterior_covariance(equations.matrix, self.unchanged)
        for precision, share, solution in zip(self.precisions, self.shares, solutions, strict=True):
            deviation = solution - mean
            total += share * np.outer(deviation, deviation)
            total += share * posterior_covariance(equations.matrix, precision)
        return total


@dataclass(frozen=True)
class PriorChoice:
    """What the folds have chosen, and what it does on structures that the fit has not seen."""

    mixture: Mixture
    error_before: float
    """RMS error without a change, in units of the noise.

    Of the forces, if there are any, else of the first label that the data have.
    """
    error_after: float
    """The same with the mixture."""
    held_out: dict[str, float]
    """Label -> RMS error with the mixture, in units of the noise, for labels that the data have."""
    errors: dict[str, FoldErrors]
    """Label -> absolute errors with the mixture, in eV/atom, eV/A and eV/A^3."""

    def scores(self) -> np.ndarray:
        """(D,) logarithm of the geometric mean of the errors in each draw of the folds.

        Equally many folds are drawn in the same way, so choices can be compared draw by draw.
        """
        scored = _scored(self.errors)
        logarithms = [self.errors[name].of_draws()[:, 0] + LEAST_ERROR[name] for name in scored]
        return np.mean(np.log(logarithms), axis=0)


def choose_prior(
    folds: list[Fold], shared: np.ndarray, own: np.ndarray, fixed: np.ndarray
) -> PriorChoice:
    """The mixture of priors that left-out folds vote for.

    shared, own: (P,) masks, 1 on the weights that all elements share and on those of a single
    element. fixed: (P,) precision that is added to every candidate.

    A draw of the folds considers the candidates whose energies are not worse than without a change.
    It votes for the one with the lowest geometric mean of the mean absolute errors of energies and
    forces; of equal ones, for the strongest prior.
    """
    total = NormalEquations.total(fold.all for fold in folds)
    candidates = _candidates(total.matrix, shared, own, fixed)
    solutions = _solutions_without_each(folds, total, candidates)
    votes = _votes(folds, solutions, strengths=candidates[:, shared + own > 0].sum(1))

    # the last one leaves everything unchanged
    elected = np.flatnonzero(votes[:-1] > 0)
    mixture = Mixture(candidates[elected], votes[elected], candidates[-1])
    mean_solutions = np.tensordot(votes, solutions, axes=1)  # (F, P)

    rows = {name: sum(fold.equations[name].rows for fold in folds) for name in ENERGY_LABELS}
    present = [name for name in ENERGY_LABELS if rows[name]]
    before = _rms(folds, np.zeros_like(mean_solutions), rows)
    after = _rms(folds, mean_solutions, rows)
    first = "forces" if rows["forces"] else (present[0] if present else "forces")

    return PriorChoice(
        mixture=mixture,
        error_before=before[first],
        error_after=after[first],
        held_out={name: after[name] for name in present},
        errors=_absolute_errors(folds, mean_solutions[None]),
    )


def _candidates(
    matrix: np.ndarray, shared: np.ndarray, own: np.ndarray, fixed: np.ndarray
) -> np.ndarray:
    """The precisions (K, P) that are tried; the last leaves all weights unchanged."""
    is_weight = shared + own > 0
    matrix_of_weights = matrix[is_weight][:, is_weight]
    mean_diagonal = np.trace(matrix_of_weights) / max(1, is_weight.sum())
    # a matrix of zeros, without any label, has no unit of its own
    unit = mean_diagonal or 1.0

    # without weights of single elements, a ratio to them has no effect
    ratios = SHARED_RATIOS if own.any() else SHARED_RATIOS[:1]

    candidates = []
    for ratio in ratios:
        for strength in STRENGTHS:
            candidates.append(unit * strength * (own + ratio * shared) + fixed)
    candidates.append(UNCHANGED * unit * (own + shared) + fixed)
    return np.array(candidates)


def _solutions_without_each(
    folds: list[Fold], total: NormalEquations, candidates: np.ndarray
) -> np.ndarray:
    """Solutions (K, F, P) by fits to all folds but one; zero for the last candidate."""
    num_candidates, num_unknowns = candidates.shape
    solutions = np.zeros((num_candidates, len(folds), num_unknowns))
    for column, fold in enumerate(folds):
        all_other_folds = total - fold.all
        for row, precision in enumerate(candidates[:-1]):
            solutions[row, column] = all_other_folds.solve(precision)
    return solutions


def _votes(folds: Sequence[Fold], solutions: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """The share (K,) of the draws of the folds that find each candidate best."""
    errors = _absolute_errors(folds, solutions)
    score = np.zeros((DRAWS, len(solutions)))
    worse = np.zeros_like(score, dtype=bool)
    for name in _scored(errors):
        mean = errors[name].of_draws()
        score += np.log(mean + LEAST_ERROR[name])
        if name == GUARDED:
            worse = mean > mean[:, -1:] * (1 + ROUNDING)

    # the last candidate, no change, is never worse: each draw has something to vote for
    score[worse] = np.inf
    best = score.min(1, keepdims=True)
    equal = score <= best + ROUNDING
    chosen = np.where(equal, strengths, -np.inf).argmax(1)
    return np.bincount(chosen, minlength=len(solutions)) / DRAWS


def _scored(errors: dict[str, FoldErrors]) -> list[str]:
    """The labels that are compared."""
    return [name for name in SCORED if name in errors] or list(errors)


def _absolute_errors(folds: Sequence[Fold], solutions: np.ndarray) -> dict[str, FoldErrors]:
    """Label -> errors on each fold of the solutions (K, F, P) without it; no absent labels."""
    found = {}
    for name in ENERGY_LABELS:
        weights = np.array([fold.judging[name].weights.sum() for fold in folds])
        if not weights.any():
            continue
        errors = np.empty((len(solutions), len(folds)))
        for column, fold in enumerate(folds):
            errors[:, column] = fold.judging[name].absolute_error(solutions[:, column])
        found[name] = FoldErrors(errors, weights)
    return found


def _rms(folds: Sequence[Fold], solutions: np.ndarray, rows: dict[str, int]) -> dict[str, float]:
    """RMS errors over the noise by label, for the solutions (F, P) without each fold."""
    found = {}
    for name in ENERGY_LABELS:
        square = 0.0
        for fold, solution in zip(folds, solutions, strict=True):
            square += fold.equations[name].squared_error(solution)
        # the expanded square may come out slightly negative by rounding
        found[name] = float(np.sqrt(max(square, 0.0) / max(1, rows[name])))
    return found
