"""Radial functions shared by networks: the envelope at the cutoff, the core switch, Bessel basis.

The core switch removes an edge at short distance, the envelope removes it at the cutoff.
"""

from __future__ import annotations

import math

import torch
from ase.data import covalent_radii
from torch import Tensor

from .exact_buffers import ExactBuffers
from .interface import MAX_ATOMIC_NUMBER


def polynomial_envelope(x: Tensor, p: int = 6) -> Tensor:
    """Envelope of x = r / cutoff: 1 at x = 0, and 0 for x >= 1.

    The first two derivatives are continuous. Source: Gasteiger et al., ICLR 2020 (DimeNet), eq. 8,
    in the factored form

        (1 - x)^3 sum_{k < p} (k + 1) (k + 2) / 2 x^k

    Near the cutoff, where most edges are, cancellation in the expanded form would cost three digits
    of the derivative.
    """
    # Horner's rule, from the highest power down
    value = torch.full_like(x, p * (p + 1) / 2)
    for k in range(p - 2, -1, -1):
        coefficient = (k + 1) * (k + 2) / 2
        value = value * x + coefficient

    # exactly zero beyond the cutoff, where the polynomial itself is not
    inside = (1.0 - x).clamp(min=0.0)
    return inside**3 * value


def polynomial_envelope_slope(x: Tensor, p: int = 6) -> Tensor:
    """Derivative of `polynomial_envelope` with respect to x."""
    factor = -0.5 * p * (p + 1) * (p + 2)
    inside = (1.0 - x).clamp(min=0.0)
    return factor * x ** (p - 1) * inside**2


def table_of_radii() -> Tensor:
    """Covalent radii (119,) in A from ASE (Cordero et al. 2008), indexed by atomic number."""
    return torch.from_numpy(covalent_radii[: MAX_ATOMIC_NUMBER + 1]).double()


class CoreSwitch(ExactBuffers):
    """Switches an edge off at short distances, at which the cores of two atoms overlap.

        10 t^3 - 15 t^4 + 6 t^5,    t = (x - silent_below) / (whole_from - silent_below) in [0, 1]

    x is the distance divided by the sum of the covalent radii. The first two derivatives are
    continuous.

    Training data contain hardly any distances below `whole_from`, so a network would extrapolate.
    Its errors would reach hundreds of eV and create holes in the potential energy surface that trap
    dynamics. The core repulsion is known at these distances, so it acts there alone
    (docs/decisions/0024).
    """

    covalent_radii: Tensor

    def __init__(self, silent_below: float, whole_from: float) -> None:
        super().__init__()
        self.silent_below = silent_below
        self.whole_from = whole_from
        self.register_buffer("covalent_radii", table_of_radii(), persistent=False)  # (119,) A

    def forward(
        self, distance: Tensor, atomic_numbers: Tensor, sender: Tensor, receiver: Tensor
    ) -> Tensor:
        """Distances (E, 1) in A -> (E, 1); atomic_numbers (N,), sender and receiver (E,)."""
        radii = self.covalent_radii.to(distance.dtype).index_select(0, atomic_numbers)  # (N,)
        touching = radii.index_select(0, sender) + radii.index_select(0, receiver)
        x = distance / touching.unsqueeze(1)
        t = ((x - self.silent_below) / (self.whole_from - self.silent_below)).clamp(0.0, 1.0)
        return t**3 * (10.0 - 15.0 * t + 6.0 * t**2)


class BesselBasis(ExactBuffers):
    """Bessel functions sqrt(2 / cutoff) sin(n pi r / cutoff) / r for n = 1..B.

    Source: DimeNet, eq. 7. The envelope is not included.
    """

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
