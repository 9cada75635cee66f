"""Neighbour lists from vesin, a compiled library; the only place that calls it."""

from __future__ import annotations

import numpy as np
from ase.geometry import complete_cell
from vesin import NeighborList


MAX_BOXES = 20_000  # where vesin itself scales a flat or thin grid down to 1e5 boxes it divides by zero and dies


def neighbour_list(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs (sender j, receiver i) within `cutoff` (A), sorted by receiver.

    Returns edge_index (2, E) int64 and cell_shifts (E, 3) float64 such that the vector from receiver to
    sender is `positions[j] - positions[i] + cell_shifts @ cell`.  An atom is its own neighbour through the
    cell's images but never at zero shift.  Cell vectors along which nothing is periodic may be zero.
    """
    positions, cell = (
        np.ascontiguousarray(positions, np.float64),
        np.ascontiguousarray(cell, np.float64),
    )
    if np.any(pbc) and not np.all(pbc):
        cell = np.ascontiguousarray(complete_cell(cell))
    search = _search_radius(positions, cell, pbc, cutoff)
    calculator = NeighborList(cutoff=search, full_list=True, sorted=True, n_threads=1)
    receiver, sender, shifts = calculator.compute(
        points=positions, box=cell, periodic=[bool(p) for p in pbc], quantities="ijS"
    )
    edge_index, shifts = np.stack([sender, receiver]).astype(np.int64), shifts.astype(np.float64)
    if search > cutoff:
        vectors = positions[edge_index[0]] - positions[edge_index[1]] + shifts @ cell
        near = np.linalg.norm(vectors, axis=1) <= cutoff
        edge_index, shifts = edge_index[:, near], shifts[near]
    return edge_index, shifts


def cell_heights(cell: np.ndarray) -> np.ndarray:
    """Distances between opposite faces of a cell, (3,) in A; zero where its vectors do not span space."""
    areas = np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1)
    return np.divide(abs(np.linalg.det(cell)), areas, out=np.zeros(3), where=areas > 0)


def _search_radius(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> float:
    """The cutoff, widened until the boxes of that width that fill the structure are few enough."""
    extents = np.ptp(positions, axis=0)
    if np.any(pbc):
        extents = np.where(pbc, cell_heights(cell), np.linalg.norm(extents))
    while np.prod(np.floor(extents / cutoff) + 1) > MAX_BOXES:
        cutoff *= 1.25
    return cutoff
