"""How large the errors of a head are, learned from structures that its fit has left out.

    r_s    error of a fit to the other folds; of a vector or tensor the root mean square of its
           components, which does not change when the structure is turned
    u_s    row_s . weights + constant, by ridge regression on log(r_s^2)
    spread exp(u / 2), with the constant shifted until the mean of r_s^2 / exp(u_s) is 1

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


def fit_spread(squares: np.ndarray, rows: np.ndarray) -> RidgeFit:
    """Weights (P,) and constant of u, from squared errors (U,) of fits that left them out.

    U is the number of structures or atoms. Errors are those of an intensive quantity, and of a
    vector or tensor the mean square of the components; rows (U, P) are means over atoms.
    """
    floor = SMALLEST * float(np.sqrt(squares.mean()))
    squares = squares + max(floor**2, np.finfo(float).tiny)
    found = ridge(rows, np.log(squares), np.ones(len(rows)))
    log_variance = rows @ found.weights + found.constant
    shift = float(np.log((squares / np.exp(log_variance)).mean()))
    return RidgeFit(found.weights, found.constant + shift, found.penalty)


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
    labelled: list[np.ndarray] | None = None,
) -> Weights:
    """Weights with those of a spread, from squared errors (U,) of an intensive quantity.

    invariants: (N, F) of each structure; elements (Z,). U are the structures, or the atoms that
    `labelled` (N,) bool of each structure names.
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
    # features of very different size would be penalised differently
    num_features = len(centre)
    size = np.sqrt((matrix[:, :num_features] ** 2).mean(axis=0))
    size[size <= 1e-12 * size.max(initial=0.0)] = 1.0
    matrix[:, :num_features] /= size

    found = fit_spread(squares, matrix)
    weight = found.weights[:num_features] / size
    bias = found.weights[num_features:] + found.constant - weight @ centre
    return dataclasses.replace(weights, spread_weight=weight, spread_bias=bias)
