"""benchmarks/label_curves.py: labels for the same error, on curves in closed form."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


FILE = Path(__file__).parents[3] / "benchmarks" / "label_curves.py"


@pytest.fixture(scope="module")
def curves() -> ModuleType:
    spec = importlib.util.spec_from_file_location("label_curves", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(way: str, seed: int, factor: float, power: float = 0.5) -> dict:
    """Errors factor / labels^power."""
    points = [4, 10, 16, 28, 40]
    curve = [
        {"labels": n, "force_rmse": factor / n**power, "energy_mae_per_atom": factor / n}
        for n in points
    ]
    return {"way": way, "seed": seed, "curve": curve}


def test_a_power_law_is_met_exactly(curves: ModuleType) -> None:
    rows = [row("random", seed, 2.0) for seed in range(3)]
    # 0.7 of the error with as many labels: half of the labels for the same error
    rows += [row("better", seed, 2.0 * 0.5**0.5) for seed in range(3)]
    found = curves.summary(rows)["labels over those of"]
    assert found["random"]["force_rmse"]["better"]["median"] == pytest.approx(0.5)
    assert found["random"]["energy_mae_per_atom"]["better"]["median"] == pytest.approx(0.5**0.5)
    # what never comes to that error has no ratio
    assert found["better"]["force_rmse"]["random"] == {"ratios": [None] * 3, "median": None}


def test_a_curve_that_rises_again_is_compared_at_its_lowest_point(curves: ModuleType) -> None:
    random = row("random", 0, 1.0)
    random["curve"][-1]["force_rmse"] = 9.0
    found = curves.beside([random, row("same", 0, 1.0)], "random", "force_rmse")
    assert found["same"]["ratios"] == [pytest.approx(1.0)]
    table = curves.medians([row("same", 0, 1.0), row("same", 1, 3.0)], "same", "force_rmse")
    assert table[0] == [4, 1.0, 0.5, 1.5]
