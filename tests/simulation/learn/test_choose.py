"""Which structures are chosen, compared with determinants that are computed from scratch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from evenfield.simulation.learn.choose import RIDGE, Information, by_determinant, by_distance


@pytest.fixture
def features() -> list[np.ndarray]:
    """Ten structures of 3 atoms with 5 features each; two of them are the same."""
    rng = np.random.default_rng(0)
    made = [rng.normal(0, rng.uniform(0.1, 2.0), (3, 5)) for _ in range(9)]
    return [*made, made[4].copy()]


def matrix_of(labelled: np.ndarray) -> np.ndarray:
    ridge = RIDGE * np.square(labelled).mean() * len(labelled)
    return labelled.T @ labelled + ridge * np.eye(labelled.shape[1])


def log_determinant(matrix: np.ndarray) -> float:
    return float(np.linalg.slogdet(matrix)[1])


def test_gains_are_those_of_determinants(features: list[np.ndarray]) -> None:
    labelled = np.concatenate(features[:3])
    information = Information(labelled)
    matrix = matrix_of(labelled)
    assert np.allclose(information.inverse, np.linalg.inv(matrix))
    for structure in features[3:]:
        more = matrix + structure.T @ structure
        expected = log_determinant(more) - log_determinant(matrix)
        assert information.gain(structure) == pytest.approx(expected, rel=1e-9)
        # rank by rank, the inverse stays that of the sum
        information.add(structure)
        matrix = more
        assert np.allclose(information.inverse, np.linalg.inv(matrix), rtol=1e-7)


def test_each_choice_is_the_best_of_all_that_are_left(features: list[np.ndarray]) -> None:
    labelled = np.concatenate(features[:2])
    candidates = features[2:]
    chosen, gains = by_determinant(labelled, candidates, 4)
    products = [one.T @ one for one in candidates]

    matrix = matrix_of(labelled)
    left = set(range(len(candidates)))
    for place, gain in zip(chosen, gains, strict=True):
        before = log_determinant(matrix)
        of_left = {index: log_determinant(matrix + products[index]) for index in left}
        assert of_left[place] == pytest.approx(max(of_left.values()), abs=1e-9)
        assert gain == pytest.approx(of_left[place] - before, rel=1e-9)
        matrix = matrix + products[place]
        left.remove(place)

    # greedy is at least 1 - 1/e of the best set (the gain is submodular and grows)
    start = matrix_of(labelled)
    best = -np.inf
    for several in itertools.combinations(products, 4):
        best = max(best, log_determinant(start + sum(several)))
    assert sum(gains) >= (1 - 1 / np.e) * (best - log_determinant(start))


def test_a_copy_is_worth_less_than_the_first_one(features: list[np.ndarray]) -> None:
    labelled = np.concatenate(features[:2])
    chosen, gains = by_determinant(labelled, features, len(features))
    assert sorted(chosen) == list(range(len(features)))
    gain_of_first = gains[chosen.index(4)]
    gain_of_copy = gains[chosen.index(9)]
    assert gain_of_copy < 0.9 * gain_of_first
    # without any label, the widest is first
    first, _ = by_determinant(np.empty((0, 5)), features, 1)
    sizes = [log_determinant(np.eye(3) + 1e6 * one @ one.T) for one in features]
    assert first[0] in np.argsort(sizes)[-3:]


def test_the_farthest_is_far_from_labels_and_from_choices() -> None:
    """On a line: first the end that is farther from the label, then the other, then the middle."""

    def at(place: float) -> np.ndarray:
        return np.array([[place, 0.0], [place, 0.0]])

    candidates = [at(place) for place in (0.0, 1.0, 4.0, 9.0, 10.0, -7.0)]
    chosen, distances = by_distance([at(0.0)], candidates, 4)
    assert [candidates[place][0, 0] for place in chosen] == [10.0, -7.0, 4.0, 1.0]
    assert distances == sorted(distances, reverse=True)
    assert len(by_distance([], candidates, 99)[0]) == len(candidates)
