"""Numbers as they are written in pictures and tables."""

from __future__ import annotations

import pytest

from evenfield.core.numbers import short_number, table_cell, written_unit


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123"),
        (1.0, "1"),
        (1.5, "1.50"),
        (999.6, "1k"),
        (12_345, "12.3k"),
        (4_560_000, "4.56M"),
        (0.000012, "1.2e-05"),
        (-2500.0, "-2.5k"),
    ],
)
def test_short_number(value, text):
    assert short_number(value) == text


def test_table_cell_has_three_digits_or_a_dash():
    assert [table_cell(value) for value in (None, float("nan"), float("inf"))] == ["-"] * 3
    assert [table_cell(value) for value in (0.5, 2.0, 12_345)] == ["0.500", "2.00", "12.3k"]
    assert table_cell(0.0123, 1000) == "12.3"


def test_units_as_they_are_written():
    assert written_unit("eV/A^3") == "eV/\u00c5\u00b3"
    assert written_unit("eV/A") == "eV/\u00c5"
    assert written_unit("meV/atom") == "meV/atom"
