"""Regressions beside a model: laws that they must find, and verdicts of a good and a bad model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evenfield import model_zoo
from evenfield.diagnostics.check import CheckedModel, CheckError
from evenfield.diagnostics.checks.baselines import (
    Described,
    check,
    gaussian_process,
    regressions,
    ridge,
)


def described(
    rng: np.random.Generator, number: int, law: str, error: float = 0.0
) -> tuple[Described, np.ndarray]:
    """Structures of two elements whose energy per atom follows a law, and that energy."""
    counts = np.zeros((number, 119))
    counts[:, 29] = rng.uniform(0, 1, number)
    counts[:, 47] = 1 - counts[:, 29]
    features = rng.normal(0, 1, (number, 3))
    energy = -5000 + 3 * counts[:, 29]
    if law == "linear":
        energy = energy + 0.5 * features[:, 0]
    if law == "curved":
        energy = energy + 0.5 * np.sin(2 * features[:, 0])
    return Described(counts, features, energy, energy + error), energy


@pytest.mark.parametrize(
    ("law", "found_by"),
    [
        ("composition", {"composition", "linear in its features", "kernel of its features"}),
        ("linear", {"linear in its features", "kernel of its features"}),
        ("curved", {"kernel of its features"}),
    ],
)
def test_each_regression_finds_its_law(law: str, found_by: set[str]) -> None:
    rng = np.random.default_rng(0)
    train, _ = described(rng, 200, law)
    test, energy = described(rng, 100, law)
    errors = {
        name: np.abs(predicted - energy).mean()
        for name, predicted in regressions(train, test)[0].items()
    }
    assert {name for name, error in errors.items() if error < 0.08} == found_by, errors


def test_ridge_is_the_solution_of_least_squares_where_nothing_is_noisy() -> None:
    rng = np.random.default_rng(1)
    columns = rng.normal(size=(40, 5))
    weights = rng.normal(size=5)
    assert ridge(columns, columns @ weights) == pytest.approx(weights, abs=1e-6)
    # with pure noise, next to nothing is left of the weights
    noise = rng.normal(size=40)
    assert np.abs(ridge(columns, noise)).max() < np.abs(np.linalg.lstsq(columns, noise)[0]).max()


def test_a_gaussian_process_goes_through_its_points() -> None:
    points = np.linspace(-2, 2, 21)[:, None]
    target = np.sin(2 * points[:, 0])
    between = np.linspace(-1.9, 1.9, 13)[:, None]
    found, deviation = gaussian_process(points, target, between)
    assert found == pytest.approx(np.sin(2 * between[:, 0]), abs=0.02)
    # sure between its points, and as unsure as before far away from them
    assert deviation.max() < 0.1
    _, far = gaussian_process(points, target, np.array([[40.0]]))
    assert far == pytest.approx([target.std()], rel=0.1)


def test_a_model_that_learned_nothing_loses(data_set: Path) -> None:
    config = model_zoo.PotentialConfig(
        channels=4, l_max=1, num_layers=1, correlation=2, readout_size=8, cutoff=4.0
    )
    potential = model_zoo.Potential(config.model_copy(update={"levels_of_theory": ["EMT"]}))
    metals = ["Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au"]
    record = model_zoo.ModelRecord(name="untrained", elements={"EMT": metals})
    model = CheckedModel(model_zoo.LoadedModel(potential, record, "untrained"))
    result = check(model, data_set)
    assert result.passed is False
    over = next(figure for figure in result.figures if figure.is_judged)
    assert over.name == "energy MAE over that of the best regression"
    assert over.value > 2
    assert [figure.unit for figure in result.figures[:4]] == ["meV/atom"] * 4


def test_data_without_its_level_are_named(data_set: Path) -> None:
    model = CheckedModel(model_zoo.load("evenfield-s"), "GFN1-xTB")
    with pytest.raises(
        CheckError, match="of the train split at GFN1-xTB, only at EMT, EMT-scaled:"
    ):
        check(model, data_set)
