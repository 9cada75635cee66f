"""How far the features of an atom are from those of the training atoms of its element.

The squared Mahalanobis distance of phi (d,) from a Gaussian of the element z:

    D^2 = (phi - m_z)^T S_z^-1 (phi - m_z) / d

so that a typical training atom has a distance near 1. S_z is the covariance of the element shrunk
towards that of all elements, each around its own mean, since many elements have fewer atoms than
features. It is stored in a bounded rank: with y = W (phi - m_z), where W whitens the common
covariance, the r directions in which S_z differs most from it are kept, and one variance for all
others.

A threshold by chi-square would be wrong: features are far from Gaussian. Thresholds are those of
validation atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor


# r, directions in which an element has a covariance of its own
RANK = 8
# Atoms that the common covariance counts like, in the mean of both.
SHRINKAGE = 64
# Added to the variances of the common covariance, relative to their mean: features that hardly
# vary in training would make every other atom infinitely far.
RIDGE = 1e-4
# Elements with fewer training atoms are flagged.
FEW_ATOMS = 50


@dataclass(frozen=True)
class ElementGaussians:
    """A Gaussian of the features (d,) for each of Z elements, and thresholds of the distance."""

    elements: np.ndarray
    """(Z,) atomic numbers, ascending."""
    counts: np.ndarray
    """(Z,) training atoms."""
    means: np.ndarray
    """(Z, d)"""
    whitening: np.ndarray
    """(d, d) W."""
    axes: np.ndarray
    """(Z, r, d) orthonormal directions in whitened space."""
    variances: np.ndarray
    """(Z, r) of the element along them."""
    remainder: np.ndarray
    """(Z,) variance of the element along all others."""
    thresholds: np.ndarray
    """(Z,) distances that 1 % of held-out atoms of known chemistry exceed."""

    @classmethod
    def of(cls, features: np.ndarray, numbers: np.ndarray) -> Self:
        """Gaussians of training atoms: features (N, d), atomic numbers (N,). No thresholds yet."""
        elements, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        size = features.shape[1]
        means = np.zeros((len(elements), size))
        np.add.at(means, place, features)
        means /= counts[:, None]

        centred = features - means[place]
        common = centred.T @ centred / max(len(features) - len(elements), 1)
        common += RIDGE * np.trace(common) / size * np.eye(size) + np.finfo(float).tiny * np.eye(
            size
        )
        whitening = np.linalg.inv(np.linalg.cholesky(common))
        whitened = centred @ whitening.T

        rank = min(RANK, size)
        axes = np.zeros((len(elements), rank, size))
        variances = np.ones((len(elements), rank))
        remainder = np.ones(len(elements))
        for index, count in enumerate(counts):
            own = whitened[place == index]
            covariance = (own.T @ own + SHRINKAGE * np.eye(size)) / (count + SHRINKAGE)
            eigenvalues, vectors = np.linalg.eigh(covariance)
            # those furthest from 1, by how much they change the distance
            chosen = np.argsort(-np.abs(np.log(eigenvalues)))[:rank]
            others = np.setdiff1d(np.arange(size), chosen)
            axes[index] = vectors[:, chosen].T
            variances[index] = eigenvalues[chosen]
            if len(others):
                remainder[index] = eigenvalues[others].mean()
        return cls(
            elements=elements,
            counts=counts,
            means=means,
            whitening=whitening,
            axes=axes,
            variances=variances,
            remainder=remainder,
            thresholds=np.full(len(elements), np.inf),
        )

    @property
    def few(self) -> np.ndarray:
        """Atomic numbers whose Gaussian rests on few atoms."""
        return self.elements[self.counts < FEW_ATOMS]

    def on(self, device: torch.device, dtype: torch.dtype) -> DistanceFunction:
        """The function that gives distances, on a device."""
        return DistanceFunction(self, device, dtype)


class DistanceFunction:
    """Distances of atoms, on the device of the features."""

    def __init__(
        self, gaussians: ElementGaussians, device: torch.device, dtype: torch.dtype
    ) -> None:
        def tensor(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array, dtype=dtype, device=device)

        size = gaussians.means.shape[1]
        # one row for each atomic number; zero stands for elements without a Gaussian
        row = np.zeros(119, dtype=int)
        row[gaussians.elements] = np.arange(1, len(gaussians.elements) + 1)
        self._row = torch.as_tensor(row, device=device)
        first = np.zeros((1, size))
        self._means = tensor(np.vstack([first, gaussians.means]))
        self._axes = tensor(
            np.concatenate([np.zeros((1, *gaussians.axes.shape[1:])), gaussians.axes])
        )
        weights = 1 / gaussians.variances - 1 / gaussians.remainder[:, None]
        self._weights = tensor(np.vstack([np.zeros((1, weights.shape[1])), weights]))
        self._inverse = tensor(np.concatenate([[np.inf], 1 / gaussians.remainder]))
        self._thresholds = tensor(np.concatenate([[-np.inf], gaussians.thresholds]))
        self._whitening = tensor(gaussians.whitening)

    def __call__(self, phi: Tensor, atomic_numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, d), atomic numbers (N,) -> distances (N,), and whether each is inside (N,).

        The distance of an element without training atoms is infinite.
        """
        row = self._row[atomic_numbers]
        whitened = (phi - self._means[row]) @ self._whitening.T  # (N, d)
        along = torch.einsum("nrd,nd->nr", self._axes[row], whitened)
        squared = whitened.square().sum(1) * self._inverse[row]
        squared = squared + (along.square() * self._weights[row]).sum(1)
        distance = (squared / phi.shape[1]).clamp(min=0).sqrt()
        return distance, distance <= self._thresholds[row]
