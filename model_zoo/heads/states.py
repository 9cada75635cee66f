"""Coupled electronic states: their energies are the eigenvalues of a small symmetric matrix.

    H_ab = sum_i weight_ab . phi_i + bias_ab[z_i]       entries that are smooth in the positions
    H v_k = E_k v_k                                     energies of the states, the lowest first
    F_k   = -v_k . dH/dr v_k                            forces of a state
    h_kl  = v_k . dH/dr v_l                             coupling of two states
    d_kl  = <k|d/dr l> = h_kl / (E_l - E_k)             derivative coupling

Where two surfaces come close, their energies have kinks, but H is smooth. H is therefore learned,
in a basis of diabatic states that the fit finds. Forces and h need only dH/dr, never derivatives of
the eigenvectors, and stay finite where two energies meet. d diverges there.

Domcke, Yarkony, Koeppel, Conical Intersections (2004); Koeppel, Domcke, Cederbaum, Adv. Chem. Phys.
57, 59 (1984).

Limitation: the entries of H are invariant under permutations of like atoms. An intersection that
the symmetry of three like atoms requires, as in H3, is therefore only approximated by an avoided
crossing.

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
    """The electronic states of one structure."""

    energies: np.ndarray
    """E (K,) in eV, the lowest first."""
    forces: np.ndarray
    """(K, N, 3) in eV/A."""
    couplings: np.ndarray
    """h (K, K, N, 3) in eV/A, symmetric in the states; the diagonal is minus the forces."""
    matrix: np.ndarray
    """H (K, K) in eV."""
    vectors: np.ndarray
    """v (K, K), with state k in column k. The largest entry of a column, in magnitude, is
    positive."""

    def derivative_couplings(self) -> np.ndarray:
        """d (K, K, N, 3) in 1/A, antisymmetric; infinite or NaN if two energies are equal."""
        gap = self.energies[None, :] - self.energies[:, None]
        np.fill_diagonal(gap, np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            found: np.ndarray = self.couplings / gap[:, :, None, None]
        return found


@own_modes()
def states_of(potential: Potential, batch: Batch, atoms: Atoms, head: Head) -> States:
    """The electronic states of one structure. `batch` must hold only this structure.

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
