"""Neighbour lists from vesin, a compiled library; the only place that calls it."""

from __future__ import annotations

import numpy as np
from ase.geometry import complete_cell
from vesin import NeighborList

from ..core.errors import EvenfieldError


# vesin scales a flat or thin grid of boxes down to 1e5 by itself, and there it divides by zero and
# ends the process
MAX_BOXES = 20_000

# Limits of what is searched. Carbon in diamond has 5.7 A^3; at a tenth of this volume a search
# within 5 A already finds tens of thousands of neighbours of each atom.
MIN_VOLUME_PER_ATOM = 0.1  # A^3
MAX_IMAGES = 10_000  # of the cell along one axis, within the cutoff
MAX_LENGTH = 1e5  # A, of a cell along a periodic axis
MAX_VECTOR = 1e15  # A, of any component; its cube is a number still
MAX_COORDINATE = 1e10  # A; float64 tells places there apart by 2e-6 A
# A search may find as many pairs as if each atom had those of hydrogen under 500 GPa, and this many
# more, some hundred megabytes at most while they are found and sorted.
MAX_FREE_PAIRS = 1_000_000
LEAST_MEAN_VOLUME = 1.0  # A^3 for each atom
SPHERE = 4 / 3 * np.pi

# of the three faces of a cell; also the axes of the two products in a component of a cross product
FIRST_EDGES = np.array([1, 2, 0])
SECOND_EDGES = np.array([2, 0, 1])


class GeometryError(EvenfieldError):
    """Positions or a cell for which there are no neighbours: not finite, collapsed, or burst."""


def neighbour_list(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs (sender j, receiver i) within `cutoff` (A), sorted by receiver.

    positions (N, 3) and cell (3, 3) in A; cell vectors along which nothing is periodic may be 0.

    Returns edge_index (2, E) int64 and cell_shifts (E, 3) float64. The vector from receiver to
    sender is `positions[j] - positions[i] + cell_shifts @ cell`. An atom is its own neighbour
    through the cell's images but never at zero shift.

    Raises GeometryError for numbers that are not finite, for a periodic direction without a cell
    vector, and for a cell that has collapsed or burst. A dynamics that explodes and a relaxation
    that goes wrong arrive here. The search would end the process or take all memory.
    """
    positions = np.ascontiguousarray(positions, np.float64)
    cell = np.ascontiguousarray(cell, np.float64)
    pbc = np.asarray(pbc, bool)
    _check_finite(positions, cell)
    if np.any(pbc) and not np.all(pbc):
        # completing the cell would hide a vector that is missing
        _check_vectors(cell, pbc)
        cell = np.ascontiguousarray(complete_cell(cell))

    compact = positions
    wraps = np.zeros_like(positions)
    search = _search_radius(compact, cell, pbc, cutoff)
    if search > cutoff:
        # fragments that fly apart leave nothing but empty boxes between them, and so does a small
        # molecule in a large cell
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
        # the wider search found too many pairs
        vectors = positions[sender] - positions[receiver] + shifts @ cell
        near = np.linalg.norm(vectors, axis=1) <= cutoff
        edge_index = edge_index[:, near]
        shifts = shifts[near]
    return edge_index, shifts


def _check_finite(positions: np.ndarray, cell: np.ndarray) -> None:
    """The search itself would end the process."""
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
    """A direction that is periodic needs a vector."""
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
    """Refuse a periodic structure that is too large, too dense or too oblique.

    volume: A^3. largest, lowest: A, distances between opposite faces of the cell, along the
    periodic axes.
    """
    # plain comparisons: this runs in every search
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
    """Distances between opposite faces of a cell (3, 3), (3,) in A; 0 where it has no volume."""
    # The area of each face is the length of the cross product of its two edges. Written out: this
    # runs in every search, and np.cross takes ten times as long for three vectors.
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
    """The cutoff, enlarged until at most MAX_BOXES boxes of that width fill the structure, A.

    Raises GeometryError for a periodic structure that cannot be searched.
    """
    extents = np.ptp(positions, axis=0)
    if np.any(pbc):
        # products of such lengths overflow, and then no comparison below holds
        longest = float(np.abs(cell).max())
        if longest > MAX_VECTOR:
            raise _too_large(longest)
        # along the other axes the search grid spans the positions, whose diagonal bounds it
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
    """The room of a structure, A^3.

    Along open axes, atoms at one place still have a cutoff's width of room around them.
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
    """Refuse a structure with so many pairs within `search` (A) that they would fill the memory.

    The volume of the cell does not tell: all atoms may be at one point of it.
    """
    num_atoms = len(positions)
    # most structures end here: even one that has nearly collapsed has no more pairs
    if num_atoms * SPHERE * search**3 <= MAX_FREE_PAIRS * MIN_VOLUME_PER_ATOM:
        return
    most_pairs = MAX_FREE_PAIRS + num_atoms * SPHERE * cutoff**3 / LEAST_MEAN_VOLUME
    # as if the atoms were spread evenly, which counts the images of a small cell
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
    """About how many ordered pairs of atoms are within `search` (A) of each other.

    Space is cut into boxes that are at least as wide. Atoms of neighbouring boxes are neighbours
    with the probability with which even ones are. Where the atoms are at few points, a part of the
    pairs in each box is a better estimate.
    """
    if not np.any(pbc):
        cell = np.eye(3)
    fractions = _fractions(positions, cell)
    heights = cell_heights(cell)
    # boxes along each vector; a periodic direction has a whole number of them
    per_vector = np.where(pbc, np.maximum(np.floor(heights / search), 1), heights / search)
    fractions -= np.where(pbc, np.floor(fractions), fractions.min(axis=0))
    boxes = np.floor(fractions * per_vector).astype(np.int64)
    # rounding can put an atom behind the last box; open directions get an empty one at both ends
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
    """One number (B,) for the three indices (B, 3) of each box."""
    return (boxes[:, 0] * rows[1] + boxes[:, 1]) * rows[2] + boxes[:, 2]


def _fractions(positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Coordinates (N, 3) along the vectors of a cell."""
    return np.linalg.solve(cell.T, positions.T).T


def _opened(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The structure with periodic directions opened where there is more empty room than `cutoff`.

    Atoms on both sides of the empty room are no neighbours, before and after.

    Returns positions of the same atoms in other images, the images that were subtracted (N, 3), and
    which directions are still periodic (3,).
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
            # it stays periodic; atoms that have wandered far along it come back into the cell
            wraps[:, axis] = whole
            continue
        # the first atom behind the empty room is the first of all
        first = order[(widest + 1) % len(order)]
        wraps[:, axis] = whole - (inside < first)
        pbc[axis] = False
    return positions - wraps @ cell, wraps, pbc


def _closed_up(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> np.ndarray:
    """Positions with the empty stretches along open directions shortened to twice the cutoff.

    Atoms on both sides of such a stretch are no neighbours, before and after.
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
    """How many boxes of a width fill a space with these extents."""
    return float(np.prod(np.floor(extents / width) + 1))
