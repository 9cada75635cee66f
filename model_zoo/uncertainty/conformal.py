"""Split conformal radii: how far an error may be, with a stated coverage.

A score is the error of an atom (eV/A) or of a structure (eV/atom) over the spread that was
predicted for it. With n scores of structures that the model has not learned from, the quantile

    q = the ceil((n + 1) coverage)-th smallest score

gives the radius q times the spread, which covers the error of a new atom with at least that
probability, if new structures come from where those of the calibration came from. Vovk, Gammerman,
Shafer, Algorithmic Learning in a Random World (2005); normalised scores: Papadopoulos et al.
(2008). One quantile for each group of elements makes it hold for each of them (Mondrian).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np


# Stored scores of a group. More are thinned out, so that a record stays small.
MAX_SCORES = 1024


@dataclass(frozen=True)
class Scores:
    """The scores of a calibration in order, of which only some are kept where there are many."""

    values: np.ndarray
    """(M,) ascending."""
    ranks: np.ndarray
    """(M,) the place of each among all scores, from 1."""
    number: int
    """n, all scores."""
    structures: int
    """Groups of structures that they come from: the independent pieces of evidence."""

    @classmethod
    def of(cls, scores: np.ndarray, structures: int) -> Self:
        """The scores (n,), in any order, of a number of groups of structures."""
        ordered = np.sort(scores)
        number = len(ordered)
        ranks = np.arange(1, number + 1)
        if number > MAX_SCORES:
            # Half of them evenly, half where coverages near 1 look.
            even = np.linspace(1, number, MAX_SCORES // 2)
            tail = number - np.geomspace(1, number, MAX_SCORES // 2) + 1
            ranks = np.unique(np.rint(np.concatenate([even, tail])).astype(int))
        return cls(ordered[ranks - 1], ranks, number, structures)

    def quantile(self, coverage: float) -> float:
        """The score that a new one exceeds with a probability of at most 1 - coverage.

        Infinite where there are too few scores to say so: 99 % needs 99 of them.
        """
        assert 0 < coverage < 1
        rank = math.ceil((self.number + 1) * coverage - 1e-9)
        place = int(np.searchsorted(self.ranks, rank))
        # a thinned list answers with the next larger score that it has: never too small a radius
        return float(self.values[place]) if place < len(self.values) else math.inf
