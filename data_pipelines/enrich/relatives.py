"""Which elements are rare, and which common ones are chemically nearest to them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from ase.data import covalent_radii


# Z of the noble gases, after each of which a period begins
NOBLE_GASES = (0, 2, 10, 18, 36, 54, 86, 118)
LANTHANIDES = range(57, 72)
ACTINIDES = range(89, 104)
F_BLOCK_GROUP = 3.0

# An element is closer to those of its group than to its neighbours in the period.
PERIOD_WEIGHT = 0.5
# Beyond it, an element is no relative: oxygen should not lend its places to tin.
MOST_UNLIKE = 3.0


def place_in_table(atomic_number: int) -> tuple[float, int]:
    """Group 1 to 18 and period 1 to 7 of an element; the f-block is in group 3."""
    period = next(n for n in range(1, len(NOBLE_GASES)) if atomic_number <= NOBLE_GASES[n])
    if atomic_number in LANTHANIDES or atomic_number in ACTINIDES:
        return F_BLOCK_GROUP, period

    first = NOBLE_GASES[period - 1] + 1
    from_left = atomic_number - first + 1
    from_right = 18 - (NOBLE_GASES[period] - atomic_number)
    # s-block from the left; d- and p-block from the right, whatever lies between them
    group = from_left if from_left <= 2 and atomic_number != 2 else from_right
    return float(group), period


def unlikeness(first: int, second: int) -> float:
    """How far apart two elements are in the periodic table; covalent radii decide ties."""
    group, period = place_in_table(first)
    other_group, other_period = place_in_table(second)
    radii = covalent_radii[[first, second]]
    apart = abs(group - other_group) + PERIOD_WEIGHT * abs(period - other_period)
    return float(apart + 0.1 * abs(np.log(radii[0] / radii[1])))


def relatives(atomic_number: int, candidates: Iterable[int], number: int) -> list[int]:
    """The `number` candidates that are most like an element, the nearest first.

    The element itself is among them where it is a candidate. Those beyond MOST_UNLIKE are left out,
    except that the nearest one always counts.
    """
    ranked = sorted(candidates, key=lambda other: (unlikeness(atomic_number, other), other))
    near = [other for other in ranked if unlikeness(atomic_number, other) <= MOST_UNLIKE]
    return near[:number] or ranked[:1]
