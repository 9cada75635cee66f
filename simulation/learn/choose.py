"""Which of the structures that simulations met are worth a label.

The readout is linear in features phi (d,) of the atoms, so that what labels tell about its weights
is the matrix A = sum of phi phi^T over all labelled atoms. A structure with features Phi (N, d)
multiplies its determinant by

    det(A + Phi^T Phi) / det(A) = det(I + Phi A^-1 Phi^T)

and the structures that make it largest are chosen one after the other (D-optimality; Fedorov,
Theory of Optimal Experiments, 1972). A^-1 follows by a rank-one update for each atom (Sherman and
Morrison).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


# Added to the diagonal of the information matrix, relative to its mean: directions in which no atom
# has features are unknown, and not infinitely so.
RIDGE = 1e-4


class Information:
    """The inverse A^-1 (d, d) of what labels tell about the weights, and what more would add."""

    def __init__(self, labelled: np.ndarray, scale: float | None = None) -> None:
        """`labelled` are features (N, d) of atoms with labels.

        scale: mean square of a feature, for the ridge; by default that of `labelled`.
        """
        size = labelled.shape[1]
        if scale is None:
            scale = float(np.square(labelled).mean()) * max(len(labelled), 1)
        matrix = labelled.T @ labelled + RIDGE * (scale or 1.0) * np.eye(size)
        self.inverse = np.linalg.inv(matrix)

    def gain(self, features: np.ndarray) -> float:
        """By how much the logarithm of the determinant grows with a structure, (N, d)."""
        inner = np.eye(len(features)) + features @ self.inverse @ features.T
        return float(np.linalg.slogdet(inner)[1])

    def add(self, features: np.ndarray) -> None:
        """Count the atoms of a structure, (N, d), as labelled: one rank-one update for each."""
        for phi in features:
            along = self.inverse @ phi
            self.inverse -= np.outer(along, along) / (1.0 + phi @ along)


def by_determinant(
    labelled: np.ndarray, candidates: Sequence[np.ndarray], number: int
) -> tuple[list[int], list[float]]:
    """Places of the chosen structures, in order, and their gains.

    labelled: (N, d) features of all labelled atoms. candidates: (n, d) features of each structure.
    """
    pool = np.concatenate(candidates)
    known = labelled if len(labelled) else pool
    scale = float(np.square(known).mean()) * len(known)
    information = Information(labelled, scale)
    left = list(range(len(candidates)))
    chosen: list[int] = []
    gains: list[float] = []
    while left and len(chosen) < number:
        of_left = [information.gain(candidates[place]) for place in left]
        best = int(np.argmax(of_left))
        place = left.pop(best)
        information.add(candidates[place])
        chosen.append(place)
        gains.append(of_left[best])
    return chosen, gains


def by_distance(
    labelled: Sequence[np.ndarray], candidates: Sequence[np.ndarray], number: int
) -> tuple[list[int], list[float]]:
    """The structure that is farthest from all labelled and chosen ones, again and again.

    Structures are compared by the mean of the features of their atoms, each feature over its
    deviation. Returns places, and the distances at which they were chosen.
    """
    points = np.array([features.mean(0) for features in candidates])
    known = np.array([features.mean(0) for features in labelled]).reshape(-1, points.shape[1])
    deviation = np.concatenate([known, points]).std(0)
    factor = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1.0), 0.0)
    points = points * factor
    nearest = np.full(len(points), np.inf)
    for point in known * factor:
        nearest = np.minimum(nearest, np.linalg.norm(points - point, axis=1))
    if not len(known):
        nearest = np.linalg.norm(points - points.mean(0), axis=1)

    chosen: list[int] = []
    distances: list[float] = []
    for _ in range(min(number, len(points))):
        best = int(np.argmax(nearest))
        chosen.append(best)
        distances.append(float(nearest[best]))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[best], axis=1))
        nearest[best] = -1.0
    return chosen, distances
