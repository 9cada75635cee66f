"""Radial part of an edge: Bessel basis, smooth envelope, and the element-conditioned radial network.

Shapes: E edge slots, B basis functions, H hidden width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .exact_buffers import ExactBuffers


def polynomial_envelope(x: Tensor, p: int = 6) -> Tensor:
    """Envelope of x = r / cutoff: 1 at 0, and 0 from 1 on with two continuous derivatives.

    Gasteiger et al., ICLR 2020 (DimeNet), eq. 8, in the factored form (1 - x)^3 sum_k<p (k+1)(k+2)/2 x^k: the
    expanded one loses three digits of the derivative to cancellation near the cutoff, where most edges are.
    """
    value = torch.full_like(x, p * (p + 1) / 2)
    for k in range(p - 2, -1, -1):
        value = value * x + (k + 1) * (k + 2) / 2
    return (1.0 - x).clamp(min=0.0) ** 3 * value


def polynomial_envelope_slope(x: Tensor, p: int = 6) -> Tensor:
    """Derivative of `polynomial_envelope` by x."""
    return -0.5 * p * (p + 1) * (p + 2) * x ** (p - 1) * (1.0 - x).clamp(min=0.0) ** 2


class BesselBasis(ExactBuffers):
    """sqrt(2 / cutoff) sin(n pi r / cutoff) / r for n = 1..B; DimeNet eq. 7, without its envelope."""

    wave_numbers: Tensor

    def __init__(self, num_basis: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.register_buffer(
            "wave_numbers",
            math.pi / cutoff * torch.arange(1.0, num_basis + 1, dtype=torch.float64),
            persistent=False,
        )

    def forward(self, distance: Tensor) -> Tensor:
        """Distances (E, 1) in A -> (E, B)."""
        return (
            math.sqrt(2.0 / self.cutoff)
            * torch.sin(self.wave_numbers.to(distance.dtype) * distance)
            / distance
        )


class RadialNetwork(nn.Module):
    """Radial weights R[l, c](r; z_i, z_j) and, if asked for, angular factors f[l2](r; z_i, z_j) of an edge.

    One hidden layer sees the basis and both elements; R carries the envelope, so that every message and its
    first two derivatives vanish at the cutoff.
    """

    def __init__(
        self, num_basis: int, hidden: int, embedding_size: int, num_outputs: int, num_angular: int
    ) -> None:
        super().__init__()
        self.basis = nn.Linear(num_basis, hidden, bias=False)
        self.sender = nn.Linear(embedding_size, hidden, bias=False)
        self.receiver = nn.Linear(embedding_size, hidden)
        self.outputs = nn.Linear(hidden, num_outputs, bias=False)
        self.angular = nn.Linear(hidden, num_angular) if num_angular else None
        if self.angular:
            nn.init.ones_(self.angular.bias)
        nn.init.normal_(self.outputs.weight, std=math.sqrt(2.0 / hidden))

    def forward(
        self,
        basis: Tensor,
        envelope: Tensor,
        elements: Tensor,
        sender: Tensor,
        tile_receiver: Tensor,
        tile: int,
    ) -> tuple[Tensor, Tensor | None]:
        """basis (E, B), envelope (E, 1), elements (N, D) -> R (E, num_outputs), f (E, num_angular) or none."""
        from_sender = self.sender(elements).index_select(0, sender)  # (E, H)
        from_receiver = self.receiver(elements).index_select(
            0, tile_receiver
        )  # (tiles, H): one receiver a tile
        hidden = self.basis(basis) + from_sender
        hidden = hidden.unflatten(0, (-1, tile)) + from_receiver.unsqueeze(1)
        hidden = nn.functional.silu(hidden.flatten(0, 1))
        return self.outputs(hidden * envelope), self.angular(hidden) if self.angular else None
