"""Derivative couplings of electronic states as labels, in addition to their energies.

    d_kl = <k| d/dr l>,   h_kl = v_k . dH/dr v_l = (E_l - E_k) d_kl

Quantum-chemistry programs print d, which diverges where two energies meet. h stays finite, so h is
compared. The entries of H are linear in the weights, and so are their derivatives. The rows of both
come from the features of the atoms.

The sign of a state is arbitrary, and a program chooses it anew at each geometry. The error of a
prediction h for a label l is therefore the smaller one of |h - l| and |h + l|.

Shapes: S structures, N atoms of a structure, F features, P columns, K states, C = K (K - 1) / 2
pairs of states in the order 01, 02, 12 and so on, M entries of the matrix, R = 3 N summed over
structures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ...core.torch_modes import own_modes
from ...model_zoo.heads.description import Features
from ...model_zoo.heads.features import batch_of
from ...model_zoo.heads.slopes import Place
from ...model_zoo.heads.states import States
from ...model_zoo.heads.symmetric import symmetric
from ...model_zoo.potential.potential import Potential


@dataclass(frozen=True)
class CouplingRows:
    """Labels and linear rows for the derivatives of the matrix, one for each coordinate."""

    structure: Tensor
    """(R,) int64: index of the structure among the rows of energies"""
    slopes: Tensor
    """(R, P): derivatives of the rows of energies with respect to the coordinate"""
    labels: Tensor
    """(R, C): h, in the unit of the energies per A"""

    def of_structures(self, places: np.ndarray) -> CouplingRows:
        """The rows of the structures at the indices `places`, which are renumbered from 0."""
        order = {int(place): index for index, place in enumerate(places)}
        kept = [row for row, own in enumerate(self.structure.tolist()) if own in order]
        renumbered = [order[own] for own in self.structure[kept].tolist()]
        return CouplingRows(
            torch.tensor(renumbered, dtype=torch.long), self.slopes[kept], self.labels[kept]
        )

    def scaled(self, factor: float) -> CouplingRows:
        """A copy with scaled labels, for energies that are scaled by the same factor."""
        return CouplingRows(self.structure, self.slopes, self.labels * factor)

    def misfit(self, weights: Tensor, vectors: Tensor) -> Tensor:
        """Sum of squared errors for weights (P, M), relative to the sum of squared labels.

        The signs of couplings are chosen to make it smallest. Differentiable; zero without rows.
        vectors: (S, K, K) eigenvectors of the matrices of the structures.
        """
        if not len(self.structure):
            return weights.new_zeros(())
        of_matrix = symmetric(self.slopes @ weights)  # (R, K, K)
        own = vectors[self.structure]
        in_states = own.mT @ of_matrix @ own
        first, second = pairs_of_states(in_states.shape[-1])
        predicted = in_states[:, first, second]  # (R, C)

        num_structures = len(vectors)
        overlap = predicted.new_zeros(num_structures, predicted.shape[1])
        overlap = overlap.index_add(0, self.structure, predicted * self.labels)
        squares = predicted.square().sum() + self.labels.square().sum() - 2 * overlap.abs().sum()
        found: Tensor = squares / self.labels.square().sum().clamp(min=torch.finfo().tiny)
        return found


def pairs_of_states(num_states: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the first (C,) and second state (C,) of each pair."""
    first, second = np.triu_indices(num_states, 1)
    # in the order 01, 02, 12, 03, ..., the index of a pair does not depend on the number of states
    order = np.lexsort((first, second))
    return first[order], second[order]


@own_modes()
def coupling_rows(
    potential: Potential,
    frames: Sequence[Atoms],
    labels: Sequence[np.ndarray | None],
    features: Features,
    size: np.ndarray,
    num_elements: int,
) -> CouplingRows | None:
    """Coupling rows of the structures that have couplings; None if none has.

    labels: for each structure h (C, N, 3) in eV/A, or None.
    size: (F,) by which features are divided.
    num_elements: number of element columns after the features; their derivatives are zero.
    """
    structure = []
    slopes = []
    wanted = []
    for place, (atoms, own) in enumerate(zip(frames, labels, strict=True)):
        if own is None:
            continue
        where = Place(potential, batch_of(potential, [atoms]))
        summed = where.carried(features).invariants.sum(0)
        gradient = where.gradients(summed).flatten(1).T.cpu().numpy() / size  # (3 N, F)
        slopes.append(np.hstack([gradient, np.zeros((len(gradient), num_elements))]))
        wanted.append(own.reshape(len(own), -1).T)
        structure.append(np.full(len(gradient), place))
    if not structure:
        return None
    return CouplingRows(
        torch.as_tensor(np.concatenate(structure)),
        torch.as_tensor(np.concatenate(slopes)),
        torch.as_tensor(np.concatenate(wanted)),
    )


def coupling_figures(states: Sequence[States], labels: Sequence[np.ndarray]) -> dict[str, float]:
    """Errors of predicted couplings against labels h (C, N, 3) in eV/A.

    `coupling_mae` is the MAE of components, and `coupling_size` the mean size of the labels. The
    sign of each coupling is chosen to make its error smallest.
    """
    errors = []
    for own, wanted in zip(states, labels, strict=True):
        first, second = pairs_of_states(len(own.energies))
        predicted = own.couplings[first, second]
        overlap = (predicted * wanted).sum(axis=(1, 2), keepdims=True)
        errors.append(np.abs(np.where(overlap < 0, -predicted, predicted) - wanted).ravel())
    sizes = np.concatenate([np.abs(wanted).ravel() for wanted in labels])
    return {
        "coupling_mae": float(np.concatenate(errors).mean()),
        "coupling_size": float(sizes.mean()),
    }
