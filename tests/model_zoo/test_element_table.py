"""The file of the learned vectors of the elements, and how it is told from other tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenfield import model_zoo
from evenfield.model_zoo.element_table import SYMBOLS, VECTORS_FILE, write_vectors


def test_written_vectors_are_known_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "vectors.csv"
    write_vectors(path, model_zoo.load("evenfield-s").potential)
    assert VECTORS_FILE.is_at(path)
    lines = path.read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == SYMBOLS

    path.write_text("\n".join(lines[:-1]))
    assert not VECTORS_FILE.is_at(path)


@pytest.mark.parametrize(
    "row", ["{symbol},2.20", "{symbol},1,2,3,4,5,my note", "{symbol}: 1,2,3,4,5"]
)
def test_a_table_of_somebody_else_is_none(tmp_path: Path, row: str) -> None:
    path = tmp_path / "electronegativity.csv"
    path.write_text("\n".join(row.format(symbol=symbol) for symbol in SYMBOLS))
    assert not VECTORS_FILE.is_at(path)
