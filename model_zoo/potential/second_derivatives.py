"""Elastic constants of a crystal from analytic second derivatives, without finite differences.

Let r = (r0 + u)(1 + strain), with the six Voigt strains e (xx yy zz yz xz xy, the last three being
twice the tensor entry). The relaxed-ion elastic constants are

    C = 1/V ( d2E/de2 - d2E/de du (d2E/du2)^+ d2E/du de )

(D. C. Wallace, Thermodynamics of Crystals, 1972). They hold for a crystal without stress.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from .potential import Potential


# Row and column of each of the six Voigt components in the strain tensor.
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@own_modes()
def elastic_tensor(potential: Potential, batch: Batch) -> Tensor:
    """Elastic constants (6, 6) in eV/A^3 of one relaxed crystal, in the dtype of the potential.

    Meant for small cells: memory grows with the square of the number of atoms. The potential must
    have neither physics nor charges.
    """
    assert batch.num_structures == 1
    # the Hessian below leaves out physics and charges
    assert potential.config.physics is None
    assert not potential.config.charges
    vectors, tiles = potential.edge_vectors(batch)
    straight = vectors.detach()
    receiver = tiles.slot_receiver
    atom_head = batch.head[batch.structure_index]

    def energy(parameters: Tensor) -> Tensor:
        strain = _strain(parameters[:6])
        shifts = parameters[6:].view(-1, 3)
        between = straight + shifts[tiles.sender] - shifts[receiver]
        strained = between @ (torch.eye(3).to(strain) + strain)
        energies, _ = potential.interaction(batch.atomic_numbers, atom_head, strained, tiles)
        total = energies.sum()
        if potential.config.repulsion:
            first, second = batch.atomic_numbers[receiver], batch.atomic_numbers[tiles.sender]
            edge_head = atom_head[receiver]
            # `energies`, not `forward`: only it is differentiable with respect to the vectors
            total = total + potential.repulsion.energies(strained, first, second, edge_head).sum()
        return total

    at_rest = straight.new_zeros(6 + 3 * batch.num_atoms)
    hessian: Tensor = torch.autograd.functional.hessian(energy, at_rest)
    by_strain = hessian[:6, :6]
    mixed = hessian[:6, 6:]
    by_shift = hessian[6:, 6:]
    # shifting all atoms together costs no energy, so the matrix is singular
    followed = mixed @ torch.linalg.pinv(by_shift, hermitian=True, rtol=1e-8) @ mixed.T
    volume = torch.linalg.det(batch.cell[0]).abs().to(by_strain)
    return (by_strain - followed) / volume


def _strain(numbers: Tensor) -> Tensor:
    """The symmetric strain tensor (3, 3) of six Voigt strains."""
    tensor = numbers.new_zeros(3, 3)
    for value, (row, column) in zip(numbers, VOIGT, strict=True):
        unit = numbers.new_zeros(3, 3)
        unit[row, column] += 0.5
        unit[column, row] += 0.5
        tensor = tensor + value * unit
    return tensor
