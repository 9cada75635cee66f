"""Split conformal radii: bounds on errors with a stated coverage.

A score is the error of an atom or structure divided by its predicted spread. Given n scores from
structures that the model was not trained on, the quantile is

    q = the ceil((n + 1) coverage)-th smallest score

The radius of a new atom is q times its spread. It covers the error with at least the probability
`coverage`, provided that new structures come from the same distribution as the calibration
structures. One quantile per group of elements gives this coverage within each group (Mondrian
prediction).

Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World (2005). Normalised scores:
Papadopoulos et al. (2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np


# At most this many scores are stored per group, so that a record stays small.
MAX_SCORES = 1024


@dataclass(frozen=True)
class Scores:
    """The sorted scores of a calibration. A long list is thinned to MAX_SCORES entries."""

    values: np.ndarray
    """(M,) ascending."""
    ranks: np.ndarray
    """(M,) the rank of each value among all n scores, counted from 1."""
    number: int
    """n, the number of scores before thinning."""
    structures: int
    """The number of independent groups of structures that the scores come from."""

    @classmethod
    def of(cls, scores: np.ndarray, structures: int) -> Self:
        """Sort scores (n,) and thin them if needed. `structures` is the number of groups."""
        ordered = np.sort(scores)
        number = len(ordered)
        ranks = np.arange(1, number + 1)
        if number > MAX_SCORES:
            # half are spaced evenly, half lie in the tail that coverages near 1 need
            even = np.linspace(1, number, MAX_SCORES // 2)
            tail = number - np.geomspace(1, number, MAX_SCORES // 2) + 1
            ranks = np.unique(np.rint(np.concatenate([even, tail])).astype(int))
        return cls(ordered[ranks - 1], ranks, number, structures)

    def quantile(self, coverage: float) -> float:
        """The score that a new score exceeds with a probability of at most 1 - coverage.

        It is infinite if there are too few scores; a coverage of 99 % needs 99 scores.
        """
        assert 0 < coverage < 1
        rank = math.ceil((self.number + 1) * coverage - 1e-9)
        place = int(np.searchsorted(self.ranks, rank))
        # a thinned list returns the next larger score, so the radius is never too small
        return float(self.values[place]) if place < len(self.values) else math.inf
