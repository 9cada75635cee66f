"""Errors by thirds of the elements: against numpy, and against errors that were put in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evenfield.model_zoo.evaluation.evenness import (
    FEWEST_ATOMS,
    GROUPS,
    error_of_third,
    evenness,
    evenness_change,
)
from evenfield.model_zoo.evaluation.predictions import Predictions
from evenfield.model_zoo.evaluation.summary import ErrorSummary, summarise


NUM_ELEMENTS = 18
STRUCTURES = 12  # for each element
ATOMS = 10  # of each structure
SYMBOLS = [
    "H",
    "He",
    "Li",
    "Be",
    "B",
    "C",
    "N",
    "O",
    "F",
    "Ne",
    "Na",
    "Mg",
    "Al",
    "Si",
    "P",
    "S",
    "Cl",
    "Ar",
]
# another order than that of the periodic table
TRAIN_COUNTS = {symbol: 7 * (11 * place % 18) for place, symbol in enumerate(SYMBOLS)}


def summary_with(relative_error: dict[str, float], seed: int = 0) -> ErrorSummary:
    """Elements with forces of very different size, and errors that are a share of them."""
    generator = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(1, NUM_ELEMENTS + 1), STRUCTURES * ATOMS)
    sizes = np.geomspace(0.1, 20, NUM_ELEMENTS)[numbers - 1, None]
    share = np.array([relative_error[SYMBOLS[z - 1]] for z in numbers])[:, None]
    reference = sizes * generator.normal(size=(len(numbers), 3))
    predicted = reference + share * sizes * generator.normal(size=reference.shape)

    num_structures = NUM_ELEMENTS * STRUCTURES
    energy = np.zeros((num_structures, 2))
    energy[:, 1] = 0.5 * ATOMS
    predictions = Predictions(
        atomic_numbers=numbers,
        structure_index=np.repeat(np.arange(num_structures), ATOMS),
        level_index=np.zeros(num_structures, dtype=int),
        level_names=["PBE"],
        num_atoms=np.full(num_structures, ATOMS),
        pairs={"energy": energy, "forces": np.stack([reference, predicted], axis=-1)},
    )
    return summarise(predictions, "test", TRAIN_COUNTS)


def by_rarity() -> list[str]:
    return sorted(SYMBOLS, key=lambda symbol: TRAIN_COUNTS[symbol])


@pytest.fixture(scope="module")
def even() -> ErrorSummary:
    """The same relative error for all elements."""
    return summary_with(dict.fromkeys(SYMBOLS, 0.2))


@pytest.fixture(scope="module")
def uneven() -> ErrorSummary:
    """Twice the error for the rarest third."""
    rare = by_rarity()[:6]
    return summary_with({symbol: 0.4 if symbol in rare else 0.2 for symbol in SYMBOLS})


def test_thirds_are_those_of_the_training_counts(even):
    groups = evenness(even).groups
    assert tuple(groups) == GROUPS
    assert [symbol for group in groups.values() for symbol in group.symbols] == by_rarity()
    assert groups["rare"].num_train_structures == (0, 35)
    assert groups["common"].num_atoms == 6 * STRUCTURES * ATOMS
    assert groups["rare"].energy_mae_per_atom == pytest.approx(0.5)


def test_size_of_forces_does_not_matter(even):
    # the MAE of a normal error is sqrt(2 / pi) of its width
    expected = 0.2 * np.sqrt(2 / np.pi)
    found = evenness(even)
    for group in found.groups.values():
        assert group.relative_force_mae.value == pytest.approx(expected, rel=0.05)


def test_even_models_are_rarely_called_uneven():
    called_uneven = 0
    for seed in range(10):
        found = evenness(summary_with(dict.fromkeys(SYMBOLS, 0.2), seed))
        assert found.gap.value == pytest.approx(1, abs=0.08)
        called_uneven += found.gap.excludes_one
    # one in ten is meant; a bootstrap over six elements is somewhat too narrow
    assert called_uneven <= 4


def test_a_gap_is_found_with_its_interval(uneven):
    gap = evenness(uneven).gap
    assert gap.value == pytest.approx(2, rel=0.08)
    low, high = gap.interval
    assert 1.8 < low < gap.value < high < 2.2


def test_figure_of_a_group_is_the_geometric_mean(uneven):
    group = evenness(uneven).groups["middle"]
    errors = [uneven.per_element[symbol].relative_force_mae for symbol in group.symbols]
    assert group.relative_force_mae.value == pytest.approx(np.prod(errors) ** (1 / 6))
    # the learning curves take it without an interval
    assert error_of_third(uneven, "middle") == group.relative_force_mae.value


def test_change_compares_each_element_with_itself(even, uneven):
    changes = evenness_change(uneven, even).groups
    assert changes["rare"].value == pytest.approx(0.5, rel=0.08)
    assert changes["rare"].excludes_one
    assert changes["common"].value == pytest.approx(1.0, abs=0.02)
    same = evenness_change(even, even).groups
    assert [(change.value, change.interval) for change in same.values()] == [(1.0, (1.0, 1.0))] * 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_atoms": FEWEST_ATOMS - 1}, "29 test atoms"),
        ({"rms": {"forces": 1e-4}}, "force RMS 0.0001"),
        ({"mae": {"energy": 0.1}, "rms": {}}, "no reference forces"),
        ({"mae": {"energy": 0.1, "forces": np.nan}}, "no finite error"),
    ],
)
def test_elements_that_cannot_be_judged_are_named_apart(even, change, reason):
    worse = dict(even.per_element)
    worse["Ne"] = replace(worse["Ne"], **change)
    found = evenness(replace(even, per_element=worse))
    assert list(found.apart) == ["Ne"]
    assert found.apart["Ne"].startswith(reason)
    assert all("Ne" not in group.symbols for group in found.groups.values())


def test_few_elements_have_no_thirds(even):
    few = {symbol: even.per_element[symbol] for symbol in SYMBOLS[:8]}
    found = evenness(replace(even, per_element=few))
    assert (found.groups, found.gap, found.apart) == ({}, None, {})
    assert error_of_third(replace(even, per_element=few), "rare") is None


def test_interval_of_an_element_covers_its_error_and_is_stored(even):
    for errors in even.per_element.values():
        low, high = errors.relative_force_interval
        assert low < errors.relative_force_mae < high < 1.5 * low
    assert ErrorSummary.from_dict(even.to_dict()) == even


def test_intervals_cover_the_truth_as_often_as_they_say():
    truth = 0.2 * np.sqrt(2 / np.pi)
    covered = 0
    for seed in range(10):
        summary = summary_with(dict.fromkeys(SYMBOLS, 0.2), seed)
        for errors in summary.per_element.values():
            low, high = errors.relative_force_interval
            covered += low < truth < high
    # 180 intervals of 90 %, a little too narrow with twelve structures each
    assert 0.78 < covered / 180 < 0.97
