"""What a model has learned about the elements: their vectors, and which are similar."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols

from .potential.potential import Potential


def element_vectors(potential: Potential) -> np.ndarray:
    """The vectors of all elements, (119, D); the row is the atomic number, row 0 is unused."""
    vectors = potential.backbone.element_vectors.detach()
    # float64, so that the table does not depend on the dtype that the model runs in
    vectors = vectors.cpu().double()
    return vectors.numpy()


def nearest_elements(
    potential: Potential, symbols: list[str], count: int = 5
) -> dict[str, list[tuple[str, float]]]:
    """For each symbol the `count` most similar of the others, with their cosine similarity.

    The most similar comes first.
    """
    numbers = [chemical_symbols.index(symbol) for symbol in symbols]
    rows = element_vectors(potential)[numbers]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / lengths
    similarity = unit @ unit.T
    # an element is not its own neighbour
    np.fill_diagonal(similarity, -np.inf)

    # there may be fewer others than asked for
    num_others = min(count, len(symbols) - 1)
    nearest = {}
    for symbol, values in zip(symbols, similarity, strict=True):
        order = np.argsort(-values)
        most_similar = []
        for other in order[:num_others]:
            most_similar.append((symbols[other], float(values[other])))
        nearest[symbol] = most_similar
    return nearest
