"""Coupled electronic states: a small symmetric matrix whose eigenvalues are their energies.

    H_ab = sum_i weight_ab . phi_i + bias_ab[z_i]       entries that are smooth in the positions
    H v_k = E_k v_k                                     energies of the states, the lowest first
    F_k   = -v_k . dH/dr v_k                            forces of a state
    h_kl  = v_k . dH/dr v_l                             coupling of two states
    d_kl  = <k|d/dr l> = h_kl / (E_l - E_k)             derivative coupling

Where two surfaces come close, their energies have sharp bends and H has none: so H is learned, in a
basis of diabatic states that the fit finds. Forces and h need only dH/dr and never a derivative of
the eigenvectors, and stay finite where two energies meet; d does not.

Domcke, Yarkony, Koeppel, Conical Intersections (2004); Koeppel, Domcke, Cederbaum, Adv. Chem. Phys.
57, 59 (1984). The entries are the same for all orders of like atoms, so an intersection that the
symmetry of three like atoms demands, as in H3, is only rounded.

Shapes: K states, N atoms, M = K (K + 1) / 2 entries of the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms

from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ..potential.potential import Potential
from .head import Head
from .slopes import Place
from .symmetric import symmetric


@dataclass(frozen=True)
class States:
    """The states of one structure."""

    energies: np.ndarray
    """E (K,) in eV, the lowest first"""
    forces: np.ndarray
    """(K, N, 3) in eV/A"""
    couplings: np.ndarray
    """h (K, K, N, 3) in eV/A: symmetric, and minus the forces on the diagonal"""
    matrix: np.ndarray
    """H (K, K) in eV"""
    vectors: np.ndarray
    """v (K, K): column k is state k. The largest entry of a column is positive."""

    def derivative_couplings(self) -> np.ndarray:
        """d (K, K, N, 3) in 1/A, antisymmetric; infinite or NaN where two energies are equal."""
        gap = self.energies[None, :] - self.energies[:, None]
        np.fill_diagonal(gap, np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            found: np.ndarray = self.couplings / gap[:, :, None, None]
        return found


@own_modes()
def states_of(potential: Potential, batch: Batch, atoms: Atoms, head: Head) -> States:
    """The states of one structure, whose batch is given.

    Raises HeadError for a head of another kind, and for elements that it was fitted without.
    """
    head.require_kind("states")
    place = Place(potential, batch)
    entries = place.answer(head, atoms)
    matrix = symmetric(entries.detach())
    slopes = symmetric(place.gradients(entries).movedim(0, -1)).movedim((-2, -1), (0, 1))

    energies, vectors = torch.linalg.eigh(matrix)
    largest = vectors.abs().argmax(0, keepdim=True)
    vectors = vectors * vectors.gather(0, largest).sign()
    couplings = torch.einsum("ak,abnx,bl->klnx", vectors, slopes, vectors)
    return States(
        energies=energies.cpu().numpy(),
        forces=-couplings.diagonal(dim1=0, dim2=1).movedim(-1, 0).cpu().numpy(),
        couplings=couplings.cpu().numpy(),
        matrix=matrix.cpu().numpy(),
        vectors=vectors.cpu().numpy(),
    )
