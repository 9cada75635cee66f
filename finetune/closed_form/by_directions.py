"""The derivatives of many features of the readout, from those of the network's scalars.

Row j of the readout's hidden layer turns the scalars s_i of atom i into one feature:

    phi_ij = silu(w_j . s_i + b_j)
    d phi_ij / dr_k = silu'(w_j . s_i + b_j) w_j . ds_i/dr_k

Once ds_i/dr_k is known for all i, a matrix product gives the derivatives of every feature. So one
pass per direction r_k replaces one reverse pass per feature. That is cheaper when a structure has
fewer coordinates than the readout has features. Structures do not interact, so one pass moves one
atom of every structure in the batch.

A reverse pass is linear in its cotangent, and a pass along a direction is the derivative of a
reverse pass by that cotangent. The network only has to be twice differentiable, as every one is.

Shapes: N atoms, S structures, E edge slots, F scalars, d features, P features by element.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...data_pipelines.batch import Batch
from ...model_zoo.potential.potential import Potential


# Most atoms of a structure whose forces become rows. More cost time and add hardly any information:
# these have 144 components already, and all atoms share the same weights.
MOST_ATOMS_MOVED = 48
# The components of a symmetric tensor, each shear once.
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def moved_atoms(batch: Batch) -> np.ndarray:
    """Which atoms (N,) are moved: all of a structure, or MOST_ATOMS_MOVED drawn at random."""
    structure_index = batch.structure_index.cpu().numpy()
    moved = np.ones(len(structure_index), dtype=bool)
    for structure in np.flatnonzero(np.bincount(structure_index) > MOST_ATOMS_MOVED):
        atoms = np.flatnonzero(structure_index == structure)
        # seeded by the size alone: the draw must not depend on what else is in the batch
        drawn = np.random.default_rng(len(atoms)).permutation(atoms)
        moved[drawn[MOST_ATOMS_MOVED:]] = False
    return moved


def jacobian_by_directions(
    potential: Potential, batch: Batch, new_elements: list[int], moved: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """What `design_rows.feature_jacobian` returns, with zero forces on atoms that are not moved.

    The stress is all NaN where no structure of the batch has a label for it.
    """
    vectors, tiles = potential.edge_vectors(batch)
    sender, receiver = tiles.sender, tiles.slot_receiver
    with torch.enable_grad():
        scalars = potential.backbone(batch.atomic_numbers, vectors, tiles)  # (N, F)
        cotangent = torch.zeros_like(scalars, requires_grad=True)
        (pulled_back,) = torch.autograd.grad(scalars, vectors, cotangent, create_graph=True)

        hidden = potential.readout.hidden(scalars.detach()).detach().requires_grad_()
        phi = potential.readout.activation(hidden)
        (slope,) = torch.autograd.grad(phi.sum(), hidden)  # silu', (N, d)
    weight = potential.readout.hidden.weight.detach()
    masks = [torch.ones_like(batch.atomic_numbers, dtype=torch.bool)]
    masks += [batch.atomic_numbers == z for z in new_elements]

    def summed_by_element(values: Tensor) -> Tensor:
        blocks = [values * mask.unsqueeze(1) for mask in masks]
        return batch.sum_over_atoms(torch.cat(blocks, dim=1))  # (S, P)

    def feature_change(vector_change: Tensor) -> Tensor:
        """Change (S, P) of the summed features for a change (E, 3) of the edge vectors."""
        (scalar_change,) = torch.autograd.grad(
            pulled_back, cotangent, vector_change, retain_graph=True
        )
        return summed_by_element(slope * (scalar_change @ weight.T))

    summed = summed_by_element(phi.detach().double())
    num_features = summed.shape[1]
    forces = vectors.new_zeros(num_features, batch.num_atoms, 3)
    for atoms in _one_of_each_structure(batch, moved):
        is_moved = vectors.new_zeros(batch.num_atoms)
        is_moved[atoms] = 1.0
        sign_of_edge = is_moved[sender] - is_moved[receiver]  # (E,)
        for axis in range(3):
            vector_change = torch.zeros_like(vectors)
            vector_change[:, axis] = sign_of_edge
            # only one atom of a structure moved, so the change of the structure is due to it
            change = feature_change(vector_change)[batch.structure_index[atoms]]
            forces[:, atoms, axis] = -change.T

    stress = vectors.new_full((num_features, batch.num_structures, 3, 3), torch.nan)
    if torch.isfinite(batch.labels["stress"]).any():
        periodic = batch.pbc.all(1)
        volume = torch.linalg.det(batch.cell[periodic]).abs().to(vectors).unsqueeze(1)
        for row, column in VOIGT:
            strain = vectors.new_zeros(3, 3)
            strain[row, column] += 0.5
            strain[column, row] += 0.5
            change = feature_change(vectors.detach() @ strain)[periodic] / volume
            stress[:, periodic, row, column] = change.T
            stress[:, periodic, column, row] = change.T
    return summed, forces, stress


def _one_of_each_structure(batch: Batch, moved: np.ndarray) -> list[Tensor]:
    """The moved atoms in sets that hold at most one atom of each structure."""
    atoms = np.flatnonzero(moved)
    structure_of_atom = batch.structure_index.cpu().numpy()[atoms]
    # the place of each atom among the moved atoms of its structure; structures are contiguous
    first = np.searchsorted(structure_of_atom, structure_of_atom)
    place = np.arange(len(atoms)) - first
    device = batch.structure_index.device
    return [
        torch.as_tensor(atoms[place == index], device=device)
        for index in range(place.max(initial=-1) + 1)
    ]
