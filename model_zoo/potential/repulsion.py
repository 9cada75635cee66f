"""Core repulsion: the universal screened Coulomb potential of Ziegler, Biersack and Littmark, switched off smoothly.

    E_ij = k z_i z_j / r * phi(r / a) * u(r / (b_i + b_j)),   a = 0.46850 A / (z_i^0.23 + z_j^0.23)
    k = e^2 / (4 pi eps0),   phi(x) = sum_k c_k exp(-e_k x)

(Ziegler, Biersack and Littmark, The Stopping and Range of Ions in Solids, 1985)

u is the envelope of the radial basis. The radius b of an element is learned, one number a head, and starts at REACH
times its covalent radius, where it also stays for an element that no data speak of (docs/decisions/0007).
"""

from __future__ import annotations

import torch
from ase.data import covalent_radii
from ase.units import Bohr, Hartree
from torch import Tensor, nn

from ..network.embedding import MAX_ATOMIC_NUMBER
from ..network.exact_buffers import ExactBuffers
from ..network.radial import polynomial_envelope, polynomial_envelope_slope


REACH = 0.9  # of the covalent radius
COULOMB = Hartree * Bohr  # eV A
SCREENING = 0.46850  # A
COEFFICIENTS = (0.18175, 0.50986, 0.28022, 0.02817)
EXPONENTS = (3.19980, 0.94229, 0.40290, 0.20162)


class Repulsion(ExactBuffers):
    """Energy of every edge by its length; half of a pair's energy, since each pair has two edges."""

    covalent_radii: Tensor

    def __init__(self, cutoff: float, num_heads: int = 1) -> None:
        super().__init__()
        self.cutoff = cutoff
        radii = torch.from_numpy(covalent_radii[: MAX_ATOMIC_NUMBER + 1]).double()
        self.register_buffer("covalent_radii", radii, persistent=False)  # (119,) A
        self.log_factor = nn.Parameter(torch.zeros(num_heads, MAX_ATOMIC_NUMBER + 1))

    def radii(self) -> Tensor:
        """b of each element in each head, (heads, 119) in A."""
        return REACH * self.covalent_radii.to(self.log_factor) * self.log_factor.exp()

    def forward(
        self, vectors: Tensor, first: Tensor, second: Tensor, head: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Energies (E,) in eV and slopes dE/dv (E, 3) in eV/A of edge vectors v (E, 3); differentiable by the radii.

        `first` and `second` (E,) are the atomic numbers of the ends, `head` (E,) is that of the structure. The slope
        is written out, because the forces of a training step then need no second differentiation.
        """
        vectors = vectors.detach()
        distance = vectors.norm(dim=1)  # (E,)
        near = (
            (distance < self.reach(first, second, head)).nonzero().squeeze(1)
        )  # a tenth of all edges
        distance, first, second, head = distance[near], first[near], second[near], head[near]
        energy, slope = switched(
            distance, *bare_repulsion(distance, first, second), self.reach(first, second, head)
        )
        slope = (slope / distance).unsqueeze(1) * vectors[near]
        energies = vectors.new_zeros(len(vectors)).index_copy(0, near, energy)
        return energies, torch.zeros_like(vectors).index_copy(0, near, slope)

    def energies(self, vectors: Tensor, first: Tensor, second: Tensor, head: Tensor) -> Tensor:
        """The energies alone, differentiable by the vectors too: for engines that differentiate by themselves."""
        distance = vectors.norm(dim=1)
        return switched(
            distance, *bare_repulsion(distance, first, second), self.reach(first, second, head)
        )[0]

    def reach(self, first: Tensor, second: Tensor, head: Tensor | int) -> Tensor:
        """Distances (E,) in A where the repulsion ends."""
        radii = self.radii()
        return (radii[head, first] + radii[head, second]).clamp(max=self.cutoff)


def switched(
    distance: Tensor, bare: Tensor, bare_slope: Tensor, reach: Tensor
) -> tuple[Tensor, Tensor]:
    """Energies (E,) and slopes dE/dr (E,) of `bare_repulsion`, switched off at `reach` (E,) in A."""
    x = distance / reach.to(distance)
    switch, switch_slope = polynomial_envelope(x), polynomial_envelope_slope(x) / reach.to(distance)
    return bare * switch, bare_slope * switch + bare * switch_slope


def bare_repulsion(distance: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Half of a pair's screened Coulomb energy (E,) in eV at distances (E,) in A, and its slope (E,) in eV/A."""
    z_first, z_second = first.to(distance), second.to(distance)
    coulomb = 0.5 * COULOMB * z_first * z_second / distance
    screening = (z_first**0.23 + z_second**0.23) / SCREENING  # 1/A
    exponents = distance.new_tensor(EXPONENTS)
    terms = torch.exp(-(screening * distance).unsqueeze(1) * exponents) * distance.new_tensor(
        COEFFICIENTS
    )  # (E, 4)
    energy = coulomb * terms.sum(1)
    return energy, -energy / distance - coulomb * screening * (terms @ exponents)
