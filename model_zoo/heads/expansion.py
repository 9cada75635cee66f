"""Random functions of a network's features, which a head can be linear in.

    g_i = silu(A s_i + a[z_i])                                 one gate for each of R functions
    u_i = B_1 v_i, u'_i = B_2 v_i, u''_i = B_3 v_i             mixtures of the vectors of an atom,
                                                               of a length below 1

    vectors         g_i u_i
    tensors         g_i (u_i u'_i + u'_i u_i - 2/3 (u_i . u'_i) 1) / 2
    pseudoscalars   g_i u_i . (u'_i x u''_i)                   change sign under inversion

The lengths d of mixtures are bounded, d -> d / sqrt(1 + d^2), because products of three vectors
have long tails that the atoms of a fit do not sample. The matrices are drawn once, from a seed and
the spread of the features over the atoms of the fit, and are stored with the head. Random features
with linear weights approximate a kernel (Rahimi and Recht, NIPS 2007).

Shapes: N atoms, F invariants, V vectors, R random functions, Z elements of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..network.interface import CarriedFeatures


# standard deviations of the gate biases: the part that depends on the element, and the shared part
OF_ELEMENT = 0.7
OF_NOTHING = 0.5
# relative to the largest spread; a feature that varies less counts as constant
NO_SPREAD = 1e-6


@dataclass(frozen=True)
class Expansion:
    """The matrices of the random functions, in float64."""

    gates: np.ndarray
    """A, (R, F)."""
    gate_biases: np.ndarray
    """a, (R, Z)."""
    mixtures: np.ndarray
    """B, (J, R, V), with J = 1 for vectors, 2 for tensors and 3 for pseudoscalars."""

    def gate(self, invariants: Tensor, places: Tensor) -> Tensor:
        """Map invariants (N, F) to gates g (N, R).

        `places` (N,) are positions in the list of elements of the fit.
        """
        biases = invariants.new_tensor(self.gate_biases).T[places]
        weights = invariants.new_tensor(self.gates)
        return torch.nn.functional.silu(invariants @ weights.T + biases)

    def mixed(self, vectors: Tensor) -> list[Tensor]:
        """Map vectors (N, 3, V) to the J mixtures u, u' and u'', each (N, 3, R)."""
        return [_bounded(vectors @ vectors.new_tensor(mixture).T) for mixture in self.mixtures]


def _bounded(mixed: Tensor) -> Tensor:
    """Vectors (N, 3, R) with their lengths d mapped to d / sqrt(1 + d^2)."""
    return mixed * torch.rsqrt(1.0 + (mixed * mixed).sum(1, keepdim=True))


def drawn_expansion(
    carried: list[CarriedFeatures],
    *,
    num_elements: int,
    num_functions: int,
    num_mixtures: int,
    seed: int,
) -> Expansion:
    """Draw random functions for the features of the structures of a fit.

    `num_mixtures` is J. The arguments of the gates, and the mixtures before they are bounded, have
    about unit variance over the atoms.
    """
    invariants = torch.cat([own.invariants for own in carried]).double().numpy()
    vectors = torch.cat([own.vectors for own in carried]).double().numpy()
    centre = invariants.mean(axis=0)
    spread = _without_zeros(invariants.std(axis=0))
    length = _without_zeros(np.sqrt((vectors**2).mean(axis=(0, 1))))

    rng = np.random.default_rng(seed)
    num_invariants = len(spread)
    num_vectors = len(length)
    gates = rng.normal(size=(num_functions, num_invariants)) / spread / num_invariants**0.5
    biases = rng.normal(size=(num_functions, num_elements)) * OF_ELEMENT
    biases = biases + rng.normal(size=(num_functions, 1)) * OF_NOTHING
    mixtures = rng.normal(size=(num_mixtures, num_functions, num_vectors)) / length
    return Expansion(
        gates=gates,
        gate_biases=biases - (gates @ centre)[:, None],
        mixtures=mixtures / max(num_vectors, 1) ** 0.5,
    )


def _without_zeros(spread: np.ndarray) -> np.ndarray:
    """The spreads, with infinity for constant features, which then drop out."""
    largest = spread.max(initial=0.0)
    return np.where(spread > NO_SPREAD * largest, spread, np.inf)
