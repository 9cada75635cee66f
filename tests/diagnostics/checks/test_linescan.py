"""Scans along directions that the data do not show: the directions and the errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT

from evenfield import model_zoo
from evenfield.diagnostics.check import CheckedModel, CheckError
from evenfield.diagnostics.checks.linescan import LEAST, MOST, RANDOM, check, directions, scan


def test_the_first_direction_is_that_of_least_variance() -> None:
    """Three features of two atoms: the first two answer to moves, and the third to none."""
    slopes = np.zeros((3, 6))
    slopes[0, 0] = 2.0
    slopes[1, 4] = 0.5
    moves = directions(slopes, np.diag([1e-4, 4.0, 0.0]), np.random.default_rng(0))

    (least,) = moves.by_name[LEAST]
    (most,) = moves.by_name[MOST]
    # the feature without variance cannot be reached
    assert np.abs(least).ravel() == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-9)
    assert np.abs(most).ravel() == pytest.approx([0, 0, 0, 0, 1, 0], abs=1e-9)
    assert moves.deviations == pytest.approx({LEAST: 1e-2, MOST: 2.0})


def test_a_move_is_the_smallest_that_makes_its_change_of_features() -> None:
    rng = np.random.default_rng(1)
    slopes = rng.normal(size=(4, 12))
    covariance = np.diag([1.0, 2.0, 3.0, 4.0])
    (least,) = directions(slopes, covariance, rng).by_name[LEAST]
    change = slopes @ least.ravel()
    assert change / np.linalg.norm(change) == pytest.approx([1, 0, 0, 0], abs=1e-6) or (
        change / np.linalg.norm(change) == pytest.approx([-1, 0, 0, 0], abs=1e-6)
    )
    smallest = np.linalg.pinv(slopes) @ change
    assert least.ravel() == pytest.approx(smallest)
    assert np.linalg.norm(least, axis=1).max() == pytest.approx(1)


class Stiffer(EMT):  # type: ignore[misc]
    """EMT with a spring of 2 eV/A^2 that holds the first atom along x."""

    def calculate(self, *args: object, **kwargs: object) -> None:
        super().calculate(*args, **kwargs)
        self.results["forces"] = self.results["forces"].copy()
        self.results["forces"][0, 0] -= 2.0 * self.atoms.positions[0, 0]


def test_errors_along_a_scan_are_those_of_the_forces() -> None:
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.3]])
    moves = np.array([[1.0, 0, 0], [0, 0, 0]])
    errors = scan(Stiffer(), EMT(), atoms, moves, np.array([-0.1, 0.0, 0.2]))
    assert errors == pytest.approx(np.array([0.2, 0.0, 0.4]) / 6**0.5, abs=1e-12)


def test_a_model_and_its_oracle(data_set: Path, tmp_path: Path) -> None:
    model = CheckedModel(model_zoo.load("evenfield-s"), "EMT")
    result = check(
        model,
        data_set,
        oracle="ase.calculators.emt:EMT",
        starts=1,
        most_atoms=8,
        pictures=tmp_path / "pictures",
    )
    assert result.passed is None
    found = {figure.name: figure.value for figure in result.figures}
    assert found["force error at the start (RMSE)"] > 0
    for name in (LEAST, MOST, RANDOM):
        assert np.isfinite(found[f"growth of the force error, {name}"])
    assert (tmp_path / "pictures" / "linescan.png").read_bytes() == result.pictures["linescan.png"]


def test_data_without_small_structures_are_named(data_set: Path) -> None:
    model = CheckedModel(model_zoo.load("evenfield-s"), "EMT")
    with pytest.raises(CheckError, match="has no test structure with at most 2 atoms"):
        check(model, data_set, oracle="ase.calculators.emt:EMT", most_atoms=2)
