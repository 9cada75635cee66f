"""Laws of cost, found from times that follow a known law."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT

from evenfield import model_zoo
from evenfield.diagnostics.check import CheckError
from evenfield.diagnostics.checks.scaling import (
    CostLaw,
    break_even,
    fit_cost,
    force_error,
    time_calls,
)


SIZES = [32, 64, 128, 512, 2048]


@pytest.mark.parametrize(
    "law", [CostLaw(0.01, 1e-4, 1.0), CostLaw(0.0, 1e-6, 3.0), CostLaw(0.5, 1e-5, 1.3)]
)
def test_a_known_law_is_found(law: CostLaw) -> None:
    found = fit_cost(SIZES, [law.seconds(n) for n in SIZES])
    assert found.exponent == pytest.approx(law.exponent, abs=0.011)
    assert found.fixed == pytest.approx(law.fixed, rel=0.02, abs=1e-4)
    for size in (10, 5000):
        assert found.seconds(size) == pytest.approx(law.seconds(size), rel=0.02)


def test_break_even() -> None:
    ours = CostLaw(0.0, 1e-2, 1.0)
    cubic = CostLaw(0.0, 1e-6, 3.0)
    # 1e-2 n = 1e-6 n^3
    assert break_even(ours, cubic) == pytest.approx(100, rel=1e-6)
    assert break_even(CostLaw(0.0, 1e-7, 1.0), cubic) == 1.0
    assert break_even(cubic, ours) is None


def test_two_sizes_are_too_few() -> None:
    with pytest.raises(CheckError, match="three sizes"):
        fit_cost([4, 8, 8], [1.0, 2.0, 2.0])


class Watched(EMT):
    """EMT that keeps the positions of every call."""

    def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        earlier = getattr(self, "positions_seen", [])
        self.positions_seen = [*earlier, atoms.positions.copy()]


def test_atoms_move_before_every_call_that_is_timed() -> None:
    """A clock that counts its readings: every call takes one tick."""
    ticks = iter(range(1000))
    calculator = Watched()
    small = bulk("Cu", cubic=True)
    seconds = time_calls(calculator, [small, small * 2], rounds=2, clock=lambda: next(ticks))
    assert seconds == [1.0, 1.0]

    # one call of each size comes before those that are timed
    sizes = [len(positions) for positions in calculator.positions_seen]
    assert sizes == [4, 4, 4, 32, 32, 32]
    for one, other in itertools.pairwise(calculator.positions_seen):
        if len(one) == len(other):
            # more than a rigid shift, which needs no new neighbours
            assert np.ptp(one - other, axis=0).max() > 1e-3


def test_our_own_model_can_be_timed() -> None:
    calculator = model_zoo.load("evenfield-s").calculator(level_of_theory="EMT")
    (seconds,) = time_calls(calculator, [bulk("Cu", cubic=True) * 2], rounds=2)
    assert seconds > 0


def test_the_error_beside_a_speed_is_that_of_the_forces() -> None:
    class Half(EMT):
        def calculate(self, atoms=None, properties=None, system_changes=all_changes) -> None:
            super().calculate(atoms, properties, system_changes)
            self.results["forces"] = self.results["forces"] / 2

    cell = bulk("Cu", cubic=True)
    error, size = force_error(Half(), EMT(), cell)
    assert size > 0.1
    # half of the mean of the absolute values, which is at most half of the RMS
    assert 0.25 * size < error < 0.5 * size
    assert force_error(EMT(), EMT(), cell)[0] == 0
