"""Learn how large the errors of a head are, from structures that a fit has left out.

    r_s    error of a fit to the other folds; for a vector or tensor, the root mean square of its
           components, which is invariant under rotation
    u_s    row_s . weights + constant, by ridge regression on log(r_s^2)
    spread exp(u / 2), with the constant shifted until the mean of r_s^2 / exp(u_s) is 1

Structures of the same composition are similar. Ridge regression treats them as independent and
would find more variation of u than holds for other compositions. Therefore the variation is
multiplied by a share between 0 and 1, chosen on groups that were left out.

The logarithm of one squared error is a noisy estimate of the log-variance, but unbiased up to a
constant, which the shift absorbs. So one linear solve replaces the iterations of Nix and Weigend
(ICNN 1994), and all errors have equal weight.

Shapes: R rows, U structures or atoms to which they belong, P columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from ase import Atoms

from .ridge import RidgeFit, ridge
from .split import folds
from .weights import Weights


# relative to the RMS error: squared errors are raised by the square of this
SMALLEST = 1e-3
# shares that are tried for the deviations of log-variances from their mean
SHARES = np.linspace(0.0, 1.0, 21)
LARGEST_DEVIATION = 50.0


def fit_spread(squares: np.ndarray, rows: np.ndarray, groups: Sequence[str], seed: int) -> RidgeFit:
    """Fit the weights (P,) and the constant of u to squared errors (U,) of left-out structures.

    squares: (U,) of an intensive quantity, for each structure or atom; for a vector or tensor, the
    mean square of its components. rows: (U, P), means over atoms. groups: (U,) group of each row.
    """
    floor = SMALLEST * float(np.sqrt(squares.mean()))
    squares = squares + max(floor**2, np.finfo(float).tiny)
    logarithms = np.log(squares)
    found = ridge(rows, logarithms, np.ones(len(rows)))
    weights = found.weights * _share_to_keep(squares, rows, groups, seed)
    shift = float(np.log((squares / np.exp(rows @ weights)).mean()))
    return RidgeFit(weights, shift, found.penalty)


def _share_to_keep(
    squares: np.ndarray, rows: np.ndarray, groups: Sequence[str], seed: int
) -> float:
    """Share of the variation of log-variances that holds for left-out groups.

    From 0 (one spread for all) to 1. It maximises the likelihood of the errors of left-out groups.
    """
    fold = folds(groups, seed)
    deviations = np.empty(len(rows))
    for left_out in np.unique(fold):
        test = fold == left_out
        fit = ridge(rows[~test], np.log(squares[~test]), np.ones(int((~test).sum())))
        deviations[test] = (rows[test] - rows[~test].mean(axis=0)) @ fit.weights
    # avoid infinities in the exponential
    deviations = np.clip(deviations, -LARGEST_DEVIATION, LARGEST_DEVIATION)
    scores = []
    for share in SHARES:
        logarithm = share * deviations
        scores.append(np.log((squares / np.exp(logarithm)).mean()) + logarithm.mean())
    return float(SHARES[int(np.argmin(scores))])


def left_out_errors(
    rows: np.ndarray,
    targets: np.ndarray,
    column: np.ndarray | None,
    groups: Sequence[str],
    seed: int,
) -> np.ndarray:
    """Errors (R,) of cross-validation: each row is predicted by a fit without its group.

    rows, targets, column: as in the fit of the head. groups: (R,) group of each row.
    """
    fold = folds(groups, seed)
    errors = np.empty(len(rows))
    for left_out in np.unique(fold):
        test = fold == left_out
        fit = ridge(rows[~test], targets[~test], None if column is None else column[~test])
        errors[test] = rows[test] @ fit.weights - targets[test]
        if column is not None:
            errors[test] += fit.constant * column[test]
    return errors


def with_spread(
    weights: Weights,
    squares: np.ndarray,
    invariants: list[np.ndarray],
    frames: list[Atoms],
    elements: np.ndarray,
    groups: Sequence[str],
    seed: int,
    labelled: list[np.ndarray] | None = None,
) -> Weights:
    """Add the weights of a spread to `weights`, fitted to squared errors (U,).

    squares: (U,) squared errors of an intensive quantity, for each structure, or for each labelled
        atom if `labelled` is given.
    invariants: (N, F) features of each structure.
    elements: (Z,) atomic numbers.
    groups: group of each structure.
    labelled: mask (N,) of the labelled atoms of each structure.
    """
    stacked = np.concatenate(invariants)
    centre = stacked.mean(axis=0)
    rows = []
    for place, (own, atoms) in enumerate(zip(invariants, frames, strict=True)):
        one_hot = (atoms.numbers[:, None] == elements[None, :]).astype(float)
        of_atoms = np.hstack([own - centre, one_hot])
        if labelled is None:
            rows.append(of_atoms.mean(axis=0, keepdims=True))
        else:
            rows.append(of_atoms[labelled[place]])
    matrix = np.concatenate(rows)
    group_of_row = [group for group, own in zip(groups, rows, strict=True) for _ in own]
    # scale the features, because the penalty acts differently on features of different size
    num_features = len(centre)
    size = np.sqrt((matrix[:, :num_features] ** 2).mean(axis=0))
    size[size <= 1e-12 * size.max(initial=0.0)] = 1.0
    matrix[:, :num_features] /= size

    found = fit_spread(squares, matrix, group_of_row, seed)
    weight = found.weights[:num_features] / size
    bias = found.weights[num_features:] + found.constant - weight @ centre
    return dataclasses.replace(weights, spread_weight=weight, spread_bias=bias)
