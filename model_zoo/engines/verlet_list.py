"""Neighbours with a skin (Verlet, Phys. Rev. 159, 98, 1967): the search is repeated only when atoms have moved."""

from __future__ import annotations

import numpy as np

from ...data_pipelines.neighbours import neighbour_list


class SkinList:
    """Pairs within cutoff + skin (A), searched again when an atom has moved by more than half the skin.

    No pair can come within the cutoff unseen before that. The cell and what is periodic must stay the same.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        if not skin >= 0:
            raise ValueError(f"skin={skin}: a length in A, zero or more")
        self.cutoff, self.skin = cutoff, skin
        self.num_searches = 0
        self._positions = self._cell = np.empty((0, 3))
        self._pbc = np.zeros(3, bool)

    def edges(
        self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """edge_index (2, E) and cell_shifts (E, 3) of all pairs within the cutoff, sorted by receiver."""
        if not self._still_holds(positions, cell, pbc):
            self._index, self._shifts = neighbour_list(
                positions, cell, pbc, self.cutoff + self.skin
            )
            self._offsets = self._shifts @ cell
            self._positions, self._cell, self._pbc = positions.copy(), cell.copy(), np.array(pbc)
            self.num_searches += 1
        sender, receiver = self._index
        vectors = positions.take(sender, 0) - positions.take(receiver, 0) + self._offsets
        near = np.flatnonzero(np.einsum("ea,ea->e", vectors, vectors) <= self.cutoff**2)
        return self._index.take(near, 1), self._shifts.take(near, 0)

    def _still_holds(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        if self.num_searches == 0 or positions.shape != self._positions.shape:
            return False
        if not (np.array_equal(cell, self._cell) and np.array_equal(pbc, self._pbc)):
            return False
        moved = positions - self._positions
        return bool(np.einsum("na,na->n", moved, moved).max(initial=0.0) <= (0.5 * self.skin) ** 2)
