"""Ridge regression by normal equations: sums over rows, the solution and its covariance.

The problem is min_x |A x - y|^2 + sum_p precision_p x_p^2, where rows A and targets y are divided
by the noise of the labels. In the language of Bayes, x has a Gaussian prior around zero with the
given precision, the solution is the mean of the posterior, and (A^T A + diag(precision))^-1 its
covariance (Bishop, Pattern Recognition and Machine Learning, section 3.3).

Shapes: P parameters, R rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve


# Columns are the directions that the labels determine (P, D), their eigenvalues (D,), and the
# directions that they leave open (P, P - D).
Directions = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass
class NormalEquations:
    """The normal equations of a least-squares problem. All are sums over rows, so they add up."""

    matrix: np.ndarray
    """A^T A, (P, P)"""
    moment: np.ndarray
    """A^T y, (P,)"""
    square: float = 0.0
    """y^T y"""
    rows: int = 0
    """R"""

    @classmethod
    def empty(cls, size: int) -> NormalEquations:
        """No rows yet, for `size` parameters."""
        matrix = np.zeros((size, size))
        moment = np.zeros(size)
        return cls(matrix, moment)

    @classmethod
    def total(cls, parts: Iterable[NormalEquations]) -> NormalEquations:
        """The sum of all parts. At least one is needed: it tells how many parameters there are."""
        first, *others = parts
        total = first
        for part in others:
            total = total + part
        return total

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(
            matrix=self.matrix + other.matrix,
            moment=self.moment + other.moment,
            square=self.square + other.square,
            rows=self.rows + other.rows,
        )

    def __sub__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(
            matrix=self.matrix - other.matrix,
            moment=self.moment - other.moment,
            square=self.square - other.square,
            rows=self.rows - other.rows,
        )

    def divided_by_noise(self, noise: float) -> NormalEquations:
        """The equations of the same rows and targets, divided by `noise`."""
        # A and y are both divided by the noise, and every sum is quadratic in them
        variance = noise**2
        return NormalEquations(
            matrix=self.matrix / variance,
            moment=self.moment / variance,
            square=self.square / variance,
            rows=self.rows,
        )

    def add(self, rows: np.ndarray, target: np.ndarray) -> None:
        """Add rows (R, P) and targets (R,), both over their noise; NaN targets are dropped."""
        labelled = np.isfinite(target)
        rows = rows[labelled]
        target = target[labelled]

        self.matrix += rows.T @ rows
        self.moment += rows.T @ target
        self.square += float(target @ target)
        self.rows += len(target)

    def solve(self, precision: np.ndarray) -> np.ndarray:
        """The minimiser x (P,) of |A x - y|^2 + sum precision x^2, for precision (P,)."""
        return solve_ridge(self.matrix, precision, self.moment)

    def squared_error(self, x: np.ndarray) -> float:
        """|A x - y|^2 without the rows, by expanding the square."""
        cross_term = 2 * x @ self.moment
        quadratic_term = x @ self.matrix @ x
        return float(self.square - cross_term + quadratic_term)


def bootstrap_draws(
    parts: Sequence[NormalEquations], number: int, seed: int
) -> Iterator[NormalEquations]:
    """The equations of as many parts as there are, drawn with replacement, `number` times over.

    They are for solving alone: their `square` and `rows` stay 0.
    """
    generator = np.random.default_rng(seed)
    equal_chances = np.full(len(parts), 1 / len(parts))
    for _ in range(number):
        counts = generator.multinomial(len(parts), equal_chances)
        drawn = list(zip(counts, parts, strict=True))
        matrix = sum(count * part.matrix for count, part in drawn)
        moment = sum(count * part.moment for count, part in drawn)
        yield NormalEquations(np.asarray(matrix), np.asarray(moment))


def solve_ridge(matrix: np.ndarray, precision: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """x of (matrix + diag(precision)) x = moment, even if the precision is lost in rounding.

    That happens along directions that no label determines: for example the E0 of structures that
    all have the same ratio of elements. A weak prior next to many precise energies is smaller than
    the last digit of the matrix.
    """
    scaled, scale = _scaled(matrix, precision)
    try:
        factor = cho_factor(scaled, lower=True, check_finite=False)
        # The smallest squared pivot bounds the smallest eigenvalue from above. If the pivot is
        # within rounding, so is the eigenvalue, and the solution would be noise.
        smallest_pivot = np.diagonal(factor[0]).min() ** 2
        if smallest_pivot > _rounding(scaled):
            return scale * cho_solve(factor, scale * moment, check_finite=False)
    except LinAlgError:
        # not positive definite, because of rounding
        pass

    determined, values, undetermined = _directions(scaled, scale)
    x = determined @ (determined.T @ moment / values)

    # Along the undetermined directions x is what the prior alone prefers.
    weight = np.sqrt(precision)[:, None]
    prior_rows = weight * undetermined
    prior_target = weight[:, 0] * x
    along = np.linalg.lstsq(prior_rows, prior_target, rcond=None)[0]
    return x - undetermined @ along


def posterior_covariance(matrix: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """(matrix + diag(precision))^-1 (P, P).

    Directions that are lost in rounding have the width of the prior.
    """
    scaled, scale = _scaled(matrix, precision)
    determined, values, undetermined = _directions(scaled, scale)

    prior_matrix = undetermined.T @ (precision[:, None] * undetermined)
    prior_covariance = np.linalg.inv(prior_matrix)

    covariance_of_determined = (determined / values) @ determined.T
    return covariance_of_determined + undetermined @ prior_covariance @ undetermined.T


def _scaled(matrix: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """matrix + diag(precision), scaled to a diagonal of ones, and the scale (P,).

    Parameters have different units (weights, E0). Only after scaling can eigenvalues be compared
    with the rounding error.
    """
    whole = matrix + np.diag(precision)
    diagonal = np.diagonal(whole)
    scale = np.where(diagonal > 0, diagonal, 1.0) ** -0.5
    return whole * np.outer(scale, scale), scale


def _directions(scaled: np.ndarray, scale: np.ndarray) -> Directions:
    """Eigenvectors of the scaled matrix, in the unscaled space; see `Directions`."""
    values, vectors = np.linalg.eigh(scaled)
    vectors = scale[:, None] * vectors

    # An eigenvalue below the rounding of the matrix says nothing.
    above_rounding = values > _rounding(scaled)
    determined = vectors[:, above_rounding]
    undetermined = vectors[:, ~above_rounding]
    return determined, values[above_rounding], undetermined


def _rounding(scaled: np.ndarray) -> float:
    """Below this, an eigenvalue of a matrix with a diagonal of ones may be rounding alone."""
    return 10 * len(scaled) * float(np.finfo(float).eps)
