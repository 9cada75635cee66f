"""Multinomial logistic regression with a quadratic penalty: convex, with a unique solution.

    minimise  sum_s -log softmax(x_s W + c)[class_s] + penalty / 2 |W|^2

The penalty is chosen by cross-validation: it has the smallest log loss on left-out groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from .split import FOLDS, folds


# from strong to weak, because each fit starts from the solution for the penalty before
PENALTIES = (1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)
# tolerances of the gradient per structure: for the choice of the penalty, and for the final fit
CHOOSING = 1e-4
GRADIENT_TOLERANCE = 1e-7


@dataclass(frozen=True)
class LogisticFit:
    """The solution, for P columns and K classes."""

    weights: np.ndarray
    """(P, K)"""
    constants: np.ndarray
    """(K,)"""
    penalty: float

    def log_probabilities(self, rows: np.ndarray) -> np.ndarray:
        """Logarithms (S, K) of the class probabilities for rows (S, P)."""
        found: np.ndarray = log_softmax(rows @ self.weights + self.constants, axis=1)
        return found


def logistic(
    rows: np.ndarray, classes: np.ndarray, num_classes: int, groups: list[str], seed: int
) -> LogisticFit:
    """Fit with a penalty chosen by cross-validation.

    rows: (S, P). classes: (S,) index of the class of each row. groups: the group of each row;
    groups are not divided between folds.
    """
    fold = folds(groups, seed)
    losses = np.zeros(len(PENALTIES))
    for left_out in range(FOLDS):
        test = fold == left_out
        # with fewer groups than folds, some folds are empty
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
    """The solution for one penalty; the search begins at `start`, a solution for another one."""
    num_columns = rows.shape[1]
    wanted = np.eye(num_classes)[classes]  # (S, K)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        table = flat.reshape(num_columns + 1, num_classes)
        scores = rows @ table[:-1] + table[-1]
        loss = -np.sum(wanted * log_softmax(scores, axis=1))
        loss += penalty / 2 * np.sum(table[:-1] ** 2)
        excess = softmax(scores, axis=1) - wanted
        slope = np.vstack([rows.T @ excess + penalty * table[:-1], excess.sum(axis=0)])
        # per structure, so that the tolerance does not depend on their number
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
    # a constant added to all classes changes nothing, so remove it
    table = table - table.mean(axis=1, keepdims=True)
    return LogisticFit(table[:-1], table[-1], penalty)
