"""The derivatives of many features of the readout, from those of the network's scalars.

A hidden row j of the readout makes of the scalars s_i of an atom the feature

    phi_ij = silu(w_j . s_i + b_j)
    d phi_ij / dr_k = silu'(w_j . s_i + b_j) w_j . ds_i/dr_k

so that ds_i/dr_k, once known for an atom k and all i, gives every feature by a matrix product. One
pass per direction r_k then replaces one reverse pass per feature: fewer when a structure has fewer
coordinates than the readout has features. Structures do not see each other, so that one pass moves
an atom of each.

The pass is the derivative of a reverse pass by its cotangent, in which it is linear. It needs only
that the network can be differentiated twice, as every network can.

Shapes: N atoms, S structures, E edge slots, F scalars, d features, P features by element.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...data_pipelines.batch import Batch
from ...model_zoo.potential.potential import Potential


# Atoms of a structure whose forces are rows. More add time and hardly information: these are 144
# components, and features have the same weights for all atoms.
MOST_ATOMS_MOVED = 48
# The components of a symmetric tensor, each shear once.
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def moved_atoms(batch: Batch) -> np.ndarray:
    """Which atoms (N,) are moved: all of a structure, or MOST_ATOMS_MOVED drawn at random."""
    structure_index = batch.structure_index.cpu().numpy()
    moved = np.ones(len(structure_index), dtype=bool)
    for structure in np.flatnonzero(np.bincount(structure_index) > MOST_ATOMS_MOVED):
        atoms = np.flatnonzero(structure_index == structure)
        # the same atoms of a structure whatever else is in its batch
        drawn = np.random.default_rng(len(atoms)).permutation(atoms)
        moved[drawn[MOST_ATOMS_MOVED:]] = False
    return moved


def jacobian_by_directions(
    potential: Potential, batch: Batch, new_elements: list[int], moved: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """What `design_rows.feature_jacobian` returns; forces on atoms that are not moved are zero.

    The stress is computed only where a structure has one for a label, else it is NaN.
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

    def change(of_vectors: Tensor) -> Tensor:
        """Change (S, P) of the summed features for a change (E, 3) of the edge vectors."""
        (of_scalars,) = torch.autograd.grad(pulled_back, cotangent, of_vectors, retain_graph=True)
        return summed_by_element(slope * (of_scalars @ weight.T))

    summed = summed_by_element(phi.detach().double())
    num_features = summed.shape[1]
    forces = vectors.new_zeros(num_features, batch.num_atoms, 3)
    for atoms in _one_of_each_structure(batch, moved):
        is_moved = vectors.new_zeros(batch.num_atoms)
        is_moved[atoms] = 1.0
        along = is_moved[sender] - is_moved[receiver]  # (E,)
        for axis in range(3):
            of_vectors = torch.zeros_like(vectors)
            of_vectors[:, axis] = along
            of_structures = change(of_vectors)[batch.structure_index[atoms]]
            forces[:, atoms, axis] = -of_structures.T

    stress = vectors.new_full((num_features, batch.num_structures, 3, 3), torch.nan)
    if torch.isfinite(batch.labels["stress"]).any():
        periodic = batch.pbc.all(1)
        volume = torch.linalg.det(batch.cell[periodic]).abs().to(vectors).unsqueeze(1)
        for row, column in VOIGT:
            strain = vectors.new_zeros(3, 3)
            strain[row, column] += 0.5
            strain[column, row] += 0.5
            of_structures = change(vectors.detach() @ strain)[periodic] / volume
            stress[:, periodic, row, column] = of_structures.T
            stress[:, periodic, column, row] = of_structures.T
    return summed, forces, stress


def _one_of_each_structure(batch: Batch, moved: np.ndarray) -> list[Tensor]:
    """The moved atoms in sets that hold at most one atom of each structure."""
    structure_index = batch.structure_index.cpu().numpy()
    atoms = np.flatnonzero(moved)
    # the place of each among the moved atoms of its structure
    of_atoms = structure_index[atoms]
    first = np.searchsorted(of_atoms, of_atoms)
    place = np.arange(len(atoms)) - first
    device = batch.structure_index.device
    return [
        torch.as_tensor(atoms[place == index], device=device)
        for index in range(place.max(initial=-1) + 1)
    ]
