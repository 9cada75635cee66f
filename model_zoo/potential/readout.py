"""The readout: from the features of an atom to its energy in a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..network.interface import MAX_ATOMIC_NUMBER


class Readout(nn.Module):
    """One hidden layer, then a linear layer for each head.

        phi_i = silu(W s_i + b)             E_i = phi_i . (weight[head] + element_weight[head, z_i])

    The energy is linear in both weights; the closed-form refit relies on this. `element_weight`
    starts at zero, so an element that is missing from the training data uses the shared weights.

    Shapes: N atoms, F features of the network, d features of the readout.
    """

    def __init__(self, num_features: int, size: int, num_heads: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, size, dtype=torch.float32)
        weight = torch.randn(num_heads, size, dtype=torch.float32)
        self.weight = nn.Parameter(weight / size**0.5)
        own = torch.zeros(num_heads, MAX_ATOMIC_NUMBER + 1, size, dtype=torch.float32)
        self.element_weight = nn.Parameter(own)

    def forward(self, phi: Tensor, head: Tensor, atomic_numbers: Tensor) -> Tensor:
        """phi (N, d), head (N,), atomic numbers (N,) -> energies (N,) in units of the scale.

        One tensor holds the weights of all heads, so every head takes part in every training step.
        """
        row = head * (MAX_ATOMIC_NUMBER + 1) + atomic_numbers
        # one row for each pair of head and element
        element_rows = self.element_weight.flatten(0, 1)
        own = element_rows.index_select(0, row)
        shared = self.weight.index_select(0, head)
        return (phi * (shared + own)).sum(1)

    @staticmethod
    def activation(hidden: Tensor) -> Tensor:
        """Outputs of the hidden layer (N, d) -> phi (N, d)."""
        return nn.functional.silu(hidden)
