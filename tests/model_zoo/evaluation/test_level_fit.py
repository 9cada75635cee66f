"""Swapped names of levels of theory show in energies, whatever the size of the difference."""

from __future__ import annotations

import pytest

from evenfield.model_zoo.evaluation.level_fit import Misfit, swapped


@pytest.mark.parametrize(
    ("better", "expected"),
    [
        ({"A": "B", "B": "A"}, ["A", "B"]),
        ({"A": "B", "B": "C", "C": "A"}, ["A", "B", "C"]),
        ({"A": "B", "B": "C"}, []),
        ({"A": "B", "B": "C", "C": "B"}, ["B", "C"]),
        ({"A": None, "B": "A"}, []),
        ({}, []),
    ],
)
def test_circles_of_names(better: dict[str, str | None], expected: list[str]) -> None:
    found = [Misfit(level, 1.0, other, 0.01) for level, other in better.items()]
    assert swapped(found) == expected


def test_a_head_that_fits_a_little_better_is_no_proof() -> None:
    found = [Misfit("A", 0.15, "B", 0.02), Misfit("B", 0.15, "A", 0.02)]
    assert swapped(found) == []
    assert "0.15 eV/atom" in str(found[0]) and "0.02 from the head of B" in str(found[0])
