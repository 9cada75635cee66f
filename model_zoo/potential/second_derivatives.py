"""Second derivatives of the energy of a crystal by strain, without finite steps.

For positions r = (r0 + u)(1 + strain) and the six independent strains e (xx yy zz yz xz xy, the
last three as twice the tensor's entry), the elastic constants of atoms that follow the strain are

    C = 1/V ( d2E/de2 - d2E/de du (d2E/du2)^+ d2E/du de )

(D. C. Wallace, Thermodynamics of Crystals, 1972). They are those of a crystal without stress.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from .potential import Potential


# Entries of the strain tensor: row and column of each of the six numbers.
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@own_modes()
def elastic_tensor(potential: Potential, batch: Batch) -> Tensor:
    """Elastic constants (6, 6) in eV/A^3 of one crystal at rest, in the dtype of the potential.

    The memory grows with the square of the number of atoms: meant for small cells.
    """
    assert batch.num_structures == 1
    # they would be those of the network alone
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
            # of the two ways to the repulsion, the one that can be differentiated by vectors
            total = total + potential.repulsion.energies(strained, first, second, edge_head).sum()
        return total

    at_rest = straight.new_zeros(6 + 3 * batch.num_atoms)
    hessian: Tensor = torch.autograd.functional.hessian(energy, at_rest)
    by_strain = hessian[:6, :6]
    mixed = hessian[:6, 6:]
    by_shift = hessian[6:, 6:]
    # a shift of all atoms costs nothing, so the matrix has no inverse
    followed = mixed @ torch.linalg.pinv(by_shift, hermitian=True, rtol=1e-8) @ mixed.T
    volume = torch.linalg.det(batch.cell[0]).abs().to(by_strain)
    return (by_strain - followed) / volume


def _strain(numbers: Tensor) -> Tensor:
    """The symmetric tensor of six numbers, (3, 3)."""
    tensor = numbers.new_zeros(3, 3)
    for value, (row, column) in zip(numbers, VOIGT, strict=True):
        unit = numbers.new_zeros(3, 3)
        unit[row, column] += 0.5
        unit[column, row] += 0.5
        tensor = tensor + value * unit
    return tensor
