"""The periodic table of values: places, texts and colours of its cells."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_rgba

from evenfield.core.figures.periodic_table import (
    MISSING_COLOUR,
    SYMBOLS,
    colour_norm,
    periodic_table_heat_map,
    table_position,
)


@pytest.mark.parametrize(
    ("symbol", "position"),
    [
        ("H", (1, 1)),
        ("He", (1, 18)),
        ("Be", (2, 2)),
        ("B", (2, 13)),
        ("Sc", (4, 3)),
        ("Fe", (4, 8)),
        ("Lu", (6, 3)),
        ("Hf", (6, 4)),
        ("La", (8.35, 3)),
        ("Yb", (8.35, 16)),
        ("No", (9.35, 16)),
        ("Og", (7, 18)),
    ],
)
def test_position_of_an_element(symbol, position):
    assert table_position(SYMBOLS.index(symbol) + 1) == position


def test_every_element_has_a_place_of_its_own():
    assert len({table_position(z) for z in range(1, 119)}) == 118
    with pytest.raises(AssertionError, match="119"):
        table_position(119)


def test_heat_map_names_all_elements_and_writes_only_known_values():
    figure = periodic_table_heat_map(
        {"Fe": 0.1234, "H": None, "U": 0.0, "O": float("nan")}, "t", "eV", log=True
    )
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert set(SYMBOLS) <= set(texts)
    assert "0.123" in texts
    faces = figure.axes[0].collections[0].get_facecolor()
    grey = to_rgba(MISSING_COLOUR)
    assert [SYMBOLS[i] for i, face in enumerate(faces) if tuple(face) != grey] == ["Fe"]


def test_heat_map_of_counts_and_of_nothing():
    figure = periodic_table_heat_map({"Fe": 12, "O": 1_234_567}, "census", "structures", log=True)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {"12", "1.23M"} <= set(texts)
    assert not periodic_table_heat_map({}, "census", "structures").axes[0].child_axes


def test_heat_map_refuses_unknown_elements():
    with pytest.raises(AssertionError, match="'Xx'"):
        periodic_table_heat_map({"Xx": 1.0}, "t", "eV")


def test_tables_share_a_colour_scale_and_a_single_value_has_one_around_it():
    norm = colour_norm([{"H": 1.0, "O": None}, {"Fe": 8.0}], log=False)
    assert (norm.vmin, norm.vmax) == (1.0, 8.0)
    single = colour_norm([{"H": 2.0}], log=True)
    assert (single.vmin, single.vmax) == (1.0, 4.0)


def test_values_near_zero_do_not_take_all_the_colours():
    norm = colour_norm([{"He": 3e-9, "Fe": 0.1, "Kr": 5.0}], log=True)
    assert (norm.vmin, norm.vmax) == (pytest.approx(5e-4), 5.0)
    assert norm.vmin < 0.1 < norm.vmax
