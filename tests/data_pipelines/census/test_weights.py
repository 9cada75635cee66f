"""Importance weights: mean 1, a floor on the effective sample, unbiased copies."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evenfield.data_pipelines.census.weights import (
    ElementWeights,
    LevelWeights,
    WeightConfig,
    effective_share,
    has_element,
    num_copies,
)


def end_to_end(sets) -> tuple[np.ndarray, np.ndarray]:
    """Structures of one atom an element."""
    return np.concatenate([sorted(s) for s in sets]), np.cumsum([0, *map(len, sets)])


def fitted(sets, **config) -> tuple[ElementWeights, np.ndarray]:
    numbers, starts = end_to_end(sets)
    counts = has_element(numbers, starts).sum(0)
    weights = ElementWeights.fit(counts, [(numbers, starts)], WeightConfig(**config))
    return weights, weights(numbers, starts)


def copies_of(weight: float, names: list[str], seed: int, epoch: int) -> np.ndarray:
    return num_copies(np.full(len(names), weight), names, seed, epoch)


element_sets = st.lists(
    st.sets(st.integers(1, 118), min_size=1, max_size=4), min_size=1, max_size=60
)


@settings(max_examples=100)
@given(element_sets, st.floats(0, 1), st.floats(0.05, 1))
def test_mean_is_one_and_effective_share_stays_above_its_floor(sets, beta, floor):
    _, w = fitted(sets, beta=beta, min_effective_share=floor)
    assert w.mean() == pytest.approx(1)
    assert w.sum() ** 2 / (len(w) * (w**2).sum()) >= floor - 1e-9
    assert (w > 0).all()


@settings(max_examples=50)
@given(element_sets, st.floats(0.1, 1))
def test_mean_over_elements_is_that_of_their_weights(sets, beta):
    weights, w = fitted(sets, beta=beta, over="mean", min_effective_share=0.01)
    expected = np.array([np.mean([weights.element_weight[z] for z in s]) for s in sets])
    np.testing.assert_allclose(
        w, np.minimum(expected, weights.cap) / np.minimum(expected, weights.cap).mean()
    )


@settings(max_examples=50)
@given(element_sets, st.floats(0, 1))
def test_weights_come_back_through_json(sets, beta):
    weights, w = fitted(sets, beta=beta)
    again = ElementWeights.from_dict(json.loads(json.dumps(weights.to_dict())))
    np.testing.assert_array_equal(again(*end_to_end(sets)), w)


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
        copies = [int(copies_of(weight, ["some id"], 0, epoch)[0]) for epoch in range(4000)]
        assert set(copies) <= {int(weight), int(weight) + 1}
        assert np.mean(copies) == pytest.approx(weight, abs=0.04)  # five standard errors


def test_copies_are_unbiased_over_structures():
    copies = copies_of(1.37, [f"structure {k}" for k in range(4000)], 0, 0)
    assert np.mean(copies) == pytest.approx(1.37, abs=0.04)


def test_copies_are_repeatable_and_differ_between_seeds_and_epochs():
    def draw(seed: int, epoch: int) -> list[int]:
        return copies_of(0.5, [f"{k}" for k in range(100)], seed, epoch).tolist()

    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 0) != draw(0, 1) != draw(1, 0) != draw(0, 0)
    assert draw(1, 11) != draw(11, 1)


@given(st.integers(0, 10), st.text(), st.integers(0, 100))
def test_whole_weights_are_copied_exactly(weight, structure_id, epoch):
    assert copies_of(float(weight), [structure_id], 0, epoch).tolist() == [weight]


@pytest.mark.parametrize(
    "bad", [{"beta": -0.1}, {"beta": 1.1}, {"min_effective_share": 0}, {"gamma": 1}]
)
def test_settings_outside_their_range_are_refused(bad):
    with pytest.raises(ValidationError):
        WeightConfig(**bad)


def test_an_element_is_rare_at_the_level_that_has_few_of_it():
    """5 structures at the main level and 160 at a cheap one are not 165."""
    main = [{11, 8}] * 100 + [{12, 8}] * 5
    cheap = [{11, 8}] * 5 + [{12, 8}] * 160
    numbers, starts = end_to_end(main + cheap)
    levels = np.array(["main"] * len(main) + ["cheap"] * len(cheap), dtype=object)
    counts = {
        "main": has_element(*end_to_end(main)).sum(0),
        "cheap": has_element(*end_to_end(cheap)).sum(0),
    }
    config = WeightConfig(beta=0.5, min_effective_share=0.1)
    weights = LevelWeights.fit(counts, [(numbers, starts, levels)], config)
    w = weights(numbers, starts, levels)

    rare_at_main = w[100:105]
    assert rare_at_main == pytest.approx(w[0] * (100 / 5) ** 0.5)
    assert w[-1] < w[105]
    # neither level gains structures at the cost of the other
    assert w[:105].mean() == pytest.approx(1)
    assert w[105:].mean() == pytest.approx(1)

    again = LevelWeights.from_dict(json.loads(json.dumps(weights.to_dict())))
    np.testing.assert_array_equal(again(numbers, starts, levels), w)


def test_weights_of_one_level_are_those_without_levels():
    sets = [{11, 8}] * 20 + [{12, 8}] * 3 + [{13, 9}]
    numbers, starts = end_to_end(sets)
    levels = np.array(["PBE"] * len(sets), dtype=object)
    plain, expected = fitted(sets, beta=0.5)
    counts = {"PBE": has_element(numbers, starts).sum(0)}
    weights = LevelWeights.fit(counts, [(numbers, starts, levels)], WeightConfig(beta=0.5))
    np.testing.assert_array_equal(weights(numbers, starts, levels), expected)
    assert weights.of_level("PBE").to_dict() == plain.to_dict()


def test_a_level_that_the_sample_does_not_contain_has_weights_of_one():
    numbers, starts = end_to_end([{11}, {12}])
    levels = np.array(["PBE", "PBE"], dtype=object)
    counts = {"PBE": has_element(numbers, starts).sum(0), "SCAN": np.ones(119)}
    weights = LevelWeights.fit(counts, [(numbers, starts, levels)], WeightConfig(beta=0.5))
    other = np.array(["SCAN", "SCAN"], dtype=object)
    assert weights(numbers, starts, other).tolist() == [1.0, 1.0]
