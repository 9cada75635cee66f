"""Pack structures into batches within a budget of edges and atoms, with a short look-ahead."""

from __future__ import annotations

from collections.abc import Iterator

from ..batch import Batch


def pack(
    graphs: Iterator[Batch], edge_budget: int, atom_budget: int, look_ahead: int
) -> Iterator[list[Batch]]:
    """Group structures, each given as a batch of one, into lists within both budgets.

    Up to `look_ahead` structures wait to be packed. A list starts with the oldest of them, and
    then takes the largest one that still fits, until none does. With a look-ahead of 1, the order
    does not change. A structure that alone exceeds a budget gets a list to itself.
    """
    waiting: list[Batch] = []
    exhausted = False
    while True:
        packed: list[Batch] = []
        edges = 0
        atoms = 0
        while True:
            # refill after every structure, so that there are always `look_ahead` to choose from
            while not exhausted and len(waiting) < look_ahead:
                graph = next(graphs, None)
                if graph is None:
                    exhausted = True
                else:
                    waiting.append(graph)
            if packed:
                choice = _largest_that_fits(waiting, edge_budget - edges, atom_budget - atoms)
            else:
                choice = 0 if waiting else None
            if choice is None:
                break
            graph = waiting.pop(choice)
            packed.append(graph)
            edges += graph.num_edges
            atoms += graph.num_atoms
        if not packed:
            return
        yield packed


def _largest_that_fits(waiting: list[Batch], edges: int, atoms: int) -> int | None:
    """Index of the fitting structure with the most edges, on ties the oldest; None without any."""
    fitting = (
        index
        for index, graph in enumerate(waiting)
        if graph.num_edges <= edges and graph.num_atoms <= atoms
    )
    return max(fitting, key=lambda index: (waiting[index].num_edges, -index), default=None)
