"""Suspected outliers of a converted data set: what counts as far away, and the list of the worst with their reasons.

A value is far when it lies beyond ROBUST_Z robust standard deviations (1.4826 times the median absolute deviation) of
its level's median and beyond an absolute floor, so that neither a broad nor a very narrow set is full of outliers.
They are suspects to look at: a wrong energy, but also an isolated atom that was computed on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import numpy as np


ROBUST_Z = 8.0
MAX_LISTED = 20  # of each kind
MIN_BOND_SHARE = 0.6  # of the sum of two covalent radii; molecules and crystals at ambient pressure lie above 0.75


@dataclass(frozen=True)
class Kind:
    """One kind of outlier; `floor` is in `unit`, and without one the rule is no comparison with a median."""

    title: str
    quantity: str
    unit: str
    floor: float = 0.0


KINDS = {
    "energy": Kind("energies far from the median", "energy after E0", "eV/atom", 0.5),
    "force": Kind("large forces", "largest force", "eV/A", 10.0),
    "pressure": Kind("large pressures", "pressure", "GPa", 50.0),
    "distance": Kind("short distances", "distance over the sum of covalent radii", ""),
    "isolated": Kind("isolated atoms in periodic cells", "atoms without neighbours", ""),
}


@dataclass(frozen=True)
class Outlier:
    """One suspect: where it stands, how bad it is compared with others of its kind, and why, in words."""

    structure_id: str
    split: str
    severity: float
    reason: str


@dataclass(frozen=True)
class Spread:
    """Median and robust standard deviation of a quantity over a sample."""

    median: float
    sigma: float

    @classmethod
    def of(cls, values: np.ndarray) -> Self | None:
        """Of values (S,), NaN where there is none; None when there are none at all."""
        values = values[np.isfinite(values)]
        if not len(values):
            return None
        median = float(np.median(values))
        return cls(median, 1.4826 * float(np.median(np.abs(values - median))))

    def is_far(self, values: np.ndarray, floor: float) -> np.ndarray:
        """Which of the values (S,) are outliers; NaN is none."""
        return np.abs(values - self.median) > max(ROBUST_Z * self.sigma, floor)


@dataclass
class Suspects:
    """Outliers of one kind: all are counted, the worst MAX_LISTED kept."""

    count: int = 0
    worst: list[Outlier] = field(default_factory=list)

    def add(self, outliers: Iterable[Outlier]) -> None:
        """Count them and keep them if they are among the worst so far."""
        found = list(outliers)
        self.count += len(found)
        self.worst = sorted([*self.worst, *found], key=lambda o: (-o.severity, o.structure_id))[
            :MAX_LISTED
        ]


def far_outliers(
    kind: str, spread: Spread, values: np.ndarray, structure_ids: list[str], level: str, split: str
) -> list[Outlier]:
    """Outliers of one kind among the values (S,) of structures of one level of theory."""
    about, found = KINDS[kind], []
    for k in np.flatnonzero(spread.is_far(values, about.floor)):
        distance = abs(values[k] - spread.median)
        times = (
            f"{distance / spread.sigma:.3g} robust standard deviations"
            if spread.sigma
            else "all others are equal"
        )
        reason = (
            f"{about.quantity} {values[k]:.4g} {about.unit}, {distance:.4g} from the median {spread.median:.4g} of "
            f"{level} ({times})"
        )
        found.append(Outlier(structure_ids[k], split, float(distance), reason))
    return found
