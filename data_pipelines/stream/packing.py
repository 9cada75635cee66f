"""Batches filled up to an edge budget and an atom budget, from a short look ahead."""

from __future__ import annotations

from collections.abc import Iterator

from ..batch import Batch


def pack(
    graphs: Iterator[Batch], edge_budget: int, atom_budget: int, look_ahead: int
) -> Iterator[list[Batch]]:
    """Fill batches up to both budgets: the oldest of `look_ahead` waiting graphs, then always the largest that fits.

    A graph that alone exceeds a budget makes a batch of its own.
    """
    waiting: list[Batch] = []
    exhausted = False
    while True:
        batch: list[Batch] = []
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
            edges, atoms = edges + graph.num_edges, atoms + graph.num_atoms
        if not batch:
            return
        yield batch


def _choice(waiting: list[Batch], edges: int, atoms: int) -> int | None:
    """The largest waiting graph that fits in what is left, the oldest of several; None when none does."""
    fits = (
        k
        for k, graph in enumerate(waiting)
        if graph.num_edges <= edges and graph.num_atoms <= atoms
    )
    return max(fits, key=lambda k: (waiting[k].num_edges, -k), default=None)
