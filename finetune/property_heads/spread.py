"""How large the errors of a head are, learned from structures that its fit has left out.

    r_s    error of a fit to the other folds
    u_s    row_s . weights + constant, by ridge regression on log(r_s^2)
    spread exp(u / 2), with the constant shifted until the mean of r_s^2 / exp(u_s) is 1

The logarithm of the square of one error is a poor measure of its variance, but an unbiased one up
to a constant, which the shift takes up; so one linear solve replaces the iterations of Nix and
Weigend (ICNN 1994), and each error counts alike.

Shapes: R rows, P columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .ridge import RidgeFit, ridge
from .split import folds


# relative to the RMS error; errors below it are all the same
SMALLEST = 1e-3


def fit_spread(
    rows: np.ndarray,
    targets: np.ndarray,
    column: np.ndarray,
    groups: Sequence[str],
    seed: int,
) -> RidgeFit:
    """Weights (P,) and constant of u, for rows (R, P) / column (R,) of an intensive quantity.

    rows, targets, column: those of the fit of the head itself. groups: what each row belongs to.
    """
    errors = left_out_errors(rows, targets, column, groups, seed)
    floor = SMALLEST * float(np.sqrt((errors**2).mean()))
    squares = errors**2 + max(floor**2, np.finfo(float).tiny)
    # a row of a sum is that of a mean, times the root of the number of atoms
    intensive = rows / column[:, None]
    found = ridge(intensive, np.log(squares), np.ones(len(rows)))
    log_variance = intensive @ found.weights + found.constant
    shift = float(np.log((squares / np.exp(log_variance)).mean()))
    return RidgeFit(found.weights, found.constant + shift, found.penalty)


def left_out_errors(
    rows: np.ndarray,
    targets: np.ndarray,
    column: np.ndarray,
    groups: Sequence[str],
    seed: int,
) -> np.ndarray:
    """Errors (R,) of fits that have not seen the group of a row."""
    fold = folds(groups, seed)
    errors = np.empty(len(rows))
    for left_out in np.unique(fold):
        test = fold == left_out
        fit = ridge(rows[~test], targets[~test], column[~test])
        errors[test] = rows[test] @ fit.weights + fit.constant * column[test] - targets[test]
    return errors
