"""Energies and their derivatives: from edge vectors to forces and stress.

Shapes: N atoms, S structures, E edge slots, d features of the readout.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ...data_pipelines.batch import Batch
from ..network.tiles import Tiles
from .charges import CoulombTerm


# Why a potential is called: for predictions under `torch.no_grad`, or for training steps.
Purpose = Literal["inference", "training"]


class EdgeSlopes(NamedTuple):
    """Energies from the network and readout, and their derivatives with respect to edge vectors."""

    energies: Tensor  # (N,) eV
    slopes: Tensor  # (E, 3) eV/A, derivatives of the total energy with respect to edge vectors
    hidden: Tensor | None  # (N, d) outputs of the readout's hidden layer; None if not computed


class InteractionEnergies(Protocol):
    """A network with its readout."""

    def interaction(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> tuple[Tensor, Tensor]:
        """Return energies (N,) in eV and outputs of the readout's hidden layer (N, d)."""
        ...


class SlopeFunction(Protocol):
    """A replacement for `energies_and_slopes` of one network, for example a compiled one."""

    @property
    def tile_size(self) -> int | None:
        """The number of slots per tile that the function needs; None if any number will do."""
        ...

    def __call__(
        self, atomic_numbers: Tensor, head: Tensor, vectors: Tensor, tiles: Tiles
    ) -> EdgeSlopes:
        """Atomic numbers (N,), heads (N,) and vectors (E, 3) in A -> energies and slopes."""
        ...


def energies_and_slopes(
    network: InteractionEnergies,
    atomic_numbers: Tensor,
    head: Tensor,
    vectors: Tensor,
    tiles: Tiles,
    *,
    keep_graph: bool,
) -> EdgeSlopes:
    """Compute energies of the atoms, and their slopes by automatic differentiation.

    With `keep_graph`, the slopes can be differentiated again, as training on forces needs.
    """
    with torch.enable_grad():
        vectors = vectors.detach().requires_grad_()
        energies, hidden = network.interaction(atomic_numbers, head, vectors, tiles)
        (slopes,) = torch.autograd.grad(energies.sum(), vectors, create_graph=keep_graph)
    return EdgeSlopes(energies, slopes, hidden)


def forces_and_stress(
    slopes: Tensor,
    vectors: Tensor,
    tiles: Tiles,
    batch: Batch,
    coulomb: CoulombTerm | None = None,
) -> tuple[Tensor, Tensor]:
    """Forces (N, 3) in eV/A and stress (S, 3, 3) in eV/A^3 from the slopes dE/dv.

    For an edge vector v = r_j - r_i from receiver i to sender j:

        F_j = -dE/dv,  F_i = +dE/dv,  stress = sum_v (dE/dv) v^T / V

    `coulomb` adds the contributions of a Coulomb energy at fixed charges. The net force is zero by
    construction. The stress of a structure that is not periodic in all three directions is NaN.
    """
    num_atoms = batch.num_atoms
    receiver = tiles.slot_receiver
    forces = slopes.new_zeros(num_atoms, 3)
    forces = forces.index_add(0, receiver, slopes).index_add(0, tiles.sender, -slopes)

    outer = (slopes.unsqueeze(2) * vectors.unsqueeze(1)).flatten(1)  # (E, 9)
    virial = outer.new_zeros(num_atoms, 9).index_add(0, receiver, outer)
    virial = batch.sum_over_atoms(virial).view(-1, 3, 3)
    if coulomb is not None:
        forces = forces - coulomb.by_positions.to(forces.dtype)
        virial = virial + coulomb.by_strain.to(virial.dtype)

    # NaN is inserted after the division. Before it, NaN would spread to the gradients of structures
    # that have no stress label.
    periodic = batch.pbc.all(1).view(-1, 1, 1)
    volume = torch.linalg.det(batch.cell).abs().view(-1, 1, 1)
    volume = torch.where(periodic, volume, 1.0).to(virial.dtype)
    stress = 0.5 * (virial + virial.transpose(1, 2)) / volume
    return forces, torch.where(periodic, stress, torch.nan)
