"""Verlet lists: neighbour lists with a margin, so that one search serves many steps of dynamics.

L. Verlet, Phys. Rev. 159, 98 (1967).
"""

from __future__ import annotations

import numpy as np

from ...data_pipelines.neighbours import neighbour_list
from .errors import EngineError


class VerletList:
    """Stores all pairs within cutoff + skin (both in A), and selects those within the cutoff.

    The search is repeated once an atom has moved by more than half the skin. Until then, no pair
    outside the list can have come within the cutoff. The search is also repeated when the number of
    atoms, the cell or its periodicity changes.

    Raises EngineError for a negative skin.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        # `not >=` also refuses NaN
        if not skin >= 0:
            raise EngineError(f"skin={skin}", remedy="give a length in A, zero or more")
        self.cutoff = cutoff
        self.skin = skin
        self.num_searches = 0
        self.squared_distances = np.empty(0)
        """(E',) in A^2 for all pairs of `candidates`, in the structure of the last call."""
        # the structure at the last search
        self._edge_index = np.empty((2, 0), np.int64)
        self._positions = np.empty((0, 3))
        self._cell = np.empty((0, 3))
        self._pbc = np.zeros(3, bool)

    @property
    def candidates(self) -> np.ndarray:
        """Senders and receivers (2, E') of all pairs within cutoff + skin at the last search."""
        return self._edge_index

    def edges(
        self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """edge_index (2, E) and cell_shifts (E, 3) of all pairs within the cutoff.

        `positions` (N, 3) and `cell` (3, 3) are in A, `pbc` is (3,). Edges are sorted by receiver.
        """
        if not self._is_valid(positions, cell, pbc):
            self._search(positions, cell, pbc)

        # `take` is several times faster than indexing with an array
        sender, receiver = self._edge_index
        from_receiver = positions.take(receiver, 0)
        vectors = positions.take(sender, 0) - from_receiver + self._offsets

        # squared distances, which avoid a square root per pair
        self.squared_distances = np.einsum("ea,ea->e", vectors, vectors)
        within = np.flatnonzero(self.squared_distances <= self.cutoff**2)
        edge_index = self._edge_index.take(within, 1)
        cell_shifts = self._cell_shifts.take(within, 0)
        return edge_index, cell_shifts

    def _search(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
        search_radius = self.cutoff + self.skin
        found = neighbour_list(positions, cell, pbc, search_radius)
        self._edge_index, self._cell_shifts = found
        # the offsets (E', 3) of the periodic images do not change until the next search
        self._offsets = self._cell_shifts @ cell

        # copies, because the caller moves its atoms in place
        self._positions = positions.copy()
        self._cell = cell.copy()
        self._pbc = np.array(pbc)
        self.num_searches += 1

    def _is_valid(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        """Whether the last search still covers every pair within the cutoff."""
        if self.num_searches == 0:
            return False
        if positions.shape != self._positions.shape:
            return False
        if not np.array_equal(cell, self._cell):
            return False
        if not np.array_equal(pbc, self._pbc):
            return False

        # two atoms that approach each other by half the skin each use up the whole skin
        moved = positions - self._positions
        squared = np.einsum("na,na->n", moved, moved)
        largest_squared = squared.max(initial=0.0)
        allowed = 0.5 * self.skin
        return bool(largest_squared <= allowed**2)
