"""The learned element vectors of a model, and which elements are similar."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from ..core.destination import FileKind
from ..core.files import file_errors, write_atomically
from .potential.potential import Potential


SYMBOLS = chemical_symbols[1:119]
# A symbol and at least four numbers. A user's own table of elements has fewer columns, so it is not
# mistaken for this file and overwritten.
ROW = re.compile(r"([A-Z][a-z]?)((?:,-?\d[\d.e+-]*){4,})")


def element_vectors(potential: Potential) -> np.ndarray:
    """The vectors of all elements, (119, D), indexed by atomic number; row 0 is unused."""
    vectors = potential.backbone.element_vectors.detach()
    # float64, so that the table does not depend on the model's dtype
    vectors = vectors.cpu().double()
    return vectors.numpy()


def nearest_elements(
    potential: Potential, symbols: list[str], count: int = 5
) -> dict[str, list[tuple[str, float]]]:
    """Map each symbol to the `count` most similar other symbols and their cosine similarities.

    The most similar comes first. Only elements in `symbols` are compared.
    """
    numbers = [chemical_symbols.index(symbol) for symbol in symbols]
    rows = element_vectors(potential)[numbers]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / lengths
    similarity = unit @ unit.T
    # an element is not its own neighbour
    np.fill_diagonal(similarity, -np.inf)

    # `symbols` may hold fewer other elements than requested
    num_others = min(count, len(symbols) - 1)
    nearest = {}
    for symbol, values in zip(symbols, similarity, strict=True):
        order = np.argsort(-values)
        most_similar = []
        for other in order[:num_others]:
            most_similar.append((symbols[other], float(values[other])))
        nearest[symbol] = most_similar
    return nearest


def write_vectors(path: Path, potential: Potential) -> None:
    """Write a CSV file with one row per element: the symbol, then the learned vector."""
    # row 0 is not an element
    vectors = element_vectors(potential)[1:]
    # 24 characters hold every digit of a float64
    texts = vectors.astype("U24")
    rows = np.column_stack([np.array(SYMBOLS)[:, None], texts])
    table = io.StringIO()
    np.savetxt(table, rows, fmt="%s", delimiter=",")
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, table.getvalue())


def _holds_vectors(path: Path) -> bool:
    """Whether a file has the 118 rows that `write_vectors` writes, all of the same length."""
    symbols: list[str] = []
    lengths = set()
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = ROW.fullmatch(line.rstrip("\r\n"))
            if row is None or len(symbols) == len(SYMBOLS):
                return False
            symbols.append(row[1])
            lengths.add(row[2].count(","))
    return symbols == SYMBOLS and len(lengths) == 1


VECTORS_FILE = FileKind("vectors of `evenfield hub elements`", _holds_vectors)
