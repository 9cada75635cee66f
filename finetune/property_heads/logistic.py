"""Multinomial logistic regression with a quadratic penalty: convex, so it has one solution.

    minimise  sum_s -log softmax(x_s W + c)[class_s] + penalty / 2 |W|^2

The penalty is the one with the smallest logarithmic loss on left-out groups of structures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from .split import FOLDS, folds


# in this order: each solution starts from the one before, which is nearer to zero
PENALTIES = (1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)
# of the gradient per structure; the choice of the penalty needs no more than the first
CHOOSING = 1e-4
GRADIENT_TOLERANCE = 1e-7


@dataclass(frozen=True)
class LogisticFit:
    """The solution: P columns, K classes."""

    weights: np.ndarray
    """(P, K)"""
    constants: np.ndarray
    """(K,)"""
    penalty: float

    def log_probabilities(self, rows: np.ndarray) -> np.ndarray:
        """Rows (S, P) -> (S, K)."""
        found: np.ndarray = log_softmax(rows @ self.weights + self.constants, axis=1)
        return found


def logistic(
    rows: np.ndarray, classes: np.ndarray, num_classes: int, groups: list[str], seed: int
) -> LogisticFit:
    """Rows (S, P), the class of each (S,), and the group of each, which is left out whole."""
    fold = folds(groups, seed)
    losses = np.zeros(len(PENALTIES))
    for left_out in range(FOLDS):
        test = fold == left_out
        # fewer groups than folds leave some of them empty
        if not test.any() or test.all():
            continue
        fitted = None
        for place, penalty in enumerate(PENALTIES):
            train = (rows[~test], classes[~test], num_classes, penalty)
            fitted = fit(*train, start=fitted, tolerance=CHOOSING)
            found = fitted.log_probabilities(rows[test])
            losses[place] -= found[np.arange(test.sum()), classes[test]].sum()
    return fit(rows, classes, num_classes, PENALTIES[int(np.argmin(losses))])


def fit(
    rows: np.ndarray,
    classes: np.ndarray,
    num_classes: int,
    penalty: float,
    *,
    start: LogisticFit | None = None,
    tolerance: float = GRADIENT_TOLERANCE,
) -> LogisticFit:
    """The solution for one penalty; `start` is a solution for another."""
    num_columns = rows.shape[1]
    wanted = np.eye(num_classes)[classes]  # (S, K)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        table = flat.reshape(num_columns + 1, num_classes)
        scores = rows @ table[:-1] + table[-1]
        loss = -np.sum(wanted * log_softmax(scores, axis=1))
        loss += penalty / 2 * np.sum(table[:-1] ** 2)
        excess = softmax(scores, axis=1) - wanted
        slope = np.vstack([rows.T @ excess + penalty * table[:-1], excess.sum(axis=0)])
        # per structure, so that the tolerance means the same for any number of them
        return float(loss) / len(rows), slope.ravel() / len(rows)

    first = np.zeros((num_columns + 1, num_classes))
    if start is not None:
        first = np.vstack([start.weights, start.constants])
    found = minimize(
        objective,
        first.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 10000, "gtol": tolerance, "ftol": 1e-14},
    )
    table = found.x.reshape(num_columns + 1, num_classes)
    # a constant added to all classes changes nothing
    table = table - table.mean(axis=1, keepdims=True)
    return LogisticFit(table[:-1], table[-1], penalty)
