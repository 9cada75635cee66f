"""Warnings about structures outside the training data of a level of theory.

A calculator looks for three things: pairs of elements that were never neighbours in training, pairs
of atoms that are closer than in training, and new kinds of boundary, such as a molecule at a level
trained on crystals. It warns at most once about each, in one line, and names a level of theory that
would fit, if there is one. Elements without training data are refused elsewhere.

Pair distances are computed at every step anyway. The only additional cost per step is a comparison
with limits, which are looked up at each neighbour search.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from ...core.errors import EvenfieldWarning
from ...data_pipelines.census.domain import BOUNDARIES, LevelDomain, boundary_of
from ..package.domain_record import main_kinds
from ..package.levels import level_of_member, own_levels
from ..package.record import ModelRecord
from .verlet_list import VerletList


# A; vibrating atoms come slightly closer in a long run than in the training structures
MARGIN = 0.05
# A; if no cell component has changed by more, the kind of boundary is not determined again
STRAIN = 0.5
# the kinds of warnings
PAIR = "pair"
DISTANCE = "distance"
BOUNDARY = "boundary"


class DomainWarning(EvenfieldWarning):
    """A structure is outside the training data of the level of theory."""


class DomainWatch:
    """The domain of an engine's level of theory, and which warnings were already given."""

    def __init__(
        self, level: str, domains: Mapping[str, LevelDomain], elements: Mapping[str, Sequence[str]]
    ) -> None:
        """Watch `level`, which must have a domain.

        `domains` and `elements` (chemical symbols) map levels of theory to what they were trained
        on.
        """
        self.level = level
        self.domain = domains[level]
        self.told: set[str] = set()
        self._shortest = self.domain.shortest()
        self._domains = domains
        # cached until the next warning
        self._limits: np.ndarray | None = None
        self._elements = {
            name: {atomic_numbers[symbol] for symbol in symbols}
            for name, symbols in elements.items()
        }

    @classmethod
    def of(
        cls,
        record: ModelRecord,
        levels: Sequence[str],
        level: str,
        domains: Mapping[str, LevelDomain],
    ) -> Self | None:
        """Create the watch for a level of a model; None if the level has no domain."""
        # ensemble members have the training structures of the head they belong to
        level = level_of_member(level, levels)
        if level not in domains:
            return None
        elements = {name: record.trained_symbols(name) for name in own_levels(levels)}
        known = {name: domain for name, domain in domains.items() if name in elements}
        return cls(level, known, elements)

    @property
    def is_over(self) -> bool:
        """Whether all three kinds of warnings have been given."""
        return len(self.told) == 3

    def limits(self, cutoff: float) -> np.ndarray:
        """Squared distances (119, 119) in A^2 below which a pair causes a warning; zero for never.

        `cutoff` is that of the model, in A. Distances beyond it do not matter.
        """
        if self._limits is None:
            self._limits = self._new_limits(cutoff)
        return self._limits

    def _new_limits(self, cutoff: float) -> np.ndarray:
        is_known = np.isfinite(self._shortest)
        unknown = min(self.domain.radius, cutoff)
        limits = np.where(is_known, np.maximum(self._shortest - MARGIN, 0.0), unknown)
        limits[is_known & (DISTANCE in self.told)] = 0.0
        limits[~is_known & (PAIR in self.told)] = 0.0
        return np.square(limits)

    def is_new_boundary(self, boundary: int) -> bool:
        """Whether a kind of boundary, an index into BOUNDARIES, must be warned about."""
        return BOUNDARY not in self.told and not self.domain.knows(BOUNDARIES[boundary])

    def warn_of_boundary(self, surroundings: Surroundings) -> None:
        """Warn about a kind of boundary that is rare or absent in the training data."""
        kinds = " and ".join(main_kinds(self.domain))
        kind = BOUNDARIES[surroundings.boundary]
        text = f"the structure is a {kind}, and {self.level} was trained on {kinds}"
        few = self.domain.boundaries.get(kind, 0)
        if few:
            text += f" (a {kind} is {few} of {self.domain.structures} structures)"
        self._warn(BOUNDARY, text, surroundings)

    def warn_of_pairs(self, surroundings: Surroundings) -> None:
        """Warn about pairs that are closer than their limits, if there are any."""
        unknown = []
        close = []
        for (first, second), distance in surroundings.distances.items():
            known = float(self._shortest[first, second])
            name = f"{chemical_symbols[first]}-{chemical_symbols[second]}"
            if np.isinf(known):
                unknown.append((distance, name))
            else:
                close.append((distance - known, name, distance))

        radius = self.domain.radius
        if unknown and PAIR not in self.told and min(unknown)[0] < radius:
            distance, name = min(unknown)
            others = sum(entry[0] < radius for entry in unknown) - 1
            more = f", nor on {others} others in the structure" if others else ""
            self._warn(
                PAIR,
                f"{name} is {distance:.2f} A apart, and {self.level} was never trained on this "
                f"pair within {radius:g} A{more}",
                surroundings,
            )
        if close and DISTANCE not in self.told and min(close)[0] < -MARGIN:
            difference, name, distance = min(close)
            self._warn(
                DISTANCE,
                f"{name} is {distance:.2f} A apart, {-difference:.2f} A closer than in any "
                f"training structure of {self.level}",
                surroundings,
            )

    def _warn(self, kind: str, text: str, surroundings: Surroundings) -> None:
        self.told.add(kind)
        self._limits = None
        if len(self._elements) > 1:
            fitting = self._fitting(surroundings)
            if fitting is None:
                text += "; no other level of theory of the model fits"
            else:
                text += f"; level_of_theory={fitting!r} fits"
        warnings.warn(text, DomainWarning, stacklevel=2)

    def _fitting(self, surroundings: Surroundings) -> str | None:
        """The largest level whose domain contains the structure; None if there is no such level."""
        kind = BOUNDARIES[surroundings.boundary]
        found = []
        for level, domain in self._domains.items():
            knows_elements = surroundings.elements <= self._elements[level]
            if not knows_elements or not domain.knows(kind):
                continue
            shortest = domain.shortest()
            is_inside = all(
                # a pair without training data has an infinite `shortest` and must be out of range
                shortest[pair] - MARGIN <= distance or distance >= domain.radius
                for pair, distance in surroundings.distances.items()
            )
            if is_inside:
                found.append((domain.structures, level))
        return max(found)[1] if found else None


class Surroundings:
    """The properties of a structure that are compared with a domain.

    They are computed only if a warning may be due.
    """

    def __init__(self, numbers: np.ndarray, boundary: int, verlet_list: VerletList) -> None:
        self.elements = set(numbers.tolist())
        self.boundary = boundary
        self.distances: dict[tuple[int, int], float] = {}
        """Shortest distance in A of each pair of atomic numbers, within the search radius."""
        sender, receiver = numbers[verlet_list.candidates]
        # every pair is listed in both directions
        first = np.minimum(sender, receiver)
        second = np.maximum(sender, receiver)
        order = np.argsort(verlet_list.squared_distances)
        pairs, places = np.unique(np.stack([first, second])[:, order], axis=1, return_index=True)
        shortest = np.sqrt(verlet_list.squared_distances[order[places]])
        for (one, other), distance in zip(pairs.T.tolist(), shortest.tolist(), strict=True):
            self.distances[one, other] = distance


class StructureWatch:
    """Compares one structure of an engine with a domain, using cached limits between searches."""

    def __init__(self, watch: DomainWatch, verlet_list: VerletList) -> None:
        self._watch = watch
        self._verlet_list = verlet_list
        self._numbers = np.empty(0, int)
        # the cell for which the kind of boundary was determined
        self._cell = np.zeros((3, 3))
        self._pbc = np.zeros(3, bool)
        self._boundary = 0
        self._num_searches = -1
        # (E,) for the pairs of the Verlet list, in A^2
        self._limits = np.empty(0)

    def look(
        self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> None:
        """Warn about a structure if needed. The Verlet list must just have computed its edges.

        `numbers` (N,) are atomic numbers, `positions` (N, 3) and `cell` (3, 3) are in A, `pbc` is
        (3,).
        """
        if self._watch.is_over:
            return
        is_other = not np.array_equal(numbers, self._numbers)
        if is_other or self._num_searches != self._verlet_list.num_searches:
            self._num_searches = self._verlet_list.num_searches
            self._numbers = numbers.copy()
            self._look_up_limits()
            # with a variable cell there is a search at every step, but the boundary stays the same
            strain = np.abs(cell - self._cell).max()
            if is_other or strain > STRAIN or not np.array_equal(pbc, self._pbc):
                self._look_at_boundary(positions, cell, pbc)

        if (self._verlet_list.squared_distances < self._limits).any():
            self._watch.warn_of_pairs(self._surroundings())
            # kinds that were warned about have no limits any more
            self._look_up_limits()

    def _look_at_boundary(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
        self._cell = cell.copy()
        self._pbc = np.array(pbc)
        self._boundary = boundary_of(positions, cell, pbc)
        if self._watch.is_new_boundary(self._boundary):
            self._watch.warn_of_boundary(self._surroundings())

    def _look_up_limits(self) -> None:
        sender, receiver = self._numbers[self._verlet_list.candidates]
        self._limits = self._watch.limits(self._verlet_list.cutoff)[sender, receiver]

    def _surroundings(self) -> Surroundings:
        return Surroundings(self._numbers, self._boundary, self._verlet_list)
