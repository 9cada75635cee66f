"""Packing: complete, within both budgets, full."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data_pipelines.stream.packing import pack


sizes = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=60)


@settings(max_examples=200)
@given(sizes, st.integers(1, 100), st.integers(1, 40), st.integers(1, 8))
def test_pack_keeps_every_graph_and_both_budgets(pairs, edge_budget, atom_budget, look_ahead):
    taken = []

    def graphs():
        for name, (edges, atoms) in enumerate(pairs):
            taken.append(name)
            yield SimpleNamespace(num_edges=edges, num_atoms=atoms, name=name)

    packed: list[int] = []
    for batch in pack(graphs(), edge_budget, atom_budget, look_ahead):
        names = [graph.name for graph in batch]
        edges, atoms = sum(g.num_edges for g in batch), sum(g.num_atoms for g in batch)
        assert len(batch) == 1 or (edges <= edge_budget and atoms <= atom_budget)
        waiting = sorted(set(taken) - set(packed))
        assert names[0] == waiting[0]  # the oldest always goes: nothing starves
        packed += names
        left = [pairs[name] for name in set(taken) - set(packed)]
        assert len(left) <= look_ahead
        assert all(
            edges + e > edge_budget or atoms + a > atom_budget for e, a in left
        )  # and nothing else fits
    assert sorted(packed) == list(range(len(pairs)))
    if look_ahead == 1:
        assert packed == sorted(packed)


def test_sizes_of_a_hundredfold_range_fill_the_budget():
    edges = np.random.default_rng(0).integers(1, 201, 3000) * 40
    graphs = iter([SimpleNamespace(num_edges=int(e), num_atoms=1) for e in edges])
    fills = [sum(g.num_edges for g in batch) / 20_000 for batch in pack(graphs, 20_000, 10_000, 32)]
    assert max(fills) <= 1 and np.mean(fills[:-1]) > 0.98
