"""Gaussian charges at the atoms, in molecules and in crystals.

    E = 1/2 sum_ij k q_i q_j erf(r_ij / g_ij) / r_ij,   g_ij = sqrt(2 (w_i^2 + w_j^2))

with k = e^2 / (4 pi eps0) and widths w_i; a charge does not interact with itself, only with its
periodic images. E stays finite and smooth even if two atoms coincide. In a crystal, E is an Ewald
sum with conducting (tin-foil) boundary conditions. torch-pme computes the reciprocal-space part,
and the short-ranged rest is summed over pairs here. A plain sum over pairs would depend on the
order of its terms.

Equilibrated charges minimise E + sum_i (chi_i q_i + (eta_i + k / (w_i sqrt(pi))) q_i^2 / 2)
for a fixed total charge, which is a linear problem. At the minimum, the derivatives of the energy
by the charges do not contribute to the forces. So forces are derivatives at constant charges.

Shapes: N atoms, E ordered pairs. Everything is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from ...core.errors import MissingPackageError
from ...core.units import COULOMB
from ..neighbours import neighbour_list
from .config import CoulombConfig
from .errors import PhysicsError


# e; a cell with more net charge than this is not neutral
NEUTRAL = 1e-6
# The Gaussian that splits the Ewald sum has the standard deviation cutoff / SHARPNESS. The largest
# wave vector times this deviation is WAVES. Both parts of the sum are then truncated at 1e-12 of a
# bare pair.
SHARPNESS = 7.0
WAVES = 7.3
# vacuum between the images of a slab, in units of its longer lattice vector: the waves of one image
# have decayed to 1e-11 at the next
GAP = 4.0
# below this argument, erf(x) / x is summed as a series; NUM_TERMS terms are exact to 1e-16
SMALL = 0.25
NUM_TERMS = 8


class Coulomb:
    """The Coulomb energy of a structure, as defined in the module docstring."""

    def __init__(self, config: CoulombConfig) -> None:
        self.config = config
        torch_pme()
        self._division = config.cutoff / SHARPNESS  # A, deviation of the Gaussian in the Ewald sum

    def __call__(
        self, numbers: np.ndarray, positions: Tensor, cell: Tensor, pbc: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Energies (N,) in eV, differentiable by positions and cell, and charges (N,) in e.

        numbers: atomic numbers, (N,). positions (N, 3) and cell (3, 3) in A, pbc (3,).

        Raises PhysicsError for an element without settings, for a structure that is periodic in
        only some directions, and for a periodic structure that is not neutral.
        """
        is_periodic = bool(pbc.any())
        if is_periodic and not pbc.all():
            raise PhysicsError(
                "is periodic in some directions only, where charges have no energy without a "
                "convention for the others",
                remedy="set pbc to T T T with enough vacuum, or to F F F",
            )
        pairs = _Pairs.of(positions, cell, self.config.cutoff, is_periodic=is_periodic)
        kernel = self._kernel(numbers, pairs, is_periodic=is_periodic)
        if self.config.equilibrates:
            charges = self._equilibrated(numbers, positions, cell, pairs, kernel, is_periodic)
        else:
            charges = self._of(numbers, self.config.charges, "charges")
            if is_periodic:
                _refuse_net_charge(float(charges.sum()))

        products = charges[pairs.receiver] * charges[pairs.sender] * kernel
        energies = torch.zeros_like(charges).index_add(0, pairs.receiver, 0.5 * COULOMB * products)
        if is_periodic:
            waves = self._reciprocal(charges.unsqueeze(1), cell, positions).squeeze(1)
            energies = energies + COULOMB * charges * waves
        if self.config.equilibrates:
            own = self._of(numbers, self.config.electronegativity, "electronegativity")
            energies = energies + own * charges + 0.5 * self._stiffness(numbers) * charges**2
        return energies, charges

    def _of(self, numbers: np.ndarray, table: dict[str, float], name: str) -> Tensor:
        """Look up a setting by element for every atom, (N,). Raises PhysicsError if one lacks it.

        name: the setting, for the message.
        """
        symbols = [chemical_symbols[z] for z in numbers]
        missing = sorted(set(symbols) - set(table))
        if missing:
            raise PhysicsError(
                f"has {', '.join(missing)}, for which coulomb.{name} has no number",
                remedy="add the element to the physics, or leave the structure out",
            )
        return torch.tensor([table[symbol] for symbol in symbols], dtype=torch.float64)

    def _widths(self, numbers: np.ndarray) -> Tensor:
        """Standard deviation of each atom's Gaussian charge, (N,) in A."""
        own = self.config.widths
        widths = [own.get(chemical_symbols[z], self.config.width) for z in numbers]
        return torch.tensor(widths, dtype=torch.float64)

    def _stiffness(self, numbers: np.ndarray) -> Tensor:
        """Hardness plus Gaussian self-energy of each charge, (N,) in eV/e^2."""
        hardness = self._of(numbers, self.config.hardness, "hardness")
        return hardness + COULOMB / (self._widths(numbers) * math.sqrt(math.pi))

    def _kernel(self, numbers: np.ndarray, pairs: _Pairs, *, is_periodic: bool) -> Tensor:
        """The factor of k q_i q_j of each pair in real space, (E,) in 1/A."""
        squares = self._widths(numbers) ** 2
        reach = torch.sqrt(2 * (squares[pairs.receiver] + squares[pairs.sender]))
        kernel = erf_over_distance(pairs.squares, 1 / reach)
        if not is_periodic:
            return kernel
        division = torch.full_like(reach, 1 / (math.sqrt(2) * self._division))
        return kernel - erf_over_distance(pairs.squares, division)

    def _reciprocal(self, charges: Tensor, cell: Tensor, positions: Tensor) -> Tensor:
        """Half the potentials (N, C) in e/A of charges (N, C), from the reciprocal-space part."""
        return reciprocal(charges, cell, positions, self._division, self.config.mesh_spacing)

    @torch.no_grad()
    def _equilibrated(
        self,
        numbers: np.ndarray,
        positions: Tensor,
        cell: Tensor,
        pairs: _Pairs,
        kernel: Tensor,
        is_periodic: bool,
    ) -> Tensor:
        """The charges (N,) in e that minimise the energy for the configured net charge."""
        if is_periodic:
            _refuse_net_charge(self.config.net_charge)
        num_atoms = len(numbers)
        own = self._of(numbers, self.config.electronegativity, "electronegativity")
        matrix = torch.diag(self._stiffness(numbers))
        places = (pairs.receiver, pairs.sender)
        matrix = matrix.index_put(places, COULOMB * kernel, accumulate=True)
        if is_periodic:
            units = torch.eye(num_atoms, dtype=torch.float64)
            matrix = matrix + 2 * COULOMB * self._reciprocal(units, cell, positions)

        # the last row and column constrain the sum of the charges (a Lagrange multiplier)
        bordered = torch.ones(num_atoms + 1, num_atoms + 1, dtype=torch.float64)
        bordered[:-1, :-1] = matrix
        bordered[-1, -1] = 0.0
        net = torch.tensor([self.config.net_charge], dtype=torch.float64)
        solved: Tensor = torch.linalg.solve(bordered, torch.cat([-own, net]))
        return solved[:-1]


class _Pairs:
    """Ordered pairs of atoms (E,) with their squared distances (E,) in A^2, differentiable."""

    def __init__(self, receiver: Tensor, sender: Tensor, squares: Tensor) -> None:
        self.receiver = receiver
        self.sender = sender
        self.squares = squares

    @classmethod
    def of(cls, positions: Tensor, cell: Tensor, cutoff: float, *, is_periodic: bool) -> _Pairs:
        """All pairs of a molecule, or the pairs of a crystal within `cutoff` (A)."""
        num_atoms = len(positions)
        if not is_periodic:
            different = ~torch.eye(num_atoms, dtype=torch.bool)
            receiver, sender = different.nonzero().unbind(1)
            vectors = positions[sender] - positions[receiver]
            return cls(receiver, sender, vectors.square().sum(1))
        edge_index, shifts = neighbour_list(
            positions.detach().numpy(), cell.detach().numpy(), np.ones(3, bool), cutoff
        )
        sender, receiver = torch.from_numpy(edge_index)
        vectors = positions[sender] - positions[receiver] + torch.from_numpy(shifts) @ cell
        return cls(receiver, sender, vectors.square().sum(1))


def reciprocal(
    charges: Tensor,
    cell: Tensor,
    positions: Tensor,
    deviation: float,
    mesh_spacing: float | None = None,
) -> Tensor:
    """Half the potentials (N, C) in e/A that charges (N, C) in e of a crystal exert on each other.

    Pairs interact by erf(r / (sqrt(2) deviation)) / r. A charge interacts with its own images, but
    not with itself.

    cell (3, 3) and positions (N, 3) in A. All tensors are float64.
    deviation: standard deviation of the Gaussian, A.
    mesh_spacing: spacing of a particle-mesh sum, A; None for an exact Ewald sum over waves.
    """
    package = torch_pme()
    potential = package.CoulombPotential(smearing=deviation).to(torch.float64)
    if mesh_spacing is None:
        calculator = package.EwaldCalculator(potential, lr_wavelength=resolution(deviation))
    else:
        calculator = package.PMECalculator(
            potential, mesh_spacing=mesh_spacing, interpolation_nodes=7
        )
    calculator = calculator.to(device=charges.device, dtype=torch.float64)
    # without pairs, torch-pme computes only the reciprocal-space part
    no_pairs = torch.zeros((0, 2), dtype=torch.int64, device=charges.device)
    waves: Tensor = calculator(charges, cell, positions, no_pairs, positions.new_zeros(0))
    return waves


def resolution(deviation: float) -> float:
    """Half the shortest wavelength in the Ewald sum, A; this is torch-pme's `lr_wavelength`.

    torch-pme sums waves down to twice this length, which is about one wave for each cube of this
    edge length in the cell. `deviation` as in `reciprocal`.
    """
    return math.pi * deviation / WAVES


def smooth_energies(
    charges: Tensor, positions: Tensor, cell: Tensor, pbc: Sequence[bool], width: float
) -> Tensor:
    """Energies (N,) in eV of Gaussian charges (N,) in e that all have the same width (A).

    These charges are smooth enough for a sum over waves alone. So crystals and slabs need no search
    for pairs; a molecule is summed over all pairs. The energies are differentiable by charges,
    positions (N, 3) in A and, for a crystal, cell (3, 3) in A.

    The charges must add up to zero. Structures with exactly one periodic direction are not allowed.
    """
    num_periodic = sum(pbc)
    assert num_periodic != 1, "wires are refused before"
    if num_periodic == 0:
        squares = (positions.unsqueeze(0) - positions.unsqueeze(1)).square().sum(2)  # (N, N)
        kernel = erf_over_distance(squares, squares.new_tensor(1 / (2 * width)))
        kernel = kernel - torch.diag(kernel.diagonal())
        return 0.5 * COULOMB * charges * (kernel @ charges)

    if num_periodic == 2:
        cell, heights = _around_a_slab(positions, cell, pbc)
    deviation = smooth_deviation(width)
    halves = reciprocal(charges.unsqueeze(1), cell, positions, deviation).squeeze(1)
    if num_periodic == 2:
        # slab correction for the field between the images: Yeh and Berkowitz, J. Chem. Phys. 111,
        # 3155 (1999)
        volume = torch.linalg.det(cell).abs()
        halves = halves + 2 * math.pi / volume * heights * (charges @ heights)
    return COULOMB * charges * halves


def smooth_deviation(width: float) -> float:
    """The `deviation` (A) for `reciprocal` of two Gaussian charges of the same width (A)."""
    return math.sqrt(2) * width


def _around_a_slab(positions: Tensor, cell: Tensor, pbc: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """A cell (3, 3) with enough vacuum between images of a slab, and its atoms' heights (N,), A."""
    first, second = cell[torch.tensor(pbc, device=cell.device)].detach()
    normal = torch.linalg.cross(first, second)
    normal = normal / normal.norm()
    heights = positions @ normal
    heights = heights - heights.mean()
    # the interaction of a slab's waves with the next image decays by exp(2 pi) per `longest`
    longest = torch.maximum(first.norm(), second.norm())
    thickness = (heights.max() - heights.min()).detach()
    return torch.stack([first, second, (thickness + GAP * longest) * normal]), heights


def erf_over_distance(squares: Tensor, inverse: Tensor) -> Tensor:
    """erf(a r) / r in 1/A, smooth down to r = 0.

    squares: r^2 in A^2.
    inverse: a in 1/A; the two shapes must broadcast.
    """
    x_squared = squares * inverse**2
    is_small = x_squared < SMALL**2
    # the branch that `where` discards must be finite too, or its gradient would be NaN
    distance = torch.where(is_small, 1.0, squares).sqrt()
    far = torch.erf(distance * inverse) / distance
    near_squared = torch.where(is_small, x_squared, 0.0)
    terms = [(-near_squared) ** k / (math.factorial(k) * (2 * k + 1)) for k in range(1, NUM_TERMS)]
    near = 2 / math.sqrt(math.pi) * inverse * (1 + torch.stack(terms).sum(0))
    return torch.where(is_small, near, far)


def _refuse_net_charge(charge: float) -> None:
    if abs(charge) > NEUTRAL:
        raise PhysicsError(
            f"is periodic with a net charge of {charge:+.6g} e, whose energy is infinite",
            remedy="make the charges of each periodic structure add up to zero",
        )


def torch_pme() -> ModuleType:
    """Import and return torchpme. Raises MissingPackageError if it is not installed."""
    try:
        import torchpme
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torchpme":
            raise
        raise MissingPackageError(
            "torch-pme", needed_for="charges with an Ewald sum", extra="physics"
        ) from error
    module: ModuleType = torchpme
    return module
