"""Which structures a level of theory has: a small sketch of their energies.

The name of a level says nothing about what is in it. Energies of many digits do: they are as good
as a number for each labelled structure. A sketch keeps the smallest of their hashes, so that two
sketches tell which share of the energies two data sets have in common (bottom-k sampling; Cohen and
Kaplan, PODC 2007). Its size does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np


SIZE = 64  # hashes that are kept

# splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64 bits that mixes well
INCREMENT = np.uint64(0x9E3779B97F4A7C15)
FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
SECOND_FACTOR = np.uint64(0x94D049BB133111EB)


class EnergySketch:
    """The SIZE smallest hashes of different energies; two add up with `+=`."""

    def __init__(self) -> None:
        self.hashes = np.zeros(0, np.uint64)

    def add(self, energies: np.ndarray) -> None:
        """Count the energies (S,) of some structures, in eV."""
        self._keep(hashes_of(energies))

    def __iadd__(self, other: EnergySketch) -> Self:
        self._keep(other.hashes)
        return self

    def to_list(self) -> list[str]:
        """JSON has no integers of 64 bits, so hashes are written in hexadecimal."""
        return [f"{value:016x}" for value in self.hashes.tolist()]

    def _keep(self, further: np.ndarray) -> None:
        if len(self.hashes) == SIZE:
            # most energies of a large level are above, and need not be sorted
            further = further[further < self.hashes[-1]]
        if len(further):
            self.hashes = np.unique(np.concatenate([self.hashes, further]))[:SIZE]


def hashes_of(energies: np.ndarray) -> np.ndarray:
    """A number of 64 bits (S,) for each energy (S,) of double precision."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        mixed = np.ascontiguousarray(energies, np.float64).view(np.uint64) + INCREMENT
        mixed = (mixed ^ (mixed >> np.uint64(30))) * FIRST_FACTOR
        mixed = (mixed ^ (mixed >> np.uint64(27))) * SECOND_FACTOR
    return mixed ^ (mixed >> np.uint64(31))


def common(part: Sequence[str], whole: Sequence[str]) -> tuple[int, int]:
    """How many energies of one sketch another data set has too, and of how many that is known.

    part, whole: as `EnergySketch.to_list` gives them. A hash above all of a full sketch of the
    whole may have been left out there, so nothing is known of it.
    """
    judged = set(part)
    if len(whole) >= SIZE:
        judged = {value for value in judged if value <= max(whole)}
    return len(judged & set(whole)), len(judged)
