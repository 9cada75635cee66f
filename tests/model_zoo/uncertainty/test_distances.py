"""Distances of features, against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from evenfield.model_zoo.uncertainty.distances import (
    FEW_ATOMS,
    RIDGE,
    SHRINKAGE,
    ElementGaussians,
)


CPU = torch.device("cpu")


def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of 400 atoms of one element and 30 of another."""
    rng = np.random.default_rng(0)
    numbers = np.array([29] * 400 + [79] * 30)
    features = rng.normal(size=(430, size)) @ rng.normal(size=(size, size))
    features[400:] = 0.5 * features[400:] + 3.0
    return features, numbers


def test_of_few_features_it_is_mahalanobis_distance_with_a_shrunk_covariance() -> None:
    size = 6
    features, numbers = draw(size)
    gaussians = ElementGaussians.of(features, numbers)
    found, _ = gaussians.on(CPU, torch.float64)(torch.tensor(features), torch.tensor(numbers))

    means = {z: features[numbers == z].mean(0) for z in (29, 79)}
    centred = features - np.array([means[z] for z in numbers])
    common = centred.T @ centred / (430 - 2)
    common += RIDGE * np.trace(common) / size * np.eye(size)

    for atom in (0, 17, 405, 429):
        z = numbers[atom]
        own = centred[numbers == z]
        shrunk = (own.T @ own + SHRINKAGE * common) / (len(own) + SHRINKAGE)
        distance = mahalanobis(features[atom], means[z], np.linalg.inv(shrunk))
        assert float(found[atom]) == pytest.approx(distance / size**0.5, rel=1e-9)


def test_of_many_features_a_bounded_rank_still_tells_far_from_near() -> None:
    features, numbers = draw(40)
    gaussians = ElementGaussians.of(features, numbers)
    assert gaussians.axes.shape == (2, 8, 40)
    distance = gaussians.on(CPU, torch.float64)
    near, _ = distance(torch.tensor(features), torch.tensor(numbers))
    # a typical training atom is near 1
    assert 0.7 < float(near[:400].mean()) < 1.3
    # three deviations of the common covariance along each of its axes
    away = np.linalg.solve(gaussians.whitening, 3 * np.ones(40))
    far, _ = distance(torch.tensor(features + away), torch.tensor(numbers))
    assert float(far.min()) > float(near[:400].max())


def test_an_element_without_atoms_is_infinitely_far_and_one_with_few_is_flagged() -> None:
    features, numbers = draw(6)
    gaussians = ElementGaussians.of(features, numbers)
    assert 30 < FEW_ATOMS < 400
    assert gaussians.few.tolist() == [79]

    # copper, and oxygen, of which there was no atom
    distances_of = gaussians.on(CPU, torch.float64)
    distance, inside = distances_of(torch.tensor(features[:2]), torch.tensor([29, 8]))
    assert np.isfinite(float(distance[0]))
    assert np.isinf(float(distance[1]))
    # no threshold yet: everything that has a distance is inside
    assert inside.tolist() == [True, False]
