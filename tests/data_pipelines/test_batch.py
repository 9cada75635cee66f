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
    positions = np.asarray(positions, dtype=float)
    return Structure(
        atomic_numbers=labels.pop("atomic_numbers", np.full(len(positions), 29)),
        positions=positions,
        cell=np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=float),
        pbc=np.broadcast_to(pbc, 3).copy(),
        level_of_theory=labels.pop("level_of_theory", "EMT"),
        structure_id="one",
        group="one",
        labels=present(labels),
    )


@st.composite
def random_structures(draw) -> tuple[Structure, float]:
    """Crystals in small, strongly skewed cells, slabs and wires, and molecules without a cell."""
    pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    cutoff = draw(st.floats(1.5, 5.0))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cell = np.tril(rng.uniform(-3, 3, (3, 3)), -1) + np.diag(rng.uniform(1.5, 6, 3))
    if not any(pbc) and draw(st.booleans()):
        cell = np.zeros((3, 3))
    positions = rng.uniform(-4, 8, (draw(st.integers(1, 7)), 3))  # atoms outside the cell too
    return structure(positions, cell, pbc), cutoff


def sorted_rows(receiver, sender, shifts, vectors) -> tuple[np.ndarray, np.ndarray]:
    rows = np.column_stack([receiver, sender, shifts]).astype(int)
    order = np.lexsort(rows.T)
    return rows[order], vectors[order]


@settings(max_examples=150)
@given(random_structures())
def test_edges_and_vectors_are_those_of_ase(case):
    s, cutoff = case
    atoms = Atoms(numbers=s.atomic_numbers, positions=s.positions, cell=s.cell, pbc=s.pbc)
    i, j, shifts, distances, vectors = neighbor_list("ijSdD", atoms, cutoff + 1e-6)
    assume(not np.any(np.abs(distances - cutoff) < 1e-6))  # rounding decides there
    expected, expected_vectors = sorted_rows(i, j, shifts, vectors)

    graph = Batch.from_structure(s, cutoff)
    sender, receiver = graph.edge_index.numpy()
    own_shifts = graph.cell_shifts.numpy()
    own = s.positions[sender] - s.positions[receiver] + own_shifts @ s.cell
    found, found_vectors = sorted_rows(receiver, sender, own_shifts, own)

    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found_vectors, expected_vectors, atol=1e-10)
    assert np.all(np.diff(receiver) >= 0)


def test_atom_sees_its_own_images_but_not_itself():
    edge_index, shifts = neighbour_list(np.zeros((1, 3)), 3.0 * np.eye(3), np.ones(3, bool), 3.1)
    assert edge_index.tolist() == [[0] * 6, [0] * 6]
    images = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    assert sorted(map(tuple, shifts.astype(int).tolist())) == images


def test_edge_vector_points_from_receiver_to_sender_through_the_wall():
    graph = Batch.from_structure(structure([[0.5, 0, 0], [9.5, 0, 0]], 10 * np.eye(3), True), 2.0)
    sender, receiver = graph.edge_index
    vectors = (
        graph.positions[sender] - graph.positions[receiver] + graph.cell_shifts @ graph.cell[0]
    )
    assert receiver.tolist() == [0, 1]
    assert vectors.tolist() == [[-1, 0, 0], [1, 0, 0]]


def test_missing_labels_are_nan_never_zero():
    graph = Batch.from_structure(structure([[0, 0, 0], [0, 0, 2.5]]), 3.0)
    assert graph.labels["energy"].shape == (1,) and graph.labels["energy"].isnan().all()
    assert graph.labels["forces"].shape == (2, 3) and graph.labels["forces"].isnan().all()
    assert graph.labels["stress"].shape == (1, 3, 3) and graph.labels["stress"].isnan().all()


def test_labels_survive_and_energy_keeps_float64():
    energy, forces, stress = (
        -123456.789012345,
        np.arange(6.0).reshape(2, 3),
        np.diag([1.0, 2.0, 3.0]),
    )
    labels = {"energy": energy, "forces": forces, "stress": stress}
    graph = Batch.from_structure(
        structure([[0, 0, 0], [0, 0, 2.5]], 5 * np.eye(3), True, **labels), 3.0
    )
    assert graph.labels["energy"].item() == energy
    assert graph.labels["forces"].dtype == graph.labels["stress"].dtype == torch.float32
    np.testing.assert_array_equal(graph.labels["forces"], forces)
    np.testing.assert_array_equal(graph.labels["stress"][0], stress)


def test_stress_label_of_a_structure_that_is_not_periodic_counts_as_missing():
    """Some codes state one for slabs; the potential has none to compare."""
    slab = structure([[0, 0, 0]], 5 * np.eye(3), (True, True, False), stress=np.eye(3))
    assert Batch.from_structure(slab, 3.0).labels["stress"].isnan().all()


def test_geometry_is_float64_so_that_far_coordinates_keep_their_differences():
    graph = Batch.from_structure(
        structure([[1e4, 0, 0], [1e4 + 2.123456789, 0, 0]], 2e4 * np.eye(3), True), 3.0
    )
    assert graph.cell.dtype == graph.cell_shifts.dtype == torch.float64
    assert (graph.positions[1] - graph.positions[0])[0].item() == pytest.approx(
        2.123456789, abs=1e-9
    )


def test_head_is_the_place_of_the_level_of_theory():
    s = structure([[0, 0, 0]], level_of_theory="PBE")
    assert Batch.from_structure(s, 3.0, ["EMT", "PBE"]).head.tolist() == [1]
    with pytest.raises(
        UnknownLevelError, match=r"one: level of theory 'PBE' has no head; the model has: EMT, GFN1"
    ):
        Batch.from_structure(s, 3.0, ["EMT", "GFN1"])


def test_force_weight_is_the_weight_of_each_atoms_element():
    weight = np.arange(119) / 10
    s = structure([[0, 0, 0], [0, 0, 2.0], [0, 2.0, 0]], atomic_numbers=np.array([1, 29, 8]))
    assert Batch.from_structure(
        s, 3.0, element_weight=weight
    ).atom_weight.tolist() == pytest.approx([0.1, 2.9, 0.8])
    assert Batch.from_structure(s, 3.0).atom_weight.tolist() == [1, 1, 1]


def test_collate_offsets_edges_and_keeps_each_cell(train_structures):
    graphs = [
        Batch.from_structure(s, 4.0, ["EMT", "EMT-scaled"], torch.float64)
        for s in train_structures[:5]
    ]
    batch = Batch.join(graphs)
    sizes = [len(s) for s in train_structures[:5]]
    first_atoms = [0, *np.cumsum(sizes).tolist()]
    assert batch.structure_index.tolist() == np.repeat(np.arange(5), sizes).tolist()
    assert batch.cell.shape == batch.labels["stress"].shape == (5, 3, 3)
    assert batch.labels["energy"].tolist() == [s.energy for s in train_structures[:5]]
    assert batch.structure_ids == [s.structure_id for s in train_structures[:5]]

    start = 0
    for graph, offset in zip(graphs, first_atoms, strict=False):
        edges = slice(start, start + graph.num_edges)
        assert torch.equal(batch.edge_index[:, edges], graph.edge_index + offset)
        start += graph.num_edges
    assert start == batch.num_edges

    sender, receiver = batch.edge_index
    cell = batch.cell[batch.structure_index[receiver]]
    shift = torch.einsum("ea,eab->eb", batch.cell_shifts, cell)
    lengths = (batch.positions[sender] - batch.positions[receiver] + shift).norm(dim=1)
    assert lengths.min() > 2.0 and lengths.max() <= 4.0
