"""Which degrees couple. This module is free of torch, because the settings import it too."""

from __future__ import annotations

import itertools


def natural_parity_paths(l_in: int, l_edge: int, l3: int) -> list[tuple[int, int]]:
    """All pairs (l1, l2) that couple to l3 with l1 + l2 + l3 even, ordered by l1.

    l1 runs up to `l_in`, and l2 up to `l_edge`.
    """
    paths = []
    for l1 in range(l_in + 1):
        for l2 in range(l_edge + 1):
            couples = abs(l1 - l2) <= l3 <= l1 + l2
            if couples and (l1 + l2 + l3) % 2 == 0:
                paths.append((l1, l2))
    return paths


def layer_degrees(num_layers: int, l_hidden: int) -> list[tuple[int, int]]:
    """The highest degrees (input, output) of every layer.

    The first input is scalar, and so is the last output, because the readout uses only scalars.
    """
    between = [l_hidden] * (num_layers - 1)
    degrees = [0, *between, 0]
    return list(itertools.pairwise(degrees))
