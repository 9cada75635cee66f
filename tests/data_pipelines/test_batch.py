"""Neighbour lists against ASE's, the sign and order of edges, labels in a graph, and collation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evenfield.core.labels import present
from evenfield.data_pipelines.batch import Batch, UnknownLevelError
from evenfield.data_pipelines.neighbours import neighbour_list
from evenfield.data_pipelines.structure import Structure


def structure(positions, cell=None, pbc=False, **labels) -> Structure:
    """Copper without a cell, unless the arguments say otherwise."""
    positions = np.asarray(positions, dtype=float)
    copper = np.full(len(positions), 29)
    atomic_numbers = labels.pop("atomic_numbers", copper)
    level = labels.pop("level_of_theory", "EMT")
    if cell is None:
        cell = np.zeros((3, 3))
    # a copy, because a broadcast array cannot be written to
    directions = np.broadcast_to(pbc, 3)
    return Structure(
        atomic_numbers=atomic_numbers,
        positions=positions,
        cell=np.asarray(cell, dtype=float),
        pbc=directions.copy(),
        level_of_theory=level,
        structure_id="one",
        group="one",
        labels=present(labels),
    )


@st.composite
def random_structures(draw) -> tuple[Structure, float]:
    """Crystals in small, strongly skewed cells, slabs and wires, and molecules without a cell."""
    pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    cutoff = draw(st.floats(1.5, 5.0))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)

    # off the diagonal up to twice the shortest edge: images lie several cells away
    skew = rng.uniform(-3, 3, (3, 3))
    edges = rng.uniform(1.5, 6, 3)
    cell = np.tril(skew, -1) + np.diag(edges)
    if not any(pbc) and draw(st.booleans()):
        cell = np.zeros((3, 3))
    num_atoms = draw(st.integers(1, 7))
    # atoms outside the cell too
    positions = rng.uniform(-4, 8, (num_atoms, 3))
    return structure(positions, cell, pbc), cutoff


def sorted_rows(receiver, sender, shifts, vectors) -> tuple[np.ndarray, np.ndarray]:
    """Edges (E, 5) and vectors (E, 3) in an order that does not depend on the search."""
    columns = np.column_stack([receiver, sender, shifts])
    rows = columns.astype(int)
    order = np.lexsort(rows.T)
    return rows[order], vectors[order]


@settings(max_examples=150)
@given(random_structures())
def test_edges_and_vectors_are_those_of_ase(case):
    one, cutoff = case
    atoms = Atoms(numbers=one.atomic_numbers, positions=one.positions, cell=one.cell, pbc=one.pbc)
    i, j, shifts, distances, vectors = neighbor_list("ijSdD", atoms, cutoff + 1e-6)
    # rounding decides about an edge that is as long as the cutoff
    from_cutoff = np.abs(distances - cutoff)
    assume(not np.any(from_cutoff < 1e-6))
    expected, expected_vectors = sorted_rows(i, j, shifts, vectors)

    graph = Batch.from_structure(one, cutoff)
    sender, receiver = graph.edge_index.numpy()
    own_shifts = graph.cell_shifts.numpy()
    within_cell = one.positions[sender] - one.positions[receiver]
    own_vectors = within_cell + own_shifts @ one.cell
    found, found_vectors = sorted_rows(receiver, sender, own_shifts, own_vectors)

    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found_vectors, expected_vectors, atol=1e-10)
    assert np.all(np.diff(receiver) >= 0)


def test_atom_sees_its_own_images_but_not_itself():
    position = np.zeros((1, 3))
    cell = 3.0 * np.eye(3)
    periodic = np.ones(3, bool)
    edge_index, shifts = neighbour_list(position, cell, periodic, 3.1)
    assert edge_index.tolist() == [[0] * 6, [0] * 6]

    images = [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    found = shifts.astype(int)
    assert sorted(found.tolist()) == images


def test_edge_vector_points_from_receiver_to_sender_through_the_wall():
    near_both_walls = structure([[0.5, 0, 0], [9.5, 0, 0]], 10 * np.eye(3), True)
    graph = Batch.from_structure(near_both_walls, 2.0)
    sender, receiver = graph.edge_index
    within_cell = graph.positions[sender] - graph.positions[receiver]
    vectors = within_cell + graph.cell_shifts @ graph.cell[0]
    assert receiver.tolist() == [0, 1]
    assert vectors.tolist() == [[-1, 0, 0], [1, 0, 0]]


def test_missing_labels_are_nan_never_zero():
    graph = Batch.from_structure(structure([[0, 0, 0], [0, 0, 2.5]]), 3.0)
    shapes = {name: tuple(values.shape) for name, values in graph.labels.items()}
    assert shapes == {"energy": (1,), "forces": (2, 3), "stress": (1, 3, 3)}
    for values in graph.labels.values():
        assert values.isnan().all()


def test_labels_survive_and_energy_keeps_float64():
    # more digits than float32 has
    energy = -123456.789012345
    forces = np.arange(6.0).reshape(2, 3)
    stress = np.diag([1.0, 2.0, 3.0])
    labels = {"energy": energy, "forces": forces, "stress": stress}
    pair = structure([[0, 0, 0], [0, 0, 2.5]], 5 * np.eye(3), True, **labels)

    graph = Batch.from_structure(pair, 3.0)
    assert graph.labels["energy"].item() == energy
    assert graph.labels["forces"].dtype == graph.labels["stress"].dtype == torch.float32
    np.testing.assert_array_equal(graph.labels["forces"], forces)
    np.testing.assert_array_equal(graph.labels["stress"][0], stress)


def test_stress_label_of_a_structure_that_is_not_periodic_counts_as_missing():
    """Some codes state one for slabs; the potential has none to compare."""
    slab = structure([[0, 0, 0]], 5 * np.eye(3), (True, True, False), stress=np.eye(3))
    graph = Batch.from_structure(slab, 3.0)
    assert graph.labels["stress"].isnan().all()


def test_geometry_is_float64_so_that_far_coordinates_keep_their_differences():
    distance = 2.123456789
    far_away = structure([[1e4, 0, 0], [1e4 + distance, 0, 0]], 2e4 * np.eye(3), True)
    graph = Batch.from_structure(far_away, 3.0)
    assert graph.cell.dtype == graph.cell_shifts.dtype == torch.float64
    vector = graph.positions[1] - graph.positions[0]
    # float32 rounds a coordinate of 1e4 A to 1e-3 A
    assert vector[0].item() == pytest.approx(distance, abs=1e-9)


def test_head_is_the_place_of_the_level_of_theory():
    one = structure([[0, 0, 0]], level_of_theory="PBE")
    graph = Batch.from_structure(one, 3.0, ["EMT", "PBE"])
    assert graph.head.tolist() == [1]

    message = r"one: level of theory 'PBE' has no head; the model has: EMT, GFN1"
    with pytest.raises(UnknownLevelError, match=message):
        Batch.from_structure(one, 3.0, ["EMT", "GFN1"])


def test_force_weight_is_the_weight_of_each_atoms_element():
    # a tenth of the atomic number
    weight = np.arange(119) / 10
    elements = np.array([1, 29, 8])
    one = structure([[0, 0, 0], [0, 0, 2.0], [0, 2.0, 0]], atomic_numbers=elements)

    weighted = Batch.from_structure(one, 3.0, element_weight=weight)
    assert weighted.atom_weight.tolist() == pytest.approx([0.1, 2.9, 0.8])
    plain = Batch.from_structure(one, 3.0)
    assert plain.atom_weight.tolist() == [1, 1, 1]


def test_collate_offsets_edges_and_keeps_each_cell(train_structures):
    structures = train_structures[:5]
    graphs = []
    for one in structures:
        graph = Batch.from_structure(one, 4.0, ["EMT", "EMT-scaled"], torch.float64)
        graphs.append(graph)
    batch = Batch.join(graphs)

    sizes = [len(one) for one in structures]
    owners = np.repeat(np.arange(5), sizes)
    assert batch.structure_index.tolist() == owners.tolist()
    assert batch.cell.shape == batch.labels["stress"].shape == (5, 3, 3)
    assert batch.labels["energy"].tolist() == [one.energy for one in structures]
    assert batch.structure_ids == [one.structure_id for one in structures]

    start = 0
    first_atom = 0
    for graph in graphs:
        stop = start + graph.num_edges
        assert torch.equal(batch.edge_index[:, start:stop], graph.edge_index + first_atom)
        start = stop
        first_atom += graph.num_atoms
    assert start == batch.num_edges

    # computed here and not by `edge_vectors`, which may have the same mistake as `join`
    sender, receiver = batch.edge_index
    cell = batch.cell[batch.structure_index[receiver]]
    shift = torch.einsum("ea,eab->eb", batch.cell_shifts, cell)
    vectors = batch.positions[sender] - batch.positions[receiver] + shift
    lengths = vectors.norm(dim=1)
    assert lengths.min() > 2.0 and lengths.max() <= 4.0
