"""Radii with a stated coverage, against counting and against the rule written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evenfield.model_zoo.uncertainty.conformal import MAX_SCORES, Scores


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("number", [1, 9, 10, 99, 100, 640])
def test_quantile_is_the_order_statistic_of_the_rule(number: int, coverage: float) -> None:
    scores = np.random.default_rng(number).exponential(size=number)
    rank = math.ceil((number + 1) * round(100 * coverage) / 100)
    found = Scores.of(scores, 1).quantile(coverage)
    if rank > number:
        assert found == math.inf
    else:
        assert found == np.sort(scores)[rank - 1]


def test_scores_that_are_thinned_out_never_give_a_smaller_radius() -> None:
    scores = np.random.default_rng(0).exponential(size=50_000)
    thin = Scores.of(scores, 100)
    assert len(thin.values) <= MAX_SCORES
    assert thin.number == len(scores)
    for coverage in (0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999):
        exact = np.sort(scores)[math.ceil((len(scores) + 1) * coverage) - 1]
        assert exact <= thin.quantile(coverage) <= exact * 1.01


def test_coverage_is_what_was_stated() -> None:
    """Averaged over calibrations, of errors whose size is predicted only roughly."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        spread = rng.lognormal(size=300)
        error = np.abs(rng.normal(size=300)) * spread * rng.lognormal(sigma=0.5, size=300)
        radius = Scores.of((error / spread)[:100], 100).quantile(0.9) * spread[100:]
        covered.append((error[100:] <= radius).mean())
    # 101 equally likely ranks, of which 91 are covered
    assert np.mean(covered) == pytest.approx(91 / 101, abs=4 * np.std(covered) / 400**0.5)
