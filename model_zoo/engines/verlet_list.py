"""Verlet lists: neighbour lists with a margin, so that a search serves many steps of dynamics.

L. Verlet, Phys. Rev. 159, 98 (1967).
"""

from __future__ import annotations

import numpy as np

from ...data_pipelines.neighbours import neighbour_list
from .errors import EngineError


class VerletList:
    """Pairs within cutoff + skin (both in A), from which those within the cutoff are selected.

    The search is repeated when an atom has moved by more than half the skin: before that, no pair
    can have come within the cutoff unseen. It is also repeated when the number of atoms, the cell
    or its periodicity changes.

    Raises EngineError for a negative skin.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        # `not >=` refuses NaN too
        if not skin >= 0:
            raise EngineError(f"skin={skin}", remedy="give a length in A, zero or more")
        self.cutoff = cutoff
        self.skin = skin
        self.num_searches = 0
        self.squared_distances = np.empty(0)
        """(E',) in A^2, of all pairs of `candidates` in the structure that was given last."""
        # the structure at the last search
        self._edge_index = np.empty((2, 0), np.int64)
        self._positions = np.empty((0, 3))
        self._cell = np.empty((0, 3))
        self._pbc = np.zeros(3, bool)

    @property
    def candidates(self) -> np.ndarray:
        """Sender and receiver (2, E') of all pairs within cutoff + skin at the last search."""
        return self._edge_index

    def edges(
        self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """edge_index (2, E) and cell_shifts (E, 3) of all pairs within the cutoff, by receiver."""
        if not self._is_valid(positions, cell, pbc):
            self._search(positions, cell, pbc)

        # take is several times as fast as indexing with an array
        sender, receiver = self._edge_index
        from_receiver = positions.take(receiver, 0)
        vectors = positions.take(sender, 0) - from_receiver + self._offsets

        # squares, because the root of every distance would be wasted
        self.squared_distances = np.einsum("ea,ea->e", vectors, vectors)
        within = np.flatnonzero(self.squared_distances <= self.cutoff**2)
        edge_index = self._edge_index.take(within, 1)
        cell_shifts = self._cell_shifts.take(within, 0)
        return edge_index, cell_shifts

    def _search(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
        search_radius = self.cutoff + self.skin
        found = neighbour_list(positions, cell, pbc, search_radius)
        self._edge_index, self._cell_shifts = found
        # what the cell's images add to each vector, (E, 3): it stays the same until the next search
        self._offsets = self._cell_shifts @ cell

        # copies: the caller moves its atoms in place
        self._positions = positions.copy()
        self._cell = cell.copy()
        self._pbc = np.array(pbc)
        self.num_searches += 1

    def _is_valid(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        """Whether the last search still holds every pair within the cutoff."""
        if self.num_searches == 0:
            return False
        if positions.shape != self._positions.shape:
            return False
        if not np.array_equal(cell, self._cell):
            return False
        if not np.array_equal(pbc, self._pbc):
            return False

        # two atoms that approach each other by half the skin each use it up
        moved = positions - self._positions
        squared = np.einsum("na,na->n", moved, moved)
        largest_squared = squared.max(initial=0.0)
        allowed = 0.5 * self.skin
        return bool(largest_squared <= allowed**2)
