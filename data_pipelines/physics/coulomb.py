"""Gaussian charges at the atoms, in molecules and in crystals.

    E = 1/2 sum_ij k q_i q_j erf(r_ij / g_ij) / r_ij,   g_ij = sqrt(2 (w_i^2 + w_j^2))

with k = e^2 / (4 pi eps0), without i = j in the same place. It is finite and smooth where atoms
meet. In a crystal it is an Ewald sum with conducting (tin-foil) surroundings: torch-pme gives the
part in reciprocal space, and the rest, which is short-ranged, is summed over pairs here. A sum over
pairs alone would depend on its order.

Charges that equilibrate minimise E + sum_i (chi_i q_i + (eta_i + k / (w_i sqrt(pi))) q_i^2 / 2)
under a fixed sum: a linear problem. At the minimum the charges do not change the forces to first
order, so forces are derivatives at these charges.

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


# e; a cell with more than this much net charge is not neutral
NEUTRAL = 1e-6
# The Gaussian that divides the Ewald sum is the cutoff over SHARPNESS, and the shortest wave has
# WAVES radians in it: both parts end at 1e-12 of a bare pair.
SHARPNESS = 7.0
WAVES = 7.3
# between the images of a slab, in units of its longer lattice vector: 1e-11 of a wave is left
GAP = 4.0
# below this argument erf(x) / x is summed as a series, whose eight terms are exact to 1e-16
SMALL = 0.25
NUM_TERMS = 8


class Coulomb:
    """The Coulomb energy of structures; see the module."""

    def __init__(self, config: CoulombConfig) -> None:
        self.config = config
        torch_pme()
        self._division = config.cutoff / SHARPNESS  # A, of the Gaussian that divides the sum

    def __call__(
        self, numbers: np.ndarray, positions: Tensor, cell: Tensor, pbc: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Energies (N,) in eV, differentiable by positions and cell, and charges (N,) in e.

        numbers (N,), positions (N, 3) and cell (3, 3) in A, pbc (3,).

        Raises PhysicsError for an element without settings, a slab or wire, and a periodic
        structure that is not neutral.
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
        """A setting of the elements, atom by atom (N,)."""
        symbols = [chemical_symbols[z] for z in numbers]
        missing = sorted(set(symbols) - set(table))
        if missing:
            raise PhysicsError(
                f"has {', '.join(missing)}, for which coulomb.{name} has no number",
                remedy="add the element to the physics, or leave the structure out",
            )
        return torch.tensor([table[symbol] for symbol in symbols], dtype=torch.float64)

    def _widths(self, numbers: np.ndarray) -> Tensor:
        """Of each atom, (N,) in A."""
        own = self.config.widths
        widths = [own.get(chemical_symbols[z], self.config.width) for z in numbers]
        return torch.tensor(widths, dtype=torch.float64)

    def _stiffness(self, numbers: np.ndarray) -> Tensor:
        """Hardness and self-energy of each charge, (N,) in eV/e^2."""
        hardness = self._of(numbers, self.config.hardness, "hardness")
        return hardness + COULOMB / (self._widths(numbers) * math.sqrt(math.pi))

    def _kernel(self, numbers: np.ndarray, pairs: _Pairs, *, is_periodic: bool) -> Tensor:
        """What multiplies k q_i q_j of each pair in real space, (E,) in 1/A."""
        squares = self._widths(numbers) ** 2
        reach = torch.sqrt(2 * (squares[pairs.receiver] + squares[pairs.sender]))
        kernel = erf_over_distance(pairs.squares, 1 / reach)
        if not is_periodic:
            return kernel
        division = torch.full_like(reach, 1 / (math.sqrt(2) * self._division))
        return kernel - erf_over_distance(pairs.squares, division)

    def _reciprocal(self, charges: Tensor, cell: Tensor, positions: Tensor) -> Tensor:
        """Half the potentials (N, C) in e/A of the smooth part of charges (N, C)."""
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
        """The charges (N,) in e of least energy."""
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

        # the last row and column hold the sum of the charges
        bordered = torch.ones(num_atoms + 1, num_atoms + 1, dtype=torch.float64)
        bordered[:-1, :-1] = matrix
        bordered[-1, -1] = 0.0
        net = torch.tensor([self.config.net_charge], dtype=torch.float64)
        solved: Tensor = torch.linalg.solve(bordered, torch.cat([-own, net]))
        return solved[:-1]


class _Pairs:
    """Ordered pairs of atoms with their squared distances, differentiable."""

    def __init__(self, receiver: Tensor, sender: Tensor, squares: Tensor) -> None:
        self.receiver = receiver
        self.sender = sender
        self.squares = squares

    @classmethod
    def of(cls, positions: Tensor, cell: Tensor, cutoff: float, *, is_periodic: bool) -> _Pairs:
        """All pairs of a molecule, or those within the cutoff of a crystal."""
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
    """Half the potentials (N, C) in e/A that charges (N, C) of a crystal exert on each other.

    Pairs interact by erf(r / (sqrt(2) deviation)) / r, with `deviation` in A, and a charge with its
    own images, but not with itself. It is a sum over waves, or one on a mesh of this spacing in A.
    cell (3, 3) and positions (N, 3) in A. All are float64.
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
    # without pairs, torch-pme leaves real space to us
    no_pairs = torch.zeros((0, 2), dtype=torch.int64, device=charges.device)
    waves: Tensor = calculator(charges, cell, positions, no_pairs, positions.new_zeros(0))
    return waves


def resolution(deviation: float) -> float:
    """Half the length of the shortest wave in A: one wave for each such cube of a cell is summed.

    `deviation` as in `reciprocal`. torch-pme takes waves down to twice the length that it is told.
    """
    return math.pi * deviation / WAVES


def smooth_energies(
    charges: Tensor, positions: Tensor, cell: Tensor, pbc: Sequence[bool], width: float
) -> Tensor:
    """Energies (N,) in eV of Gaussian charges (N,) in e that all have one width in A.

    They are smooth enough for waves alone: no pair is searched in a crystal or a slab, and all
    pairs are taken in a molecule. Differentiable by charges, positions (N, 3) and, for a crystal,
    cell (3, 3) in A. The charges add up to zero, and not exactly one direction is periodic.
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
        # Yeh and Berkowitz, J. Chem. Phys. 111, 3155 (1999): the field between the images
        volume = torch.linalg.det(cell).abs()
        halves = halves + 2 * math.pi / volume * heights * (charges @ heights)
    return COULOMB * charges * halves


def smooth_deviation(width: float) -> float:
    """Of the waves of `smooth_energies`, in A: that of two Gaussians of a width in A."""
    return math.sqrt(2) * width


def _around_a_slab(positions: Tensor, cell: Tensor, pbc: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """A cell (3, 3) that keeps images of a slab apart, and the heights (N,) of its atoms, in A."""
    first, second = cell[torch.tensor(pbc, device=cell.device)].detach()
    normal = torch.linalg.cross(first, second)
    normal = normal / normal.norm()
    heights = positions @ normal
    heights = heights - heights.mean()
    # What slabs feel of each other's waves falls by exp(2 pi) for each of these lengths.
    longest = torch.maximum(first.norm(), second.norm())
    thickness = (heights.max() - heights.min()).detach()
    return torch.stack([first, second, (thickness + GAP * longest) * normal]), heights


def erf_over_distance(squares: Tensor, inverse: Tensor) -> Tensor:
    """erf(a r) / r of squared distances r^2 and a in 1/A, of shapes that broadcast.

    It is smooth down to r = 0.
    """
    x_squared = squares * inverse**2
    is_small = x_squared < SMALL**2
    # what `where` leaves out must be finite too, or its gradient would be NaN
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
    """The package; MissingPackageError without it."""
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
