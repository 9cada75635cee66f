"""What a model has learned of the elements: their vectors, and which are near to which."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols

from .potential.potential import Potential


def element_vectors(potential: Potential) -> np.ndarray:
    """The embedding, (119, embedding_size); the row is Z, row 0 is unused."""
    return potential.backbone.element_vectors.detach().cpu().double().numpy()


def nearest_elements(
    potential: Potential, symbols: list[str], count: int = 5
) -> dict[str, list[tuple[str, float]]]:
    """For each of `symbols` the `count` nearest others of them by cosine similarity, most similar first."""
    rows = element_vectors(potential)[[chemical_symbols.index(symbol) for symbol in symbols]]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1)[:, : min(count, len(symbols) - 1)]
    return {
        symbol: [(symbols[k], float(similarity[row, k])) for k in nearest[row]]
        for row, symbol in enumerate(symbols)
    }
