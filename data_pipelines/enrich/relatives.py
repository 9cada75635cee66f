"""Relatives of an element: the elements that are chemically most similar to it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from ase.data import covalent_radii


# Z of the noble gases; a new period begins after each of them
NOBLE_GASES = (0, 2, 10, 18, 36, 54, 86, 118)
LANTHANIDES = range(57, 72)
ACTINIDES = range(89, 104)
F_BLOCK_GROUP = 3.0

# an element is closer to the elements of its group than to its neighbours in the period
PERIOD_WEIGHT = 0.5
# elements beyond this distance are not relatives: tin should not replace oxygen
MOST_UNLIKE = 3.0


def place_in_table(atomic_number: int) -> tuple[float, int]:
    """Group (1 to 18) and period (1 to 7) of an element; the f-block counts as group 3."""
    period = next(n for n in range(1, len(NOBLE_GASES)) if atomic_number <= NOBLE_GASES[n])
    if atomic_number in LANTHANIDES or atomic_number in ACTINIDES:
        return F_BLOCK_GROUP, period

    first = NOBLE_GASES[period - 1] + 1
    from_left = atomic_number - first + 1
    from_right = 18 - (NOBLE_GASES[period] - atomic_number)
    # s-block elements are counted from the left, d- and p-block elements from the right
    group = from_left if from_left <= 2 and atomic_number != 2 else from_right
    return float(group), period


def unlikeness(first: int, second: int) -> float:
    """Distance of two elements in the periodic table; covalent radii break ties."""
    group, period = place_in_table(first)
    other_group, other_period = place_in_table(second)
    radii = covalent_radii[[first, second]]
    apart = abs(group - other_group) + PERIOD_WEIGHT * abs(period - other_period)
    return float(apart + 0.1 * abs(np.log(radii[0] / radii[1])))


def relatives(atomic_number: int, candidates: Iterable[int], number: int) -> list[int]:
    """The `number` candidates that are most similar to an element, the most similar first.

    The element itself is included if it is a candidate. Candidates beyond MOST_UNLIKE are left out,
    but the result always has at least the nearest one. Arguments are atomic numbers.
    """
    ranked = sorted(candidates, key=lambda other: (unlikeness(atomic_number, other), other))
    near = [other for other in ranked if unlikeness(atomic_number, other) <= MOST_UNLIKE]
    return near[:number] or ranked[:1]
