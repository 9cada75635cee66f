"""Radial parts that networks share: switches at both ends of an edge and the Bessel basis."""

from __future__ import annotations

import math

import torch
from ase.data import covalent_radii
from torch import Tensor

from .exact_buffers import ExactBuffers
from .interface import MAX_ATOMIC_NUMBER


# Distances relative to the sum of both covalent radii. Data hardly reach below the end of the
# switch (docs/decisions/0024).
SILENT_BELOW = 0.3
WHOLE_FROM = 0.5


def polynomial_envelope(x: Tensor, p: int = 6) -> Tensor:
    """Envelope of x = r / cutoff: 1 at 0, and 0 from 1 on with two continuous derivatives.

    Gasteiger et al., ICLR 2020 (DimeNet), eq. 8, in the factored form

        (1 - x)^3 sum_{k < p} (k + 1) (k + 2) / 2 x^k

    The expanded form loses three digits of the derivative to cancellation near the cutoff, where
    most edges are.
    """
    # Horner's rule, from the highest power down
    value = torch.full_like(x, p * (p + 1) / 2)
    for k in range(p - 2, -1, -1):
        coefficient = (k + 1) * (k + 2) / 2
        value = value * x + coefficient

    # exactly zero beyond the cutoff, where the polynomial itself grows
    inside = (1.0 - x).clamp(min=0.0)
    return inside**3 * value


def polynomial_envelope_slope(x: Tensor, p: int = 6) -> Tensor:
    """Derivative of `polynomial_envelope` by x."""
    factor = -0.5 * p * (p + 1) * (p + 2)
    inside = (1.0 - x).clamp(min=0.0)
    return factor * x ** (p - 1) * inside**2


def table_of_radii() -> Tensor:
    """Covalent radii (119,) in A by atomic number (Cordero et al. 2008), from ASE."""
    return torch.from_numpy(covalent_radii[: MAX_ATOMIC_NUMBER + 1]).double()


class CoreSwitch(ExactBuffers):
    """Switches an edge off where two cores overlap, 0 below and 1 above a short interval:

        10 t^3 - 15 t^4 + 6 t^5,    t = (x - SILENT_BELOW) / (WHOLE_FROM - SILENT_BELOW) in [0, 1]

    x is the distance over the sum of the covalent radii. The first two derivatives are continuous.

    No data have such distances, so a network can only extrapolate there: by hundreds of eV, and
    into holes that dynamics fall into. The core repulsion is known there, and is left alone.
    """

    covalent_radii: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("covalent_radii", table_of_radii(), persistent=False)  # (119,) A

    def forward(
        self, distance: Tensor, atomic_numbers: Tensor, sender: Tensor, receiver: Tensor
    ) -> Tensor:
        """Distances (E, 1) in A -> (E, 1); atomic_numbers (N,), sender and receiver (E,)."""
        radii = self.covalent_radii.to(distance.dtype).index_select(0, atomic_numbers)  # (N,)
        touching = radii.index_select(0, sender) + radii.index_select(0, receiver)
        x = distance / touching.unsqueeze(1)
        t = ((x - SILENT_BELOW) / (WHOLE_FROM - SILENT_BELOW)).clamp(0.0, 1.0)
        return t**3 * (10.0 - 15.0 * t + 6.0 * t**2)


class BesselBasis(ExactBuffers):
    """sqrt(2 / cutoff) sin(n pi r / cutoff) / r for n = 1..B; DimeNet, eq. 7, without envelope."""

    wave_numbers: Tensor

    def __init__(self, num_basis: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        orders = torch.arange(1.0, num_basis + 1, dtype=torch.float64)
        wave_numbers = math.pi / cutoff * orders  # n pi / cutoff in 1/A
        self.register_buffer("wave_numbers", wave_numbers, persistent=False)

    def forward(self, distance: Tensor) -> Tensor:
        """Distances (E, 1) in A -> (E, B)."""
        wave_numbers = self.wave_numbers.to(distance.dtype)
        waves = torch.sin(wave_numbers * distance)
        norm = math.sqrt(2.0 / self.cutoff)
        return norm * waves / distance
