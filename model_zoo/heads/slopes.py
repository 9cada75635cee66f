"""Derivatives of head predictions with respect to the positions of one structure.

Shapes: N atoms, E edge slots.
"""

from __future__ import annotations

import torch
from ase import Atoms
from torch import Tensor

from ...data_pipelines.batch import Batch
from ..network.interface import CarriedFeatures
from ..network.tiles import Tiles
from ..potential.potential import Potential
from .description import Features
from .features import edge_features, in_place_of
from .head import Head


class Place:
    """A structure with differentiable atomic features, which are computed once.

    Derivatives are taken with respect to edge vectors, and to positions where they enter directly.
    """

    def __init__(self, potential: Potential, batch: Batch) -> None:
        self.potential = potential
        self.numbers = batch.atomic_numbers
        self.positions = batch.positions.detach().requires_grad_()
        self.vectors: Tensor
        self.tiles: Tiles
        self.vectors, self.tiles = potential.edge_vectors(batch)
        self.features: dict[tuple[Features, int], CarriedFeatures] = {}

    def answer(self, head: Head, atoms: Atoms) -> Tensor:
        """The prediction of a head, float64 and differentiable.

        For states, it is the independent entries (M,) of their matrix. Raises HeadError for
        elements that the head was fitted without.
        """
        device = self.positions.device
        places = torch.as_tensor(head.places(atoms.numbers), device=device)
        carried = self.carried(head.description.features, head.own)
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            if head.description.kind == "states":
                numbers, _ = head.terms(carried, places)
                return numbers.sum(0)
            alone = torch.zeros_like(places)
            neutral = self.positions.new_zeros(1)
            answers = head.answers(carried, places, self.positions, alone, neutral)
            return answers[0] if head.description.per == "structure" else answers

    def carried(self, name: Features, own: Potential | None = None) -> CarriedFeatures:
        """Differentiable features of the atoms, cached. `own` is `Head.own`."""
        key = (name, id(own))
        if key not in self.features:
            potential = in_place_of(self.potential, own)
            with torch.enable_grad(), torch.autocast(self.positions.device.type, enabled=False):
                self.features[key] = edge_features(
                    potential, self.numbers, self.vectors, self.tiles, name
                )
        return self.features[key]

    def gradient(self, answer: Tensor) -> Tensor:
        """Derivatives (N, 3) of a number with respect to the positions, float64.

        An edge vector is r_sender - r_receiver. A dipole also depends on positions directly.
        """
        if not answer.requires_grad:
            return torch.zeros_like(self.positions)
        own, slopes = torch.autograd.grad(
            answer, [self.positions, self.vectors], retain_graph=True, allow_unused=True
        )
        gradient = torch.zeros_like(self.positions) if own is None else own
        if slopes is None:
            return gradient
        slopes = slopes.double()
        tiles = self.tiles
        gradient = gradient.index_add(0, tiles.sender, slopes)
        return gradient.index_add(0, tiles.slot_receiver, -slopes)

    def gradients(self, answer: Tensor) -> Tensor:
        """Derivatives (..., N, 3) of all components of a prediction (...)."""
        rows = [self.gradient(component) for component in answer.reshape(-1)]
        return torch.stack(rows).reshape(*answer.shape, *self.positions.shape)
