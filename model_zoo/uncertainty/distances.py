"""How far the features of an atom are from those of the training atoms of its element.

The distance D is the Mahalanobis distance of phi (d,) from a Gaussian for the element z, scaled so
that a typical training atom has a distance near 1:

    D^2 = (phi - m_z)^T S_z^-1 (phi - m_z) / d

Many elements have fewer atoms than features. The covariance S_z of an element is therefore shrunk
towards a common covariance, that of all atoms around the means of their elements. S_z is stored
with low rank: with y = W (phi - m_z), where W whitens the common covariance, the r directions in
which S_z differs most from the common covariance are kept, and a single variance for all others.

Features are far from Gaussian, so chi-square thresholds would be wrong. Thresholds are quantiles of
the distances of validation atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor


# r, the number of directions in which an element has its own variance
RANK = 8
# The weight of the common covariance in the average of both, as a number of atoms.
SHRINKAGE = 64
# Added to the variances of the common covariance, relative to their mean. Without it, a feature
# that hardly varies in training would put every other atom infinitely far away.
RIDGE = 1e-4
# Elements with fewer training atoms than this are flagged.
FEW_ATOMS = 50


@dataclass(frozen=True)
class ElementGaussians:
    """A Gaussian of the features (d,) for each of Z elements, and distance thresholds."""

    elements: np.ndarray
    """(Z,) atomic numbers, ascending."""
    counts: np.ndarray
    """(Z,) numbers of training atoms."""
    means: np.ndarray
    """(Z, d)"""
    whitening: np.ndarray
    """(d, d) W."""
    axes: np.ndarray
    """(Z, r, d) orthonormal directions in whitened space."""
    variances: np.ndarray
    """(Z, r) variances of the element along `axes`."""
    remainder: np.ndarray
    """(Z,) variance of the element along all other directions."""
    thresholds: np.ndarray
    """(Z,) distances that 1 % of held-out atoms of known chemistry exceed."""

    @classmethod
    def of(cls, features: np.ndarray, numbers: np.ndarray) -> Self:
        """Fit Gaussians to training atoms, given features (N, d) and atomic numbers (N,).

        The thresholds are infinite until they are calibrated.
        """
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
            # the directions whose variance differs most from 1, and so changes the distance most
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
        """Atomic numbers with fewer than FEW_ATOMS training atoms."""
        return self.elements[self.counts < FEW_ATOMS]

    def on(self, device: torch.device, dtype: torch.dtype) -> DistanceFunction:
        """The distance function on a device, in a dtype."""
        return DistanceFunction(self, device, dtype)


class DistanceFunction:
    """Computes the distances of atoms on the device of their features."""

    def __init__(
        self, gaussians: ElementGaussians, device: torch.device, dtype: torch.dtype
    ) -> None:
        def tensor(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array, dtype=dtype, device=device)

        size = gaussians.means.shape[1]
        # maps atomic numbers to rows; row 0 stands for elements without a Gaussian
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
        """Map features (N, d) and atomic numbers (N,) to distances (N,) and booleans (N,).

        The booleans say whether each distance is within the threshold of the element. The distance
        of an element without training atoms is infinite.
        """
        row = self._row[atomic_numbers]
        whitened = (phi - self._means[row]) @ self._whitening.T  # (N, d)
        along = torch.einsum("nrd,nd->nr", self._axes[row], whitened)
        squared = whitened.square().sum(1) * self._inverse[row]
        squared = squared + (along.square() * self._weights[row]).sum(1)
        distance = (squared / phi.shape[1]).clamp(min=0).sqrt()
        return distance, distance <= self._thresholds[row]
