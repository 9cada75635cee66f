"""`evenfield check physics`: known answers of simple potentials, and planted faults."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from evenfield.diagnostics.check import CheckResult, check_function
from evenfield.diagnostics.checks.timestep import Scan
from evenfield.diagnostics.sanity.config import SanityConfig

from broken_calculators import Checked, Drift, Kinked, SinglePrecision, StrongForces


PNG = b"\x89PNG"


def made(
    name: str, calculator: type[Calculator], known: list[str], **settings: object
) -> CheckResult:
    config = SanityConfig.model_validate({"suite": "quick", **settings})
    return check_function(name)(Checked(calculator, known), config)


def values(result: CheckResult) -> dict[str, float]:
    return {figure.name: figure.value for figure in result.figures}


def failed(result: CheckResult) -> list[str]:
    return [figure.name for figure in result.figures if not figure.passed]


# --- time steps


def test_copper_stands_long_time_steps() -> None:
    result = made("timestep", EMT, ["Cu"], picoseconds=0.1)
    assert result.passed, result.lines
    # 8 fs, four times the usual step
    assert values(result)["largest safe step over the usual one"] == 4
    assert result.skipped == ["Si", "NaCl"]
    assert result.pictures["timestep.png"].startswith(PNG)


def test_forces_without_an_energy_drift_at_any_step() -> None:
    result = made("timestep", Drift, ["Cu"], picoseconds=0.05)
    assert failed(result) == [
        "largest safe step over the usual one",
        "systems with a drift that no time step removes",
    ]


def test_an_error_of_the_integrator_is_no_remainder() -> None:
    """Verlet's drift grows with the square of the step, a false force's does not."""
    steps = np.array([1.0, 2.0, 4.0])
    by_verlet = Scan("Cu", 1.0, steps, 0.6 * steps**2, np.full(3, 0.1))
    assert by_verlet.remainder == pytest.approx(0, abs=1e-12)
    assert by_verlet.largest_safe == 4.0
    by_forces = Scan("Cu", 1.0, steps, 12 + 0.6 * steps**2, np.full(3, 0.1))
    assert by_forces.remainder == pytest.approx(12)
    assert by_forces.largest_safe == 0.0
    broken = Scan("Cu", 1.0, steps, np.array([1.0, np.inf, np.inf]), np.array([0.1, np.inf, 9.0]))
    assert broken.remainder == 1.0 and broken.largest_safe == 1.0


# --- smoothness


def test_copper_is_smooth() -> None:
    result = made("smoothness", EMT, ["Cu"])
    assert result.passed, result.lines
    assert values(result)["noise of the energy"] < 1e-9


def test_the_jump_of_lennard_jones_at_its_cutoff_is_the_closed_form() -> None:
    """ASE shifts the energy at 3 sigma and leaves the force, 24 (2/3^13 - 1/3^7)."""
    result = made("smoothness", LennardJones, ["H"])
    expected = 24 * abs(2 * 3.0**-13 - 3.0**-7)
    assert values(result)["largest jump of a force"] == pytest.approx(expected, rel=1e-3)
    assert "at 3.00 A" in result.lines[1]

    class Smooth(LennardJones):
        def __init__(self) -> None:
            super().__init__(smooth=True)

    assert values(made("smoothness", Smooth, ["H"]))["largest jump of a force"] < 1e-3


@pytest.mark.parametrize(
    ("calculator", "fault"),
    [
        (Kinked, "largest jump of a force"),
        (StrongForces, "largest error of a force as the slope"),
        (SinglePrecision, "noise of the energy"),
    ],
)
def test_faults_of_smoothness_are_found(calculator: type[EMT], fault: str) -> None:
    assert failed(made("smoothness", calculator, ["Cu"]))[0] == fault
