"""Neighbour lists from vesin, a compiled library; the only place that calls it."""

from __future__ import annotations

import numpy as np
from vesin import NeighborList


def neighbour_list(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs (sender j, receiver i) within `cutoff` (A), sorted by receiver.

    Returns edge_index (2, E) int64 and cell_shifts (E, 3) float64 such that the vector from receiver to
    sender is `positions[j] - positions[i] + cell_shifts @ cell`.  An atom is its own neighbour through the
    cell's images but never at zero shift.
    """
    calculator = NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=1)
    receiver, sender, shifts = calculator.compute(
        points=np.ascontiguousarray(positions, dtype=np.float64),
        box=np.ascontiguousarray(cell, dtype=np.float64),
        periodic=[bool(p) for p in pbc],
        quantities="ijS",
    )
    edge_index = np.stack([sender, receiver]).astype(np.int64)
    return edge_index, shifts.astype(np.float64)
