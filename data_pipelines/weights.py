"""Importance weights: rare elements count more, within a stated loss of effective sample size."""

from __future__ import annotations

import hashlib

import numpy as np
from pydantic import Field

from .census import NUM_ELEMENTS
from .schema import Structure
from .settings import Settings


class WeightConfig(Settings):
    """How strongly rare elements are favoured, and where the weights act."""

    beta: float = Field(default=0.0, ge=0, le=1, description="a_z ~ n_z^-beta; 0 weights all structures alike")
    min_effective_share: float = Field(default=0.4, gt=0, le=1, description="floor of (sum w)^2 / (n sum w^2)")
    sampling: bool = Field(default=True, description="a structure of weight w is seen w times an epoch")
    loss: bool = Field(default=False, description="per-atom force errors are weighted by element")


class ElementWeights:
    """Weight of a structure = the largest weight of its elements, clipped and scaled to mean 1.

    The largest, not the mean, because a rare element in a large cell of common ones would else stay unseen.
    """

    def __init__(self, element_weight: np.ndarray, cap: float, scale: float) -> None:
        self.element_weight, self.cap, self.scale = element_weight, cap, scale

    @classmethod
    def fit(cls, element_sets: list[np.ndarray], config: WeightConfig) -> ElementWeights:
        """Weights for a data set given the distinct elements of each of its structures.

        The cap is the largest for which the effective sample size stays above `min_effective_share`.
        """
        counts = np.zeros(NUM_ELEMENTS)
        for elements in element_sets:
            counts[elements] += 1
        element_weight = np.where(counts > 0, np.maximum(counts, 1.0) ** -config.beta, 0.0)
        raw = np.array([element_weight[elements].max() for elements in element_sets])
        cap = _largest_cap(raw, config.min_effective_share)
        return cls(element_weight, cap, 1.0 / np.minimum(raw, cap).mean())

    def __call__(self, structure: Structure) -> float:
        """Weight of one structure; 1 on average over the data set that was fitted."""
        return float(min(self.element_weight[structure.elements].max(), self.cap) * self.scale)

    def per_element(self) -> np.ndarray:
        """Weight of every element, (119,), on the scale of the structures' weights."""
        return np.minimum(self.element_weight, self.cap) * self.scale


def effective_share(weights: np.ndarray) -> float:
    """(sum w)^2 / (n sum w^2): the share of the data that the weighted sample is worth (Kish 1965)."""
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


def _largest_cap(raw: np.ndarray, floor: float) -> float:
    if effective_share(raw) >= floor:
        return float(raw.max())
    low, high = float(raw.min()), float(raw.max())  # at the lowest cap all weights are equal: share 1
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective_share(np.minimum(raw, middle)) >= floor else (low, middle)
    return low


def num_copies(weight: float, structure_id: str, seed: int, epoch: int) -> int:
    """How often a structure appears in an epoch: floor(w + u), u a hash of (id, seed, epoch).

    Unbiased (the mean over u is w), stateless, and the same on every rank and after every resume.
    """
    digest = hashlib.blake2b(f"{structure_id}|{seed}|{epoch}".encode(), digest_size=8).digest()
    return int(np.floor(weight + int.from_bytes(digest, "big") / 2**64))
