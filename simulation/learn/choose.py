"""Which of the structures that simulations met are worth a label.

The readout is linear in the features phi (d,) of the atoms. So what labels tell about its weights
is the information matrix A = sum of phi phi^T over all labelled atoms. A structure with features
Phi (N, d) multiplies its determinant by

    det(A + Phi^T Phi) / det(A) = det(I + Phi A^-1 Phi^T)

The structure with the largest factor is chosen, and counts as labelled when the next one is chosen
(D-optimality; Fedorov, Theory of Optimal Experiments, 1972). A^-1 is kept up to date by a rank-one
update for each atom (Sherman and Morrison).

Shapes: N atoms, n atoms of one structure, d features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


# Added to the diagonal of the information matrix, relative to its mean. Without it, directions in
# which no atom has features would be infinitely unknown.
RIDGE = 1e-4


class Information:
    """What labels tell about the weights, as A^-1 (d, d), and what further labels would add."""

    def __init__(self, labelled: np.ndarray, scale: float | None = None) -> None:
        """`labelled` are features (N, d) of atoms with labels.

        scale: of the diagonal of A, for the ridge: the mean square of a feature times the number
        of atoms. By default that of `labelled`.
        """
        size = labelled.shape[1]
        if scale is None:
            scale = float(np.square(labelled).mean()) * max(len(labelled), 1)
        matrix = labelled.T @ labelled + RIDGE * (scale or 1.0) * np.eye(size)
        self.inverse = np.linalg.inv(matrix)

    def gain(self, features: np.ndarray) -> float:
        """By how much a structure with features (n, d) raises the logarithm of the determinant."""
        inner = np.eye(len(features)) + features @ self.inverse @ features.T
        return float(np.linalg.slogdet(inner)[1])

    def add(self, features: np.ndarray) -> None:
        """Count a structure with features (n, d) as labelled: one rank-one update for each atom."""
        for phi in features:
            along = self.inverse @ phi
            self.inverse -= np.outer(along, along) / (1.0 + phi @ along)


def by_determinant(
    labelled: np.ndarray, candidates: Sequence[np.ndarray], number: int
) -> tuple[list[int], list[float]]:
    """Places of the chosen structures, in the order of the choice, and their gains.

    labelled: (N, d) features of all labelled atoms. candidates: (n, d) features of each structure.
    """
    known = labelled if len(labelled) else np.concatenate(candidates)
    scale = float(np.square(known).mean()) * len(known)
    information = Information(labelled, scale)
    remaining = list(range(len(candidates)))
    chosen: list[int] = []
    gains: list[float] = []
    while remaining and len(chosen) < number:
        gains_now = [information.gain(candidates[place]) for place in remaining]
        best = int(np.argmax(gains_now))
        place = remaining.pop(best)
        information.add(candidates[place])
        chosen.append(place)
        gains.append(gains_now[best])
    return chosen, gains


def by_distance(
    labelled: Sequence[np.ndarray], candidates: Sequence[np.ndarray], number: int
) -> tuple[list[int], list[float]]:
    """Places of the chosen structures, each the farthest from all labelled and chosen ones.

    A structure is the mean (d,) of the features of its atoms, each feature over its standard
    deviation. Also returns the distances at which the structures were chosen.

    labelled, candidates: (n, d) features of each structure.
    """
    points = np.array([features.mean(0) for features in candidates])
    known = np.array([features.mean(0) for features in labelled]).reshape(-1, points.shape[1])
    deviation = np.concatenate([known, points]).std(0)
    # a feature that is the same everywhere tells nothing apart
    factor = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1.0), 0.0)
    points = points * factor

    # distance of each candidate to the nearest labelled or chosen structure
    nearest = np.full(len(points), np.inf)
    for point in known * factor:
        nearest = np.minimum(nearest, np.linalg.norm(points - point, axis=1))
    if not len(known):
        # without labels, the first choice is the farthest from the mean
        nearest = np.linalg.norm(points - points.mean(0), axis=1)

    chosen: list[int] = []
    distances: list[float] = []
    for _ in range(min(number, len(points))):
        best = int(np.argmax(nearest))
        chosen.append(best)
        distances.append(float(nearest[best]))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[best], axis=1))
        # below every distance, so that it is not chosen again
        nearest[best] = -1.0
    return chosen, distances
