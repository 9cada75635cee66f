"""Importance weights: mean 1, a floor on the effective sample, no favour at beta 0, unbiased copies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evenfield.data_pipelines.schema import Structure
from evenfield.data_pipelines.weights import ElementWeights, WeightConfig, effective_share, num_copies


def of_elements(elements) -> Structure:
    elements = np.array(sorted(elements))
    zeros = np.zeros((len(elements), 3))
    return Structure(elements, zeros, np.zeros((3, 3)), np.zeros(3, bool), "EMT", "a", "a")


def fitted(sets, **config) -> tuple[ElementWeights, np.ndarray]:
    weights = ElementWeights.fit([np.array(sorted(s)) for s in sets], WeightConfig(**config))
    return weights, np.array([weights(of_elements(s)) for s in sets])


element_sets = st.lists(st.sets(st.integers(1, 118), min_size=1, max_size=4), min_size=1, max_size=60)


@settings(max_examples=100)
@given(element_sets, st.floats(0, 1), st.floats(0.05, 1))
def test_mean_is_one_and_effective_share_stays_above_its_floor(sets, beta, floor):
    _, w = fitted(sets, beta=beta, min_effective_share=floor)
    assert w.mean() == pytest.approx(1)
    assert w.sum() ** 2 / (len(w) * (w**2).sum()) >= floor - 1e-9
    assert (w > 0).all()


@given(element_sets)
def test_beta_zero_weighs_all_alike(sets):
    _, w = fitted(sets, beta=0.0)
    assert (w == 1.0).all()


@settings(max_examples=100)
@given(element_sets, st.floats(0.1, 1))
def test_structure_with_a_rarer_element_never_weighs_less(sets, beta):
    _, w = fitted(sets, beta=beta, min_effective_share=0.05)
    counts = {z: sum(z in s for s in sets) for s in sets for z in s}
    rarest = np.array([min(counts[z] for z in s) for s in sets])
    order = np.argsort(rarest)
    assert (np.diff(w[order]) <= 1e-12).all()


def test_uncapped_weight_is_the_power_law_of_the_rarest_element():
    sets = [{29}] * 90 + [{29, 47}] * 9 + [{79}]
    weights, w = fitted(sets, beta=0.5, min_effective_share=0.01)
    raw = np.array([99**-0.5] * 90 + [9**-0.5] * 9 + [1.0])
    np.testing.assert_allclose(w, raw / raw.mean())
    per_element = weights.per_element()
    assert per_element[[29, 47, 79]] == pytest.approx(np.array([99, 9, 1]) ** -0.5 / raw.mean())
    assert per_element[26] == 0  # not in the data


def test_floor_binds_exactly_when_it_must():
    sets = [{29}] * 1000 + [{79}]
    _, w = fitted(sets, beta=1.0, min_effective_share=0.9)
    assert effective_share(w) == pytest.approx(0.9, abs=1e-6)
    assert w[-1] > 5 * w[0]


def test_effective_share_of_known_weights():
    assert effective_share(np.ones(7)) == 1
    assert effective_share(np.array([1.0, 0, 0, 0])) == 0.25


def test_copies_are_unbiased_over_epochs():
    for weight in (0.2, 1.0, 1.37, 3.9):
        copies = [num_copies(weight, "some id", 0, epoch) for epoch in range(4000)]
        assert set(copies) <= {int(weight), int(weight) + 1}
        assert np.mean(copies) == pytest.approx(weight, abs=0.04)  # five standard errors


def test_copies_are_unbiased_over_structures():
    copies = [num_copies(1.37, f"structure {k}", 0, 0) for k in range(4000)]
    assert np.mean(copies) == pytest.approx(1.37, abs=0.04)


def test_copies_are_repeatable_and_differ_between_seeds_and_epochs():
    def draw(seed: int, epoch: int) -> list[int]:
        return [num_copies(0.5, f"{k}", seed, epoch) for k in range(100)]

    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 0) != draw(0, 1) != draw(1, 0) != draw(0, 0)
    assert draw(1, 11) != draw(11, 1)


@given(st.integers(0, 10), st.text(), st.integers(0, 100))
def test_whole_weights_are_copied_exactly(weight, structure_id, epoch):
    assert num_copies(float(weight), structure_id, 0, epoch) == weight


@pytest.mark.parametrize("bad", [{"beta": -0.1}, {"beta": 1.1}, {"min_effective_share": 0}, {"gamma": 1}])
def test_settings_outside_their_range_are_refused(bad):
    with pytest.raises(ValidationError):
        WeightConfig(**bad)
