"""How large the errors of a head are, learned from structures that its fit has left out.

    r_s    error of a fit to the other folds; of a vector or tensor the root mean square of its
           components, which does not change when the structure is turned
    u_s    row_s . weights + constant, by ridge regression on log(r_s^2)
    spread exp(u / 2), with the constant shifted until the mean of r_s^2 / exp(u_s) is 1

The structures of one composition are alike, and the ridge regression, which takes them for
independent, would find more than holds for others. So what u varies by is multiplied by the share
that holds for groups that were left out, down to none.

The logarithm of the square of one error is a poor measure of its variance, but an unbiased one up
to a constant, which the shift takes up; so one linear solve replaces the iterations of Nix and
Weigend (ICNN 1994), and each error counts alike.

Shapes: R rows, U structures or atoms that they belong to, P columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from ase import Atoms

from .ridge import RidgeFit, ridge
from .split import folds
from .weights import Weights


# relative to the RMS error; errors below it are all the same
SMALLEST = 1e-3
# of the deviations of log-variances from their mean
SHARES = np.linspace(0.0, 1.0, 21)
LARGEST_DEVIATION = 50.0


def fit_spread(squares: np.ndarray, rows: np.ndarray, groups: Sequence[str], seed: int) -> RidgeFit:
    """Weights (P,) and constant of u, from squared errors (U,) of fits that left them out.

    U is the number of structures or atoms. Errors are those of an intensive quantity, and of a
    vector or tensor the mean square of the components; rows (U, P) are means over atoms, groups
    (U,) what each belongs to.
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
    """What of log-variances holds for groups that a fit has not seen: 0, one spread for all, to 1.

    It is the share with which the density of these errors is largest.
    """
    fold = folds(groups, seed)
    deviations = np.empty(len(rows))
    for left_out in np.unique(fold):
        test = fold == left_out
        fit = ridge(rows[~test], np.log(squares[~test]), np.ones(int((~test).sum())))
        deviations[test] = (rows[test] - rows[~test].mean(axis=0)) @ fit.weights
    # shares that make infinities are none
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
    """Errors (R,) of fits that have not seen the group of a row.

    rows, targets, column: those of the fit of the head itself. groups: what each row belongs to.
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
    """Weights with those of a spread, from squared errors (U,) of an intensive quantity.

    invariants: (N, F) of each structure; elements (Z,); groups: what each structure belongs to. U
    are the structures, or the atoms that `labelled` (N,) bool of each structure names.
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
    # features of very different size would be penalised differently
    num_features = len(centre)
    size = np.sqrt((matrix[:, :num_features] ** 2).mean(axis=0))
    size[size <= 1e-12 * size.max(initial=0.0)] = 1.0
    matrix[:, :num_features] /= size

    found = fit_spread(squares, matrix, group_of_row, seed)
    weight = found.weights[:num_features] / size
    bias = found.weights[num_features:] + found.constant - weight @ centre
    return dataclasses.replace(weights, spread_weight=weight, spread_bias=bias)
