"""Structures that have no neighbours to search are refused, each with what is wrong about it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import primitive_neighbor_list

from evenfield.data_pipelines import neighbours
from evenfield.data_pipelines.neighbours import GeometryError, cell_heights, neighbour_list
from evenfield.data_pipelines.structure import BadRecordError, Structure, check_structure


CUTOFF = 5.0  # A


def search(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    return neighbour_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)


def scaled(factor: float) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell * factor, scale_atoms=True)
    return atoms


def sheared(factor: float) -> Atoms:
    """The same lattice, described by ever longer vectors."""
    atoms = bulk("Cu", cubic=True)
    shear = np.eye(3)
    shear[0, 1] = factor
    atoms.set_cell(shear @ atoms.cell.array)
    return atoms


def with_position(value: float) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.positions[2, 1] = value
    return atoms


def with_cell_entry(value: float) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    cell = atoms.cell.array.copy()
    cell[1, 1] = value
    atoms.set_cell(cell)
    return atoms


def slab(height: float) -> Atoms:
    """Two atoms, one of which has left the surface."""
    return Atoms("Cu2", [[0, 0, 0], [0, 0, height]], cell=[3, 3, 0], pbc=[True, True, False])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Atoms(), "no atoms"),
        (lambda: with_position(np.nan), "position of atom 2"),
        (lambda: with_position(np.inf), "position of atom 2"),
        (lambda: with_cell_entry(np.nan), "is not finite"),
        (lambda: with_cell_entry(np.inf), "is not finite"),
        (lambda: Atoms("Cu", pbc=True), "cell vector 0 is zero"),
        (lambda: Atoms("Cu", cell=[3, 3, 0], pbc=True), "cell vector 2 is zero"),
        (lambda: Atoms("Cu", cell=[0, 3, 3], pbc=[True, True, False]), "cell vector 0 is zero"),
        (lambda: Atoms("Cu", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 3]], pbc=True), "has collapsed"),
        (lambda: scaled(0.02), "has collapsed"),
        (lambda: Atoms("Cu", cell=[0.01, 0.01, 0], pbc=[True, True, False]), "has collapsed"),
        (lambda: scaled(1e9), "is 3.61e.09 A large"),
        # the volume overflows, and then nothing is larger than anything
        (lambda: Atoms("Cu", cell=[1e110] * 3, pbc=True), "is 1e.110 A large"),
        (lambda: Atoms("Cu", cell=[1e300] * 3, pbc=True), "is 1e.300 A large"),
        (lambda: with_cell_entry(1e308), "is 1e.308 A large"),
        (lambda: with_position(1e20), "position of atom 2 is .* too far out"),
        (lambda: with_position(-1e308), "position of atom 2 is .* too far out"),
        (lambda: sheared(1e6), "too oblique"),
    ],
)
def test_degenerate_geometry_is_refused(make: Callable[[], Atoms], message: str) -> None:
    """Without the check, most of these end the process or take all memory."""
    with pytest.raises(GeometryError, match=message):
        search(make())


@pytest.mark.parametrize(
    "make",
    [
        lambda: scaled(0.4),
        lambda: scaled(1e3),
        lambda: sheared(100.0),
        lambda: slab(1e4),
        lambda: slab(1e9),
        lambda: Atoms("Cu2", [[0, 0, 0], [0, 0, 1e9]]),
        # no cell is needed along an open direction
        lambda: Atoms("Cu", cell=[0, 0, 2.5], pbc=[False, False, True]),
    ],
)
def test_unusual_geometry_is_searched(make: Callable[[], Atoms]) -> None:
    edge_index, shifts = search(make())
    assert edge_index.shape[1] == len(shifts)


@pytest.mark.parametrize("distance", [2e2, 1e6, 1e9])
@pytest.mark.parametrize("pbc", [(False, False, False), (True, True, False), (True, False, False)])
def test_fragments_that_fly_apart_keep_their_neighbours(
    distance: float, pbc: tuple[bool, bool, bool]
) -> None:
    """The search went through all boxes between two atoms: at 1e9 A without end."""
    first = bulk("Cu", cubic=True)
    first.rattle(0.1, seed=0)
    first.pbc = pbc
    second = first.copy()
    second.positions += [0, 0, distance]
    together, _ = search(first + second)

    alone, _ = search(first)
    num_atoms = len(first)
    expected = np.concatenate([alone, alone + num_atoms], axis=1)
    assert set(map(tuple, together.T)) == set(map(tuple, expected.T))
    assert together.shape == expected.shape


@pytest.mark.parametrize("cells", [0, 30, 10**5, 10**7])
def test_atoms_that_wandered_along_a_periodic_axis_have_the_same_neighbours(cells: int) -> None:
    """In a wire the search grid grew with the way along the wire: minutes for 1e5 cells."""
    wire = Atoms("Cu2", [[0, 0, 0], [1.3, 0.5, 0]], cell=[2.5, 0, 0], pbc=[True, False, False])
    expected, _ = search(wire)
    wire.positions[1] += cells * wire.cell[0]
    edge_index, shifts = search(wire)
    assert sorted(map(tuple, edge_index.T)) == sorted(map(tuple, expected.T))
    sender, receiver = edge_index
    vectors = wire.positions[sender] - wire.positions[receiver] + shifts @ wire.cell.array
    assert np.linalg.norm(vectors, axis=1).max() <= CUTOFF


def clump(radius: float, box: float, periodic: bool) -> Atoms:
    """15,000 atoms in a ball around a corner of a cell, which a file of 135 kB can state."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(15_000, 3))
    places *= radius * rng.random((15_000, 1)) ** (1 / 3) / np.linalg.norm(places, axis=1)[:, None]
    return Atoms(["Cu"] * 15_000, places, cell=[box] * 3, pbc=periodic)


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize(("radius", "box"), [(0.0, 90.0), (4.0, 90.0), (4.0, 9e4)])
def test_atoms_that_are_all_neighbours_are_refused(
    radius: float, box: float, periodic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The volume of the cell allowed them, and 2e8 pairs took 14 GB."""
    # the search itself is never reached
    monkeypatch.setattr(neighbours, "NeighborList", None)
    with pytest.raises(GeometryError, match="so close together"):
        search(clump(radius, box, periodic))


@pytest.mark.parametrize("number", [7_000, 14_500])
def test_crowded_atoms_are_refused_at_any_radius(number: int) -> None:
    """Before, up to five million pairs were found first, which took 600 MB."""
    positions = np.random.default_rng(0).uniform(0, 9, (number, 3))
    open_cell = (np.zeros((3, 3)), np.zeros(3, dtype=bool))
    for cutoff in (3.0, CUTOFF):
        with pytest.raises(GeometryError, match="so close together"):
            neighbour_list(positions, *open_cell, cutoff)


def test_a_dense_structure_of_many_atoms_is_searched() -> None:
    """Copper at twelve times its density, whose pairs are many but no more than there are."""
    atoms = bulk("Cu", cubic=True).repeat(13)
    atoms.set_cell(atoms.cell / 12 ** (1 / 3), scale_atoms=True)
    edge_index, _ = search(atoms)
    assert edge_index.shape[1] == pytest.approx(len(atoms) * 12 * 0.0847 * 4.19 * 125, rel=0.1)


@pytest.mark.parametrize("seed", range(6))
def test_a_small_structure_anywhere_in_a_large_cell(seed: int) -> None:
    """Cells with more boxes than the search takes are opened where they are empty."""
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * rng.uniform(150, 250) + rng.normal(0, 10, (3, 3))
    positions = rng.uniform(-6, 6, (9, 3)) + rng.uniform(-1, 1, 3) @ cell
    pbc = np.array([True, seed % 2 == 0, seed % 3 == 0])
    positions += (rng.integers(-2, 3, (9, 3)) * pbc) @ cell

    (sender, receiver), shifts = neighbour_list(positions, cell, pbc, CUTOFF)
    i, j, images = primitive_neighbor_list("ijS", pbc, cell, positions, CUTOFF)
    assert len(i)
    found = np.column_stack([receiver, sender, shifts]).astype(int)
    wanted = np.column_stack([i, j, images])
    assert sorted(found.tolist()) == sorted(wanted.tolist())


def test_other_vectors_of_a_lattice_give_the_same_pairs() -> None:
    few, _ = search(bulk("Cu", cubic=True))
    oblique, _ = search(sheared(100.0))
    assert few.shape == oblique.shape


def test_a_record_that_cannot_be_searched_is_a_bad_record() -> None:
    """A conversion sets bad records aside; any other error would end it."""
    crowd = Atoms("H2000", positions=np.zeros((2000, 3)), cell=[0.5, 0.5, 0.5], pbc=True)
    with pytest.raises(BadRecordError, match="cannot be searched for neighbours: the cell has"):
        check_structure(Structure.from_atoms(crowd, "EMT", "crowd"))


def test_distances_of_faces_are_those_of_the_cross_products() -> None:
    """To the last bit: fingerprints of data sets follow from them."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        cell = rng.normal(0, 5, (3, 3))
        normals = np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]])
        expected = abs(np.linalg.det(cell)) / np.linalg.norm(normals, axis=1)
        assert cell_heights(cell).tolist() == expected.tolist()
    assert cell_heights(np.zeros((3, 3))).tolist() == [0, 0, 0]
