"""The domain of a level of theory: which kinds of structures it was trained on.

A model learns the forces between two elements only from structures in which they are neighbours,
and only down to the shortest distance that occurs there. It learns molecules only from molecules.
The domain is a short summary of the training structures: the pairs of elements with their shortest
distances, the kinds of boundary, and the range of sizes.

Domains merge by minima and sums, so they can be collected shard by shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from ase.geometry import complete_cell
from pydantic import Field, field_validator

from ...core.settings import Settings
from ..structure import MAX_ATOMIC_NUMBER, Pairs, Structure, pairs_within


# A; two elements count as neighbours if atoms of them are closer than this
RADIUS = 4.0
# A; a gap between atoms that is wider than this along a direction counts as vacuum, since no cutoff
# in use bridges it
VACUUM = 6.0
# structures whose pairs are in memory together
AT_ONCE = 256
# this number of structures of one kind of boundary is enough in a data set of any size
ENOUGH = 100
NUM_ELEMENTS = MAX_ATOMIC_NUMBER + 1

Boundary = Literal["molecule", "chain", "slab", "crystal"]
# indexed by the number of directions along which the structure is continuous
BOUNDARIES: tuple[Boundary, ...] = ("molecule", "chain", "slab", "crystal")


@dataclass(frozen=True)
class StructureDomains:
    """The contributions of S structures to the domains of their levels."""

    boundaries: np.ndarray
    """(S,) uint8, index into BOUNDARIES."""

    num_pairs: np.ndarray
    """(S,) number of neighbouring pairs of elements in each structure."""

    pairs: np.ndarray
    """(P,) uint16, element pairs of all structures, concatenated and encoded by `_pair_code`."""

    distances: np.ndarray
    """(P,) float32, shortest distance of each pair in A."""

    @classmethod
    def of(cls, structures: Sequence[Structure], pairs: Sequence[Pairs]) -> Self:
        """The contributions of structures, from their pairs of atoms within RADIUS.

        All structures are handled at once, because numpy calls for each of them would slow down a
        conversion.
        """
        sizes = np.array([len(structure) for structure in structures])
        atomic_numbers = np.concatenate([structure.atomic_numbers for structure in structures])
        owner = np.repeat(np.arange(len(sizes)), sizes)
        # the distinct elements of each structure, and for each atom the index of its element
        keys, element = np.unique(owner * NUM_ELEMENTS + atomic_numbers, return_inverse=True)
        owner_of_key, number_of_key = np.divmod(keys, NUM_ELEMENTS)
        num_elements = np.bincount(owner_of_key, minlength=len(sizes))

        # for each structure, a small table of elements by elements; all tables are concatenated
        first_element = np.cumsum(num_elements) - num_elements
        table_size = num_elements**2
        first_place = np.cumsum(table_size) - table_size
        row_start = first_place[owner] + (element - first_element[owner]) * num_elements[owner]
        column = element - first_element[owner]

        num_edges = [len(own.lengths) for own in pairs]
        edges = np.concatenate([own.edge_index for own in pairs], axis=1)
        edges += np.repeat(np.cumsum(sizes) - sizes, num_edges)
        lengths = np.concatenate([own.lengths for own in pairs])
        shortest = np.full(table_size.sum(), np.inf)
        np.minimum.at(shortest, row_start[edges[0]] + column[edges[1]], lengths)

        # convert table indices back to elements; every pair occurs in both orders
        found = np.flatnonzero(np.isfinite(shortest))
        structure = np.searchsorted(first_place, found, side="right") - 1
        row, column = np.divmod(found - first_place[structure], num_elements[structure])
        first = number_of_key[first_element[structure] + row]
        second = number_of_key[first_element[structure] + column]
        is_ordered = first <= second
        boundaries = boundaries_of(
            [structure.positions for structure in structures],
            np.array([structure.cell for structure in structures], float),
            np.array([structure.pbc for structure in structures], bool),
        )
        codes = _pair_code(first[is_ordered], second[is_ordered])
        return cls(
            boundaries=boundaries.astype(np.uint8),
            num_pairs=np.bincount(structure[is_ordered], minlength=len(sizes)),
            pairs=codes.astype(np.uint16),
            distances=shortest[found[is_ordered]].astype(np.float32),
        )


def _pair_code(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Encode a pair of atomic numbers, first <= second, as one number."""
    return first * NUM_ELEMENTS + second


def boundary_of(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> int:
    """`boundaries_of` for a single structure: positions (N, 3) and cell (3, 3) in A, pbc (3,)."""
    return int(boundaries_of([positions], cell[None], np.asarray(pbc, bool)[None])[0])


def boundaries_of(
    positions: Sequence[np.ndarray], cells: np.ndarray, pbc: np.ndarray
) -> np.ndarray:
    """Number of directions along which each structure is continuous, (S,): an index to BOUNDARIES.

    positions: (N, 3) of each structure, in A. cells: (S, 3, 3) in A. pbc: (S, 3).

    A periodic direction does not count if a gap wider than VACUUM separates the images along it, as
    in a slab or a molecule in a periodic box.
    """
    numbers = pbc.sum(axis=1)
    cells = cells.copy()
    for index in np.flatnonzero(numbers < 3):
        # vectors of non-periodic directions may be zero; any nonzero vector in their place will do
        cells[index] = complete_cell(cells[index]) if numbers[index] else np.eye(3)

    # the columns are reciprocal vectors; their lengths are the inverse heights of the cell
    inverse = np.linalg.inv(cells)
    heights = 1.0 / np.sqrt(np.square(inverse).sum(axis=1))
    # a thin cell has no room for vacuum, so many structures need no search for gaps
    is_wide = pbc & (heights > VACUUM)
    for axis in np.flatnonzero(is_wide.any(axis=0)):
        rows = np.flatnonzero(is_wide[:, axis])
        gaps = _largest_gaps([positions[row] for row in rows.tolist()], inverse[rows, :, axis])
        numbers[rows] -= gaps * heights[rows, axis] > VACUUM
    return numbers


def _largest_gaps(positions: Sequence[np.ndarray], reciprocal: np.ndarray) -> np.ndarray:
    """Largest gap between atoms along one cell vector (S,), as a fraction of the cell.

    positions: (N, 3) of each structure, in A.
    reciprocal: (S, 3) reciprocal vector of the direction for each structure, in 1/A.
    """
    sizes = np.array([len(own) for own in positions])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    along = np.einsum("na,na->n", np.concatenate(positions), reciprocal[owner]) % 1.0
    # a single sort for all structures: the integer part keeps them apart
    along = np.sort(owner + along)
    last = np.cumsum(sizes) - 1
    first = last + 1 - sizes

    gaps = np.empty(len(along))
    gaps[:-1] = np.diff(along)
    # the gap after the last atom crosses the cell face to the image of the first atom
    gaps[last] = along[first] + 1.0 - along[last]
    return np.maximum.reduceat(gaps, first)


class LevelDomain(Settings):
    """The domain of the training structures of one level of theory, stored as JSON."""

    radius: float = Field(default=RADIUS, gt=0, description="within which pairs were looked at, A")
    structures: int = Field(ge=0, description="training structures")
    boundaries: dict[Boundary, int] = Field(description="kind of boundary -> structures")
    atoms: tuple[int, int] = Field(description="atoms of the smallest and the largest structure")
    pairs: dict[str, float] = Field(
        description="two symbols, as in Cu-O -> shortest distance in A, to 0.01"
    )

    @field_validator("pairs")
    @classmethod
    def _check_pairs(cls, pairs: dict[str, float]) -> dict[str, float]:
        for name in pairs:
            first, _, second = name.partition("-")
            if not (atomic_numbers.get(first) and atomic_numbers.get(second)):
                raise ValueError(f"{name[:20]!r} is not a pair of elements")
        return pairs

    def knows(self, boundary: Boundary) -> bool:
        """Whether there are enough structures with this kind of boundary to learn from.

        A hundredth of all structures is enough, and so is ENOUGH in a large set. A few are not:
        among thousands of crystals from a database, some have atoms so far apart that they look
        like molecules, but nothing can be learned from them about molecules.
        """
        count = self.boundaries.get(boundary, 0)
        return count > 0 and count >= min(self.structures / 100, ENOUGH)

    def merged(self, other: LevelDomain) -> LevelDomain:
        """The domain of the structures of both domains together."""
        total = LevelDomainCount.of(self)
        total += LevelDomainCount.of(other)
        # the pairs are complete only up to the smaller radius
        return total.to_domain(min(self.radius, other.radius))

    def shortest(self) -> np.ndarray:
        """Shortest distance of every two elements, (119, 119) in A, symmetric; inf if unknown."""
        table = np.full((NUM_ELEMENTS, NUM_ELEMENTS), np.inf)
        for name, distance in self.pairs.items():
            first, _, second = name.partition("-")
            rows = [atomic_numbers[first], atomic_numbers[second]]
            table[rows, rows[::-1]] = distance
        return table


class LevelDomainCount:
    """Accumulates the domain of a level; two of them can be added with `+=`."""

    def __init__(self) -> None:
        self.boundaries = np.zeros(len(BOUNDARIES), np.int64)
        self.fewest_atoms = np.iinfo(np.int64).max
        self.most_atoms = 0
        # A, indexed by _pair_code
        self.shortest = np.full(NUM_ELEMENTS**2, np.inf, np.float32)

    @classmethod
    def of(cls, domain: LevelDomain) -> Self:
        """The accumulator that corresponds to a finished domain."""
        count = cls()
        count.boundaries[:] = [domain.boundaries.get(name, 0) for name in BOUNDARIES]
        if domain.structures:
            count.fewest_atoms, count.most_atoms = domain.atoms
        upper = np.triu(domain.shortest())
        # triu fills the lower triangle with zeros, but no pairs are stored there
        upper[np.tril_indices(NUM_ELEMENTS, -1)] = np.inf
        count.shortest[:] = upper.ravel()
        return count

    def add(
        self, boundaries: np.ndarray, sizes: np.ndarray, pairs: np.ndarray, distances: np.ndarray
    ) -> None:
        """Add one or more structures.

        boundaries: (S,) indices into BOUNDARIES. sizes: (S,) numbers of atoms.
        pairs: (P,) codes of element pairs. distances: (P,) their shortest distances in A.
        """
        self.boundaries += np.bincount(boundaries, minlength=len(BOUNDARIES))
        self.fewest_atoms = min(self.fewest_atoms, int(sizes.min()))
        self.most_atoms = max(self.most_atoms, int(sizes.max()))
        np.minimum.at(self.shortest, pairs, distances)

    def __iadd__(self, other: LevelDomainCount) -> Self:
        self.boundaries += other.boundaries
        self.fewest_atoms = min(self.fewest_atoms, other.fewest_atoms)
        self.most_atoms = max(self.most_atoms, other.most_atoms)
        np.minimum(self.shortest, other.shortest, out=self.shortest)
        return self

    def to_domain(self, radius: float = RADIUS) -> LevelDomain:
        """The domain of the structures added so far, with pairs up to `radius` (A)."""
        pairs = {}
        for code in np.flatnonzero(self.shortest <= radius).tolist():
            first, second = divmod(code, NUM_ELEMENTS)
            name = f"{chemical_symbols[first]}-{chemical_symbols[second]}"
            pairs[name] = round(float(self.shortest[code]), 2)
        present = [int(count) for count in self.boundaries]
        return LevelDomain(
            radius=radius,
            structures=sum(present),
            boundaries={
                name: count for name, count in zip(BOUNDARIES, present, strict=True) if count
            },
            atoms=(self.fewest_atoms, self.most_atoms) if self.most_atoms else (0, 0),
            pairs=pairs,
        )


def domain_of(structures: Sequence[Structure]) -> LevelDomain:
    """The domain of structures of one level of theory.

    Raises GeometryError if a structure cannot be searched for neighbours.
    """
    total = LevelDomainCount()
    for first in range(0, len(structures), AT_ONCE):
        some = structures[first : first + AT_ONCE]
        pairs = [pairs_within(structure, RADIUS) for structure in some]
        own = StructureDomains.of(some, pairs)
        sizes = np.array([len(structure) for structure in some])
        total.add(own.boundaries, sizes, own.pairs, own.distances)
    return total.to_domain()
