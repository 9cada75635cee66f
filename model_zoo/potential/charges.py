"""Environment-dependent atomic charges, and the energy of their Coulomb interaction.

    q_i = UNIT (w . silu(W s_i + b) + c[z_i]) - mean over the structure
    E = 1/2 sum_ij k q_i q_j erf(r_ij / 2a) / r_ij

Here s_i are the features of the network, and the charges are Gaussians of width a. The sum has no
cutoff. For a crystal it is an Ewald sum with conducting boundary conditions; a slab is isolated in
vacuum. The charges have no labels. They are learned only through the energies and forces that they
improve (Cheng, npj Comput. Mater. 11, 80 (2025); Ko et al., Nat. Commun. 12, 398 (2021)).

The energy depends on positions directly and through the charges:

    dE/dr = (dE/dr at fixed charges) + sum_i (dE/dq_i) (dq_i/dr)

`CoulombTerm` holds the first part and dE/dq. The second part is backpropagated through the network,
together with the slopes of the learned energies.

Shapes: N atoms, S structures, F features of the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ...data_pipelines.physics.coulomb import smooth_energies, torch_pme
from ...data_pipelines.physics.errors import PhysicsError
from ...data_pipelines.structure import Structure
from ..network.embedding import electronegativity
from ..network.interface import MAX_ATOMIC_NUMBER


HIDDEN_SIZE = 32  # outputs of the hidden layer
# Initial charge per unit of electronegativity, in e. Sodium and chlorine start at 0.46 e.
START = 0.5
# Unit in e in which charges are learned. An optimizer step moves every parameter by about the
# learning rate. With a unit of 1 e, salts ended further from their charges (docs/decisions/0030).
UNIT = 2.0
# Electronegativities that replace the formula, which gives 4.5 for hydrogen because of its short
# bonds, and up to 8.5 for noble gases.
HYDROGEN = 2.2
LARGEST = 4.0


@dataclass(frozen=True)
class CoulombTerm:
    """The Coulomb energy of charges and its derivatives, all in float64."""

    charges: Tensor
    """(N,) e"""
    energies: Tensor
    """(N,) eV"""
    by_positions: Tensor
    """(N, 3) eV/A, at fixed charges"""
    by_strain: Tensor
    """(S, 3, 3) eV, at fixed charges"""
    by_charges: Tensor
    """(N,) eV/e"""


class Charges(nn.Module):
    """Map features of the atoms to charges that sum to zero in every structure.

    All levels of theory share one set of weights, because charges differ little between them.
    """

    def __init__(self, num_features: int) -> None:
        """Raises MissingPackageError without torch-pme."""
        super().__init__()
        # a missing package is reported here, not at the first crystal of a training
        torch_pme()
        self.hidden = nn.Linear(num_features, HIDDEN_SIZE, dtype=torch.float32)
        self.weight = nn.Parameter(torch.zeros(HIDDEN_SIZE, dtype=torch.float32))
        # not zero: there, the energy has zero gradient with respect to the charges
        self.element_charge = nn.Parameter(torch.from_numpy(_start() / UNIT).float())

    def forward(self, features: Tensor, batch: Batch) -> Tensor:
        """Features (N, F) -> charges (N,) in e, float64."""
        followed = nn.functional.silu(self.hidden(features)) @ self.weight
        charges = UNIT * (followed + self.element_charge[batch.atomic_numbers]).double()
        mean = batch.sum_over_atoms(charges) / batch.atoms_per_structure
        return charges - mean[batch.structure_index]


@cache
def _start() -> np.ndarray:
    """Initial charges (119,) of the elements, in e.

    The more electronegative an element is, the more negative its charge.
    """
    pull = [electronegativity(z) for z in range(1, MAX_ATOMIC_NUMBER + 1)]
    pull[0] = HYDROGEN
    bounded = np.minimum(pull, LARGEST)
    # row 0 is not an element
    return np.concatenate([[0.0], START * (bounded.mean() - bounded)])


@own_modes()
def energy_at_start(structure: Structure, width: float) -> tuple[float, np.ndarray]:
    """Coulomb energy in eV and forces (N, 3) in eV/A of the initial charges of a training.

    `width` is in A. The structure must not be a wire, that is, periodic in one direction only.
    """
    charges = torch.from_numpy(_start()[structure.atomic_numbers])
    cell = torch.tensor(structure.cell, dtype=torch.float64)
    with torch.enable_grad():
        positions = torch.tensor(structure.positions, dtype=torch.float64, requires_grad=True)
        energy = smooth_energies(
            charges - charges.mean(), positions, cell, structure.pbc.tolist(), width
        ).sum()
        (slope,) = torch.autograd.grad(energy, positions)
    return float(energy.detach()), -slope.numpy()


def coulomb_energies(charges: Tensor, batch: Batch, width: float) -> Tensor:
    """Coulomb energies (N,) in eV, float64, of charges (N,) in e; `width` is in A.

    Raises PhysicsError for a wire (periodic in one direction only).
    """
    return _energies(charges, batch.positions, batch.cell, batch, width)


def coulomb_term(charges: Tensor, batch: Batch, width: float, *, keep_graph: bool) -> CoulombTerm:
    """Coulomb energy of charges (N,) in e, and its derivatives; `width` is in A.

    With `keep_graph`, all results can be differentiated again, as training needs. Raises
    PhysicsError for a wire (periodic in one direction only).
    """
    with torch.enable_grad():
        if not charges.requires_grad:
            charges = charges.detach().requires_grad_()
        positions = batch.positions.detach().requires_grad_()
        strain = positions.new_zeros(batch.num_structures, 3, 3).requires_grad_()
        deformation = torch.eye(3).to(strain) + strain  # (S, 3, 3)
        strained = torch.einsum("na,nab->nb", positions, deformation[batch.structure_index])
        energies = _energies(charges, strained, batch.cell @ deformation, batch, width)
        by_positions, by_strain, by_charges = torch.autograd.grad(
            energies.sum(),
            [positions, strain, charges],
            create_graph=keep_graph,
            # the caller still differentiates the charges
            retain_graph=True,
        )
    if not keep_graph:
        # otherwise the prediction would keep the memory of the graph alive
        energies = energies.detach()
    return CoulombTerm(charges, energies, by_positions, by_strain, by_charges)


def refuse_wires(structures: Iterable[Structure], data: str) -> None:
    """Raise PhysicsError for the first wire in a data set, before hours of work are spent.

    A wire is periodic in one direction only. `data` names the data set in the message.
    """
    for structure in structures:
        if structure.pbc.sum() == 1:
            raise _wire(structure.structure_id, file=data)


def _wire(structure_id: str | None, file: str | None = None) -> PhysicsError:
    return PhysicsError(
        "is periodic in one direction only, for which there is no sum of charges here",
        file=file,
        record=structure_id,
        remedy="set pbc to T T T with enough vacuum, or to F F F, or use a model without charges",
    )


def _energies(
    charges: Tensor, positions: Tensor, cell: Tensor, batch: Batch, width: float
) -> Tensor:
    # The atoms of the structures are concatenated. Each structure needs its own reciprocal vectors,
    # so the structures are computed one after the other.
    sizes = batch.atoms_per_structure.tolist()
    parts = zip(charges.split(sizes), positions.split(sizes), cell, batch.pbc.tolist(), strict=True)
    found = []
    for place, (own_charges, own_positions, own_cell, pbc) in enumerate(parts):
        if sum(pbc) == 1:
            raise _wire(batch.structure_ids[place] if batch.structure_ids else None)
        found.append(smooth_energies(own_charges, own_positions, own_cell, pbc, width))
    return torch.cat(found)
