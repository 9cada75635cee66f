"""Ridge regression with a penalty that maximises the evidence.

    w = argmin |A w + c k - y|^2 + penalty |w|^2

k is a column that is not penalised, such as ones. Let the noise have the variance s, which is
fitted too, and the weights the variance s / penalty. The evidence is the probability density of the
targets (MacKay, Neural Computation 4, 415, 1992). The penalty is chosen to make it largest:

    -2 log evidence = n log(y (1 + A A^T / penalty)^-1 y / n) + log det(1 + A A^T / penalty)

Generalised cross-validation was tried first. With fewer rows than weights it may choose to
interpolate, and then errors were twice as large as those of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


# range of penalties, relative to the largest squared singular value
SMALLEST = 1e-16
LARGEST = 1e2
STEPS_PER_DECADE = 5


@dataclass(frozen=True)
class RidgeFit:
    """The solution, for P weights."""

    weights: np.ndarray
    """w (P,)"""
    constant: float
    """c; 0 without a column k"""
    penalty: float


def ridge(rows: np.ndarray, targets: np.ndarray, column: np.ndarray | None = None) -> RidgeFit:
    """Fit targets y (R,) with rows A (R, P), and optionally a column k (R,) without penalty."""
    num_rows, num_weights = rows.shape
    both = np.column_stack([rows, targets])
    if column is not None:
        # project the column out of the rows and the targets
        unit = column / np.linalg.norm(column)
        both = both - np.outer(unit, unit @ both)
        num_rows -= 1

    # reduce to at most P + 1 rows with the same inner products, without squaring the condition
    # number
    small: np.ndarray = np.linalg.qr(both, mode="r")  # type: ignore[assignment]  # no tuple here
    left, singular, right = np.linalg.svd(small[:, :num_weights], full_matrices=False)
    moments = left.T @ small[:, num_weights]
    unexplained = max(float(small[:, num_weights] @ small[:, num_weights] - moments @ moments), 0.0)

    penalty = _best_penalty(singular, moments, unexplained, num_rows)
    weights = right.T @ (_filter(singular, penalty) * moments)
    constant = 0.0
    if column is not None:
        constant = float(unit @ (targets - rows @ weights) / np.linalg.norm(column))
    return RidgeFit(weights, constant, penalty)


def _filter(singular: np.ndarray, penalty: float) -> np.ndarray:
    """s / (s^2 + penalty) for singular values s; zero if both are zero."""
    squared = singular**2 + penalty
    return np.divide(singular, squared, out=np.zeros_like(singular), where=squared > 0)


def _best_penalty(
    singular: np.ndarray, moments: np.ndarray, unexplained: float, num_rows: int
) -> float:
    largest = float(singular.max(initial=0.0)) ** 2
    if largest == 0:
        # all rows are zero, so any penalty gives weights of zero
        return 1.0
    num_steps = round(STEPS_PER_DECADE * np.log10(LARGEST / SMALLEST)) + 1
    penalties = largest * np.geomspace(SMALLEST, LARGEST, num_steps)
    scores = []
    for penalty in penalties:
        left_over = unexplained + np.sum(moments**2 * penalty / (singular**2 + penalty))
        # the logarithm must be finite even if all targets are zero
        density = num_rows * np.log(max(left_over, np.finfo(float).tiny))
        scores.append(density + np.sum(np.log1p(singular**2 / penalty)))
    return float(penalties[int(np.argmin(scores))])
