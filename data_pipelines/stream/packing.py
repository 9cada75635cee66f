"""Batches filled up to an edge budget and an atom budget, from a short look ahead."""

from __future__ import annotations

from collections.abc import Iterator

from torch_geometric.data import Data


def pack(
    graphs: Iterator[Data], edge_budget: int, atom_budget: int, look_ahead: int
) -> Iterator[list[Data]]:
    """Fill batches up to both budgets: the oldest of `look_ahead` waiting graphs, then always the largest that fits.

    A graph that alone exceeds a budget makes a batch of its own.
    """
    waiting: list[Data] = []
    exhausted = False
    while True:
        batch: list[Data] = []
        edges = atoms = 0
        while True:
            while not exhausted and len(waiting) < look_ahead:
                graph = next(graphs, None)
                exhausted = graph is None
                waiting += [] if graph is None else [graph]
            k = (
                _choice(waiting, edge_budget - edges, atom_budget - atoms)
                if batch
                else (0 if waiting else None)
            )
            if k is None:
                break
            graph = waiting.pop(k)
            batch.append(graph)
            edges, atoms = edges + graph.num_edges, atoms + graph.num_nodes
        if not batch:
            return
        yield batch


def _choice(waiting: list[Data], edges: int, atoms: int) -> int | None:
    """The largest waiting graph that fits in what is left, the oldest of several; None when none does."""
    fits = (
        k
        for k, graph in enumerate(waiting)
        if graph.num_edges <= edges and graph.num_nodes <= atoms
    )
    return max(fits, key=lambda k: (waiting[k].num_edges, -k), default=None)
