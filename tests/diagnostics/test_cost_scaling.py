"""Laws of cost, from times that were not measured but made."""

from __future__ import annotations

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from evenfield import model_zoo
from evenfield.diagnostics.cost_scaling import CostLaw, break_even, fit_cost, time_calls


SIZES = [32, 64, 128, 512, 2048]


@pytest.mark.parametrize("law", [CostLaw(0.01, 1e-4, 1.0), CostLaw(0.0, 1e-6, 3.0), CostLaw(0.5, 1e-5, 1.3)])
def test_a_law_is_found_again(law: CostLaw) -> None:
    found = fit_cost(SIZES, [law.seconds(n) for n in SIZES])
    assert found.exponent == pytest.approx(law.exponent, abs=0.011)
    assert found.fixed == pytest.approx(law.fixed, rel=0.02, abs=1e-4)
    for size in (10, 5000):
        assert found.seconds(size) == pytest.approx(law.seconds(size), rel=0.02)


def test_break_even() -> None:
    ours, cubic = CostLaw(0.0, 1e-2, 1.0), CostLaw(0.0, 1e-6, 3.0)
    assert break_even(ours, cubic) == pytest.approx(100, rel=1e-6)
    assert break_even(CostLaw(0.0, 1e-7, 1.0), cubic) == 1.0
    assert break_even(cubic, ours) is None


def test_two_sizes_are_too_few() -> None:
    with pytest.raises(ValueError, match="three sizes"):
        fit_cost([4, 8, 8], [1.0, 2.0, 2.0])


def test_calls_are_timed_one_by_one() -> None:
    """A clock that counts its readings: every call takes one tick, and atoms move before each of them."""
    ticks = iter(range(1000))
    cells = [bulk("Cu", cubic=True), bulk("Cu", cubic=True) * 2]
    for calculator in (EMT(), model_zoo.load("evenfield-s").calculator(level_of_theory="EMT")):
        assert time_calls(calculator, cells, rounds=2, clock=lambda: next(ticks)) == [1.0, 1.0]
