"""Neighbour lists from vesin, a compiled library; the only place that calls it."""

from __future__ import annotations

import numpy as np
from ase.geometry import complete_cell
from vesin import NeighborList


# vesin scales a flat or thin grid of boxes down to 1e5 by itself, and there it divides by zero and
# ends the process
MAX_BOXES = 20_000


def neighbour_list(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs (sender j, receiver i) within `cutoff` (A), sorted by receiver.

    positions (N, 3) and cell (3, 3) in A; cell vectors along which nothing is periodic may be 0.

    Returns edge_index (2, E) int64 and cell_shifts (E, 3) float64. The vector from receiver to
    sender is `positions[j] - positions[i] + cell_shifts @ cell`. An atom is its own neighbour
    through the cell's images but never at zero shift.
    """
    positions = np.ascontiguousarray(positions, np.float64)
    cell = np.ascontiguousarray(cell, np.float64)
    if np.any(pbc) and not np.all(pbc):
        cell = np.ascontiguousarray(complete_cell(cell))

    search = _search_radius(positions, cell, pbc, cutoff)
    calculator = NeighborList(cutoff=search, full_list=True, sorted=True, n_threads=1)
    periodic = [bool(is_periodic) for is_periodic in pbc]
    # vesin lists a pair as (i, j), with the vector from i to j
    receiver, sender, shifts = calculator.compute(
        points=positions, box=cell, periodic=periodic, quantities="ijS"
    )
    edge_index = np.stack([sender, receiver]).astype(np.int64)
    shifts = shifts.astype(np.float64)

    if search > cutoff:
        # the wider search found too many pairs
        sender, receiver = edge_index
        vectors = positions[sender] - positions[receiver] + shifts @ cell
        near = np.linalg.norm(vectors, axis=1) <= cutoff
        edge_index = edge_index[:, near]
        shifts = shifts[near]
    return edge_index, shifts


def cell_heights(cell: np.ndarray) -> np.ndarray:
    """Distances between opposite faces of a cell (3, 3), (3,) in A; 0 where it has no volume."""
    # the area of each face is the length of the cross product of its two edges
    normals = np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]])
    areas = np.linalg.norm(normals, axis=1)
    volume = abs(np.linalg.det(cell))
    return np.divide(volume, areas, out=np.zeros(3), where=areas > 0)


def _search_radius(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> float:
    """The cutoff, enlarged until at most MAX_BOXES boxes of that width fill the structure, A."""
    extents = np.ptp(positions, axis=0)
    if np.any(pbc):
        # along the other axes the search grid spans the positions, whose diagonal bounds it
        extents = np.where(pbc, cell_heights(cell), np.linalg.norm(extents))
    while _num_boxes(extents, cutoff) > MAX_BOXES:
        cutoff *= 1.25
    return cutoff


def _num_boxes(extents: np.ndarray, width: float) -> float:
    """How many boxes of a width fill a space with these extents."""
    return float(np.prod(np.floor(extents / width) + 1))
