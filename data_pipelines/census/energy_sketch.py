"""A small sketch of a level's energies, which shows whether two data sets share structures.

The name of a level of theory does not identify its data. Energies with many digits do, because
each of them practically identifies its structure. A sketch keeps the smallest hashes of the
energies. Two sketches then give an estimate of the fraction of energies that two data sets have in
common (bottom-k sampling; Cohen and Kaplan, PODC 2007). The size of a sketch does not grow with the
data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np


SIZE = 64  # number of hashes that are kept

# constants of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), a well-mixing bijection of 64 bits
INCREMENT = np.uint64(0x9E3779B97F4A7C15)
FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
SECOND_FACTOR = np.uint64(0x94D049BB133111EB)


class EnergySketch:
    """The SIZE smallest hashes of distinct energies; sketches can be added with `+=`."""

    def __init__(self) -> None:
        self.hashes = np.zeros(0, np.uint64)

    def add(self, energies: np.ndarray) -> None:
        """Add the energies (S,) of some structures, in eV."""
        self._keep(hashes_of(energies))

    def __iadd__(self, other: EnergySketch) -> Self:
        self._keep(other.hashes)
        return self

    def to_list(self) -> list[str]:
        """The hashes as hexadecimal strings, because JSON has no 64-bit integers."""
        return [f"{value:016x}" for value in self.hashes.tolist()]

    def _keep(self, further: np.ndarray) -> None:
        if len(self.hashes) == SIZE:
            # discard most hashes of a large level before sorting
            further = further[further < self.hashes[-1]]
        if len(further):
            self.hashes = np.unique(np.concatenate([self.hashes, further]))[:SIZE]


def hashes_of(energies: np.ndarray) -> np.ndarray:
    """A 64-bit hash (S,) for each float64 energy (S,)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        mixed = np.ascontiguousarray(energies, np.float64).view(np.uint64) + INCREMENT
        mixed = (mixed ^ (mixed >> np.uint64(30))) * FIRST_FACTOR
        mixed = (mixed ^ (mixed >> np.uint64(27))) * SECOND_FACTOR
    return mixed ^ (mixed >> np.uint64(31))


def common(part: Sequence[str], whole: Sequence[str]) -> tuple[int, int]:
    """How many energies of `part` are also in `whole`, and how many of `part` can be judged.

    part, whole: sketches as returned by `EnergySketch.to_list`. If the sketch of the whole is
    full, hashes larger than all of its hashes cannot be judged, since they may have been discarded.
    """
    judged = set(part)
    if len(whole) >= SIZE:
        judged = {value for value in judged if value <= max(whole)}
    return len(judged & set(whole)), len(judged)
