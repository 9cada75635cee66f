"""A molecule in a uniform electric field, from its dipole moment and polarizability.

    E(R, F) = E(R) - mu(R) . F - F . alpha(R) . F / 2
    mu(R, F) = -dE/dF = mu(R) + alpha(R) . F

mu is the answer of a dipole head, alpha that of a polarizability head, or zero without one. Forces
are derivatives of exactly these answers. A field F in V/A times a dipole in e*A is an energy in eV.

Buckingham, Adv. Chem. Phys. 12, 107 (1967); atomic polar tensors: Person and Newton, J. Chem. Phys.
61, 1040 (1974).

Shapes: N atoms, E edge slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ..network.interface import CarriedFeatures
from ..network.tiles import Tiles
from ..potential.potential import Potential
from .description import Features, HeadError, Kind
from .features import edge_features
from .head import Head, without_dipole
from .record import REMEDY


@dataclass(frozen=True)
class FieldTerms:
    """What a field adds to a molecule, and the moments in it."""

    energy: float
    """eV"""
    forces: np.ndarray
    """(N, 3) in eV/A"""
    dipole: np.ndarray
    """(3,) in e*A, with what the field induces"""
    polarizability: np.ndarray | None
    """(3, 3) in e*A^2/V; None without a head of it"""


@dataclass(frozen=True)
class FieldHeads:
    """The heads that say how a molecule responds to a field."""

    dipole: Head
    polarizability: Head | None

    @classmethod
    def among(cls, heads: Iterable[Head]) -> FieldHeads:
        """Those of some heads. Raises HeadError without a dipole head, and for two of a kind."""
        chosen = list(heads)
        dipole = _only(chosen, "dipole")
        if dipole is None:
            raise HeadError("a field acts on a dipole, and no head gives one", remedy=REMEDY)
        return cls(dipole, _only(chosen, "polarizability"))

    @own_modes()
    def terms(
        self, potential: Potential, batch: Batch, atoms: Atoms, field: np.ndarray
    ) -> FieldTerms:
        """What the field (3,) in V/A adds to one molecule, whose batch is given.

        Raises HeadError for elements that a head was fitted without, and for a periodic or charged
        structure.
        """
        refuse_in_field(atoms)
        heads = [self.dipole] if self.polarizability is None else [self.dipole, self.polarizability]
        place = _Place(potential, batch)
        answers = [place.answer(head, atoms) for head in heads]
        strength = torch.as_tensor(field, dtype=torch.float64, device=batch.positions.device)
        moment, *tensors = answers
        with torch.enable_grad():
            energy = -moment @ strength
            dipole = moment.detach()
            for tensor in tensors:
                induced = tensor @ strength
                energy = energy - 0.5 * induced @ strength
                dipole = dipole + induced.detach()
        return FieldTerms(
            energy=float(energy.detach()),
            forces=-place.gradient(energy).cpu().numpy(),
            dipole=dipole.cpu().numpy(),
            polarizability=tensors[0].detach().cpu().numpy() if tensors else None,
        )


@own_modes()
def polar_tensors(potential: Potential, batch: Batch, atoms: Atoms, head: Head) -> np.ndarray:
    """d mu_a / d r_ib of one molecule as (N, 3, 3): atom i, component a, direction b, in e.

    They are also called Born charges. Their sum over the atoms is zero for a neutral molecule,
    which can be moved without a change of its dipole moment.

    Raises what `FieldHeads.terms` raises.
    """
    refuse_in_field(atoms)
    place = _Place(potential, batch)
    moment = place.answer(head, atoms)
    rows = [place.gradient(component) for component in moment]
    found: np.ndarray = torch.stack(rows, dim=1).cpu().numpy()
    return found


def refuse_in_field(atoms: Atoms) -> None:
    """Raise HeadError for a structure whose energy in a field has no meaning."""
    reason = without_dipole(atoms)
    if reason is not None:
        raise HeadError(f"in a field: {reason}", remedy="take a neutral molecule")


def _only(heads: list[Head], kind: Kind) -> Head | None:
    """The head of a kind; None without one. Raises HeadError for two."""
    found = [head for head in heads if head.description.kind == kind]
    if len(found) > 1:
        names = " and ".join(head.description.name for head in found)
        example = found[0].description.name
        raise HeadError(
            f"the heads {names} both give a {kind}",
            remedy=f'name those to use, as in heads=["{example}"]',
        )
    return found[0] if found else None


class _Place:
    """One molecule, whose positions and edge vectors answers can be differentiated by."""

    def __init__(self, potential: Potential, batch: Batch) -> None:
        self.potential = potential
        self.numbers = batch.atomic_numbers
        self.positions = batch.positions.detach().requires_grad_()
        self.vectors: Tensor
        self.tiles: Tiles
        self.vectors, self.tiles = potential.edge_vectors(batch)
        self.features: dict[Features, CarriedFeatures] = {}

    def answer(self, head: Head, atoms: Atoms) -> Tensor:
        """What a head says, in float64, differentiable."""
        device = self.positions.device
        places = torch.as_tensor(head.places(atoms.numbers), device=device)
        name = head.description.features
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            if name not in self.features:
                self.features[name] = edge_features(
                    self.potential, self.numbers, self.vectors, self.tiles, name
                )
            return head.response(self.features[name], places, self.positions)

    def gradient(self, answer: Tensor) -> Tensor:
        """Derivatives (N, 3) of a number by the positions, in float64.

        An edge vector is r_sender - r_receiver. Charges also feel their positions themselves.
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
