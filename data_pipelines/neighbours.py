"""Neighbour lists from the compiled library vesin. No other module calls it."""

from __future__ import annotations

import numpy as np
from ase.geometry import complete_cell
from vesin import NeighborList

from ..core.errors import EvenfieldError


# vesin itself limits its grid to 1e5 boxes. For a flat or thin grid it then divides by zero, which
# ends the process.
MAX_BOXES = 20_000

# Limits of a search. An atom in diamond has 5.7 A^3. At the volume below, a search within 5 A finds
# thousands of neighbours of each atom.
MIN_VOLUME_PER_ATOM = 0.1  # A^3
MAX_IMAGES = 10_000  # of the cell along one axis, within the cutoff
MAX_LENGTH = 1e5  # A, of a cell along a periodic axis
MAX_VECTOR = 1e15  # A, of any component; its cube does not overflow
MAX_COORDINATE = 1e10  # A; the spacing of float64 numbers there is 2e-6 A
# A search may find as many pairs as there are at the density of hydrogen under 500 GPa
# (LEAST_MEAN_VOLUME), plus this number. The additional pairs take a few hundred megabytes at most
# while they are found and sorted.
MAX_FREE_PAIRS = 1_000_000
LEAST_MEAN_VOLUME = 1.0  # A^3 per atom
SPHERE = 4 / 3 * np.pi

# Indices of the two edges of each of the three faces of a cell. They are also the indices of the
# factors in each component of a cross product.
FIRST_EDGES = np.array([1, 2, 0])
SECOND_EDGES = np.array([2, 0, 1])


class GeometryError(EvenfieldError):
    """Positions or a cell that cannot be searched: not finite, collapsed, or exploded."""


def neighbour_list(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs (sender j, receiver i) within `cutoff` (A), sorted by receiver.

    positions (N, 3) and cell (3, 3) are in A; pbc is (3,). Cell vectors of non-periodic directions
    may be zero.

    Returns edge_index (2, E) int64 and cell_shifts (E, 3) float64. The vector from receiver to
    sender is `positions[j] - positions[i] + cell_shifts @ cell`. An atom can be a neighbour of its
    own periodic images, but never of itself at zero shift.

    Raises GeometryError for a structure without atoms, for numbers that are not finite or too
    large, for a periodic direction without a cell vector, for a cell that has collapsed, exploded
    or become too oblique, and for atoms that are too close together. Exploding dynamics and failed
    relaxations end up here. Without these checks, the search would crash the process or use all
    memory.
    """
    positions = np.ascontiguousarray(positions, np.float64)
    cell = np.ascontiguousarray(cell, np.float64)
    pbc = np.asarray(pbc, bool)
    _check_finite(positions, cell)
    if np.any(pbc) and not np.all(pbc):
        # complete_cell would replace a missing vector of a periodic direction too
        _check_vectors(cell, pbc)
        cell = np.ascontiguousarray(complete_cell(cell))

    compact = positions
    wraps = np.zeros_like(positions)
    search = _search_radius(compact, cell, pbc, cutoff)
    if search > cutoff:
        # the structure has too many boxes, most of them empty: fragments have flown apart, or a
        # small molecule is in a large cell
        compact, wraps, pbc = _opened(positions, cell, pbc, cutoff)
        compact = _closed_up(compact, cell, pbc, cutoff)
        search = _search_radius(compact, cell, pbc, cutoff)
    _check_number_of_pairs(compact, cell, pbc, search, cutoff)
    calculator = NeighborList(cutoff=search, full_list=True, sorted=True, n_threads=1)
    periodic = [bool(is_periodic) for is_periodic in pbc]
    # vesin lists a pair as (i, j), with the vector from i to j
    receiver, sender, shifts = calculator.compute(
        points=compact, box=cell, periodic=periodic, quantities="ijS"
    )
    edge_index = np.stack([sender, receiver]).astype(np.int64)
    shifts = shifts.astype(np.float64)

    sender, receiver = edge_index
    if wraps.any():
        shifts += wraps[receiver] - wraps[sender]
    if search > cutoff:
        # the search radius was larger than the cutoff, so some pairs are too long
        vectors = positions[sender] - positions[receiver] + shifts @ cell
        near = np.linalg.norm(vectors, axis=1) <= cutoff
        edge_index = edge_index[:, near]
        shifts = shifts[near]
    return edge_index, shifts


def _check_finite(positions: np.ndarray, cell: np.ndarray) -> None:
    """Raise GeometryError for no atoms, or for positions or a cell that would crash the search."""
    if len(positions) == 0:
        raise GeometryError("the structure has no atoms", remedy="give at least one")
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise GeometryError(
            f"the position of atom {atom} is {positions[atom].tolist()}",
            remedy="go back to the last structure with finite positions, and take shorter steps",
        )
    if np.abs(positions).max() > MAX_COORDINATE:
        atom = int(np.abs(positions).max(axis=1).argmax())
        raise GeometryError(
            f"the position of atom {atom} is {positions[atom].tolist()}, too far out for its "
            "distances to have digits",
            remedy="go back to the last structure before it burst, or move it to the origin",
        )
    if not np.isfinite(cell).all():
        raise GeometryError(
            f"the cell {cell.tolist()} is not finite",
            remedy="give three vectors of finite length",
        )


def _check_vectors(cell: np.ndarray, pbc: np.ndarray) -> None:
    """Raise GeometryError for a periodic direction whose cell vector is zero."""
    for axis in range(3):
        if pbc[axis] and not cell[axis].any():
            raise GeometryError(
                f"cell vector {axis} is zero, but the structure is periodic along it",
                remedy="give a cell, or set pbc to False along this vector",
            )


def _too_large(length: float) -> GeometryError:
    return GeometryError(
        f"the cell is {length:.3g} A large, more than {MAX_LENGTH:g} A",
        remedy="go back to the last structure before it burst",
    )


def _check_extents(
    largest: float, volume: float, num_atoms: int, lowest: float, cutoff: float
) -> None:
    """Raise GeometryError for a periodic structure that is too large, too dense or too oblique.

    volume: A^3.
    largest, lowest: the largest and smallest distance between opposite faces of the cell, over the
        periodic axes, A.
    """
    # plain comparisons of floats, because this runs in every search
    if largest > MAX_LENGTH:
        raise _too_large(largest)
    if volume < MIN_VOLUME_PER_ATOM * num_atoms or lowest == 0.0:
        raise GeometryError(
            f"the cell has collapsed: {volume / num_atoms:.3g} A^3 for each atom",
            remedy="go back to the last structure before it collapsed",
        )
    if cutoff > MAX_IMAGES * lowest:
        raise GeometryError(
            f"the cell is too oblique: opposite faces are only {lowest:.3g} A apart",
            remedy="describe the lattice by shorter vectors, as ase.build.niggli_reduce does",
        )


def cell_heights(cell: np.ndarray) -> np.ndarray:
    """Distances between opposite faces of a cell (3, 3): (3,) in A, 0 if the cell has no volume."""
    # The area of each face is the length of the cross product of its two edges. The product is
    # written out because this runs in every search, and np.cross takes ten times as long for three
    # vectors.
    one = cell[FIRST_EDGES]
    other = cell[SECOND_EDGES]
    normals = one[:, FIRST_EDGES] * other[:, SECOND_EDGES]
    normals -= one[:, SECOND_EDGES] * other[:, FIRST_EDGES]
    areas = np.linalg.norm(normals, axis=1)
    volume = abs(np.linalg.det(cell))
    return np.divide(volume, areas, out=np.zeros(3), where=areas > 0)


def _search_radius(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> float:
    """The cutoff (A), enlarged until at most MAX_BOXES boxes of that width span the structure.

    Raises GeometryError for a periodic structure that cannot be searched.
    """
    extents = np.ptp(positions, axis=0)
    if np.any(pbc):
        # the volume would overflow, and the comparisons below would be meaningless
        longest = float(np.abs(cell).max())
        if longest > MAX_VECTOR:
            raise _too_large(longest)
        # along the other axes the search grid spans the positions; their diagonal is an upper bound
        heights = cell_heights(cell)
        extents = np.where(pbc, heights, np.linalg.norm(extents))

        lowest = float(heights[pbc].min())
        if lowest == 0.0:
            _check_vectors(cell, pbc)
        volume = _volume(positions, cell, pbc, cutoff)
        _check_extents(float(heights[pbc].max()), volume, len(positions), lowest, cutoff)

    while _num_boxes(extents, cutoff) > MAX_BOXES:
        cutoff *= 1.25
    return cutoff


def _volume(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> float:
    """The volume that a structure takes up, A^3.

    Along non-periodic axes it is padded by one cutoff, so that atoms in a plane or at one point
    still have a volume.
    """
    if np.all(pbc):
        return float(abs(np.linalg.det(cell)))
    extents = np.ptp(positions, axis=0)
    if np.any(pbc):
        extents = np.where(pbc, cell_heights(cell), np.linalg.norm(extents) + cutoff)
    else:
        extents = extents + cutoff
    return float(np.prod(extents))


def _check_number_of_pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, search: float, cutoff: float
) -> None:
    """Raise GeometryError if the pairs within `search` (A) would fill the memory.

    The volume of the cell is not enough to tell, because all atoms may be at one point of it.
    """
    num_atoms = len(positions)
    # most structures are done here: they could not exceed the limit even if nearly collapsed
    if num_atoms * SPHERE * search**3 <= MAX_FREE_PAIRS * MIN_VOLUME_PER_ATOM:
        return
    most_pairs = MAX_FREE_PAIRS + num_atoms * SPHERE * cutoff**3 / LEAST_MEAN_VOLUME
    # a uniform density; this also counts the periodic images of a small cell
    volume = _volume(positions, cell, pbc, search)
    num_pairs = num_atoms**2 * SPHERE * search**3 / volume
    if num_pairs <= most_pairs < num_atoms**2:
        num_pairs = max(num_pairs, _pairs_in_boxes(positions, cell, pbc, search))
    if num_pairs <= most_pairs:
        return

    raise GeometryError(
        f"{num_atoms} atoms are so close together that each has about "
        f"{num_pairs / num_atoms:.0f} neighbours within {search:.3g} A",
        remedy="correct the positions or their unit",
    )


def _pairs_in_boxes(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, search: float
) -> float:
    """Estimate how many ordered pairs of atoms are within `search` (A) of each other.

    Space is divided into boxes that are at least `search` wide. The pairs of atoms in the same box
    and in adjacent boxes are counted, and multiplied by the probability that such a pair is within
    `search` at uniform density. If the atoms are concentrated at a few points, a quarter of the
    pairs within the boxes is a better estimate. The larger of the two estimates is returned.
    """
    if not np.any(pbc):
        cell = np.eye(3)
    fractions = _fractions(positions, cell)
    heights = cell_heights(cell)
    # boxes along each vector, an integer in periodic directions
    per_vector = np.where(pbc, np.maximum(np.floor(heights / search), 1), heights / search)
    fractions -= np.where(pbc, np.floor(fractions), fractions.min(axis=0))
    boxes = np.floor(fractions * per_vector).astype(np.int64)
    # rounding can put an atom behind the last box; non-periodic directions get an empty box at each
    # end
    rows = np.where(pbc, per_vector, boxes.max(axis=0) + 2).astype(np.int64)
    boxes = np.where(pbc, np.minimum(boxes, rows - 1), boxes)
    occupied, counts = np.unique(_number(boxes, rows), return_counts=True)
    boxes = np.stack(np.unravel_index(occupied, rows), axis=1)

    in_neighbours = 0.0
    for shift in np.ndindex(3, 3, 3):
        neighbours = _number((boxes + shift - 1) % rows, rows)
        places = np.minimum(np.searchsorted(occupied, neighbours), len(occupied) - 1)
        is_occupied = occupied[places] == neighbours
        in_neighbours += float(np.sum(counts * counts[places] * is_occupied))
    volume_of_box = abs(np.linalg.det(cell)) / float(np.prod(per_vector))
    in_one_box = float(np.sum(counts.astype(float) ** 2))
    return max(in_one_box / 4, in_neighbours * SPHERE * search**3 / (27 * volume_of_box))


def _number(boxes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Flatten the three indices (B, 3) of each box to one index (B,)."""
    return (boxes[:, 0] * rows[1] + boxes[:, 1]) * rows[2] + boxes[:, 2]


def _fractions(positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Fractional coordinates (N, 3) of positions (N, 3) in a cell (3, 3)."""
    return np.linalg.solve(cell.T, positions.T).T


def _opened(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make periodic directions non-periodic if they contain a vacuum wider than `cutoff` (A).

    Atoms on opposite sides of such a vacuum are not neighbours, so the pairs stay the same.

    Returns the positions (N, 3), where atoms may have moved to other periodic images, the lattice
    shifts that were subtracted (N, 3), and the remaining periodic directions (3,).
    """
    pbc = pbc.copy()
    wraps = np.zeros_like(positions)
    if not np.any(pbc):
        return positions, wraps, pbc

    heights = cell_heights(cell)
    fractions = _fractions(positions, cell)
    for axis in np.flatnonzero(pbc):
        whole = np.floor(fractions[:, axis])
        inside = fractions[:, axis] - whole
        order = np.sort(inside)
        gaps = np.diff(order, append=order[0] + 1)
        widest = int(np.argmax(gaps))
        if gaps[widest] * heights[axis] <= cutoff:
            # the direction stays periodic; atoms that have drifted far are wrapped into the cell
            wraps[:, axis] = whole
            continue
        # unwrap the atoms so that the first one behind the vacuum comes first
        first = order[(widest + 1) % len(order)]
        wraps[:, axis] = whole - (inside < first)
        pbc[axis] = False
    return positions - wraps @ cell, wraps, pbc


def _closed_up(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> np.ndarray:
    """Shorten gaps along non-periodic directions to at most twice the cutoff; returns (N, 3) in A.

    Atoms on opposite sides of such a gap are not neighbours before or after, so the pairs stay the
    same.
    """
    directions = np.eye(3)
    if np.any(pbc):
        # orthonormal, and orthogonal to all periodic vectors
        _, _, basis = np.linalg.svd(cell[pbc])
        directions = basis[np.count_nonzero(pbc) :]

    for direction in directions:
        along = positions @ direction
        order = np.argsort(along)
        gaps = np.diff(along[order])
        excess = np.maximum(gaps - 2 * cutoff, 0.0)

        shift = np.zeros(len(positions))
        shift[order[1:]] = np.cumsum(excess)
        positions = positions - shift[:, None] * direction
    return np.ascontiguousarray(positions)


def _num_boxes(extents: np.ndarray, width: float) -> float:
    """Number of boxes of the given width (A) that fill a space with extents (3,) in A."""
    return float(np.prod(np.floor(extents / width) + 1))
