"""Core repulsion: the universal screened Coulomb potential, switched off smoothly.

    E_ij = k z_i z_j / r * phi(r / a) * u(r / (b_i + b_j)),   a = 0.46850 A / (z_i^0.23 + z_j^0.23)
    k = COULOMB = e^2 / (4 pi eps0),   phi(x) = sum_k c_k exp(-e_k x)

(Ziegler, Biersack and Littmark, The Stopping and Range of Ions in Solids, 1985)

u is the envelope of the radial basis. The radius b of an element is learned, one number per head.
It starts at REACH times the covalent radius and stays there for elements that the data do not
contain (docs/decisions/0007). It never shrinks below SMALLEST times its start, where the repulsion
still ends below bond lengths. Without this bound, training drove the radii of nickel and boron to
zero, and a zero radius never recovers, because no distance lies within it.

Shapes: E edges. `first` and `second` are the atomic numbers at the two ends of an edge.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.units import COULOMB
from ..network.exact_buffers import ExactBuffers
from ..network.interface import MAX_ATOMIC_NUMBER
from ..network.radial import polynomial_envelope, polynomial_envelope_slope, table_of_radii


REACH = 0.9  # initial b, in covalent radii
SMALLEST = 0.6  # lower bound of b in training and fits, relative to its start
# Upper bound of log(b / start). At this bound, b exceeds any cutoff, so larger values make no
# difference. Without a bound, one bad gradient step made radii infinite and all gradients NaN.
MOST_LOG_FACTOR = 10.0
SCREENING = 0.46850  # A
# c_k and e_k
COEFFICIENTS = (0.18175, 0.50986, 0.28022, 0.02817)
EXPONENTS = (3.19980, 0.94229, 0.40290, 0.20162)


class Repulsion(ExactBuffers):
    """Core repulsion of every edge: half of a pair's energy, since each pair has two edges."""

    covalent_radii: Tensor

    def __init__(self, cutoff: float, num_heads: int = 1) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.register_buffer("covalent_radii", table_of_radii(), persistent=False)  # (119,) A
        log_factor = torch.zeros(num_heads, MAX_ATOMIC_NUMBER + 1, dtype=torch.float32)
        self.log_factor = nn.Parameter(log_factor)

    def radii(self) -> Tensor:
        """The radius b of each element in each head, (heads, 119) in A."""
        start = REACH * self.covalent_radii.to(self.log_factor)
        # the exponential keeps a learned radius positive
        factor = self.log_factor.clamp(max=MOST_LOG_FACTOR).exp()
        return start * factor.clamp(min=SMALLEST)

    def forward(
        self, vectors: Tensor, first: Tensor, second: Tensor, head: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Energies (E,) in eV and slopes dE/dv (E, 3) in eV/A of the edge vectors v (E, 3) in A.

        Energies and slopes are differentiable with respect to the radii, but not to the vectors.
        The slope is an explicit formula, so the forces of a training step need no second
        differentiation here. `head` (E,) is the head of the edge's structure.
        """
        vectors = vectors.detach()
        distance = vectors.norm(dim=1)  # (E,)

        # only about a tenth of all edges are close enough to matter
        is_near = distance < self.reach(first, second, head)
        near = is_near.nonzero().squeeze(1)
        distance = distance[near]
        first = first[near]
        second = second[near]
        head = head[near]

        bare, bare_slope = bare_repulsion(distance, first, second)
        energy, slope = switched(distance, bare, bare_slope, self.reach(first, second, head))
        # dE/dv = dE/dr * v / r
        per_length = (slope / distance).unsqueeze(1)
        near_slopes = per_length * vectors[near]

        # edges beyond their reach stay zero
        energies = vectors.new_zeros(len(vectors))
        energies = energies.index_copy(0, near, energy)
        slopes = torch.zeros_like(vectors)
        slopes = slopes.index_copy(0, near, near_slopes)
        return energies, slopes

    def energies(self, vectors: Tensor, first: Tensor, second: Tensor, head: Tensor) -> Tensor:
        """The energies (E,) in eV alone, differentiable with respect to the vectors too.

        For engines that do the differentiation themselves.
        """
        distance = vectors.norm(dim=1)
        bare, bare_slope = bare_repulsion(distance, first, second)
        energy, _ = switched(distance, bare, bare_slope, self.reach(first, second, head))
        return energy

    def reach(self, first: Tensor, second: Tensor, head: Tensor | int) -> Tensor:
        """The distances b_i + b_j (E,) in A at which the repulsion ends, at most the cutoff."""
        radii = self.radii()
        both = radii[head, first] + radii[head, second]
        # there are no edges beyond the cutoff, so a longer reach would give a step in the energy
        return both.clamp(max=self.cutoff)


def switched(
    distance: Tensor, bare: Tensor, bare_slope: Tensor, reach: Tensor
) -> tuple[Tensor, Tensor]:
    """Switch off the energies and slopes dE/dr of `bare_repulsion` at `reach` in A; all (E,)."""
    # `reach` is converted twice on purpose, so that its gradients are summed in its own dtype. Any
    # other order of summation changes the last bits of fitted radii, and with them the golden
    # losses.
    x = distance / reach.to(distance)
    switch = polynomial_envelope(x)
    switch_slope = polynomial_envelope_slope(x) / reach.to(distance)
    energy = bare * switch
    slope = bare_slope * switch + bare * switch_slope  # the product rule
    return energy, slope


def bare_repulsion(distance: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Half of a pair's screened Coulomb energy (E,) in eV, and its slope dE/dr (E,) in eV/A.

    `distance` (E,) is in A.
    """
    z_first = first.to(distance)
    z_second = second.to(distance)
    coulomb = 0.5 * COULOMB * z_first * z_second / distance
    screening = (z_first**0.23 + z_second**0.23) / SCREENING  # 1/a in 1/A

    exponents = distance.new_tensor(EXPONENTS)
    coefficients = distance.new_tensor(COEFFICIENTS)
    x = (screening * distance).unsqueeze(1)
    decays = torch.exp(-x * exponents)  # (E, 4)
    terms = decays * coefficients

    energy = coulomb * terms.sum(1)
    decay_slope = terms @ exponents
    slope = -energy / distance - coulomb * screening * decay_slope
    return energy, slope
