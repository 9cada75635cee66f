"""Suspected outliers of a converted data set: how they are defined, and lists of the worst.

A value is an outlier if its distance from the median of its level of theory exceeds both ROBUST_Z
robust standard deviations (1.4826 times the median absolute deviation) and an absolute floor.
Because of both conditions, neither a broad nor a very narrow distribution has many outliers.

Outliers should be looked at, but are not necessarily wrong. An outlier may be a wrong energy, but
also an isolated atom that was computed on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import numpy as np


ROBUST_Z = 8.0
# ratio of the standard deviation to the median absolute deviation for normally distributed values
NORMAL_FACTOR = 1.4826
# outliers listed for each kind
MAX_LISTED = 20
# distances below this fraction of the sum of covalent radii are suspicious; in molecules and
# crystals at ambient pressure they are above 0.75
MIN_BOND_SHARE = 0.6


@dataclass(frozen=True)
class Kind:
    """One kind of outlier."""

    title: str
    quantity: str
    unit: str
    floor: float = 0.0
    """Smallest distance from the median, in `unit`; 0 for a kind that has no median."""


KINDS = {
    "energy": Kind("energies far from the median", "energy after E0", "eV/atom", 0.5),
    "force": Kind("large forces", "largest force", "eV/A", 10.0),
    "pressure": Kind("large pressures", "pressure", "GPa", 50.0),
    "distance": Kind("short distances", "distance over the sum of covalent radii", ""),
    "isolated": Kind("isolated atoms in periodic cells", "atoms without neighbours", ""),
}


@dataclass(frozen=True)
class Outlier:
    """One suspected outlier."""

    structure_id: str
    split: str
    severity: float
    """Sort key: larger is worse; comparable only within a kind."""
    reason: str


@dataclass(frozen=True)
class Spread:
    """Median and robust standard deviation of a quantity over a sample."""

    median: float
    sigma: float

    @classmethod
    def of(cls, values: np.ndarray) -> Self | None:
        """The spread of the finite values among `values` (S,); None if there are none."""
        finite = values[np.isfinite(values)]
        if not len(finite):
            return None
        median = float(np.median(finite))
        deviation = float(np.median(np.abs(finite - median)))
        return cls(median, NORMAL_FACTOR * deviation)

    def is_far(self, values: np.ndarray, floor: float) -> np.ndarray:
        """Whether each value is an outlier, (S,) bool; NaN is not. `floor` as in `Kind`."""
        return np.abs(values - self.median) > max(ROBUST_Z * self.sigma, floor)


@dataclass
class Suspects:
    """Outliers of one kind: all are counted, but only the worst MAX_LISTED are kept."""

    count: int = 0
    worst: list[Outlier] = field(default_factory=list)

    def add(self, outliers: Iterable[Outlier]) -> None:
        """Add outliers, and keep those that are among the worst so far."""
        found = list(outliers)
        self.count += len(found)
        # ties are sorted by id, so that the list does not depend on the order of the shards
        ranked = sorted(
            [*self.worst, *found], key=lambda outlier: (-outlier.severity, outlier.structure_id)
        )
        self.worst = ranked[:MAX_LISTED]


def far_outliers(
    kind: str, spread: Spread, values: np.ndarray, structure_ids: list[str], level: str, split: str
) -> list[Outlier]:
    """The outliers of one kind among the values (S,) of one level of theory."""
    quantity = KINDS[kind].quantity
    unit = KINDS[kind].unit
    found = []
    for index in np.flatnonzero(spread.is_far(values, KINDS[kind].floor)):
        distance = float(abs(values[index] - spread.median))
        times = "all others are equal"
        if spread.sigma:
            times = f"{distance / spread.sigma:.3g} robust standard deviations"
        reason = (
            f"{quantity} {values[index]:.4g} {unit}, {distance:.4g} from the median "
            f"{spread.median:.4g} of {level} ({times})"
        )
        found.append(Outlier(structure_ids[index], split, distance, reason))
    return found
