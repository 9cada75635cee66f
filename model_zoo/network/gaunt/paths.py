"""Which degrees couple. Settings and network both need this, and settings must not import torch."""

from __future__ import annotations

import itertools


def natural_parity_paths(l_in: int, l_edge: int, l3: int) -> list[tuple[int, int]]:
    """All (l1, l2) that couple to l3 with l1 + l2 + l3 even, ordered by l1."""
    paths = []
    for l1 in range(l_in + 1):
        for l2 in range(l_edge + 1):
            couples = abs(l1 - l2) <= l3 <= l1 + l2
            if couples and (l1 + l2 + l3) % 2 == 0:
                paths.append((l1, l2))
    return paths


def layer_degrees(num_layers: int, l_hidden: int) -> list[tuple[int, int]]:
    """Highest degree of the input and of the output of every layer.

    The first input is scalar, and the readout takes scalars only.
    """
    between = [l_hidden] * (num_layers - 1)
    degrees = [0, *between, 0]
    return list(itertools.pairwise(degrees))
