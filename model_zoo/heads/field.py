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

from ...core.torch_modes import own_modes
from ...data_pipelines.batch import Batch
from ..potential.potential import Potential
from .description import HeadError, Kind
from .head import Head, without_dipole
from .record import REMEDY
from .slopes import Place


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
        place = Place(potential, batch)
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


def polar_tensors(potential: Potential, batch: Batch, atoms: Atoms, head: Head) -> np.ndarray:
    """d mu_a / d r_ib of one molecule as (N, 3, 3): atom i, component a, direction b, in e.

    They are also called Born charges. Their sum over the atoms is zero for a neutral molecule,
    which can be moved without a change of its dipole moment.

    Raises what `FieldHeads.terms` raises.
    """
    return _slopes(potential, batch, atoms, head)


def raman_tensors(potential: Potential, batch: Batch, atoms: Atoms, head: Head) -> np.ndarray:
    """d alpha_ab / d r_ic of one molecule as (N, 3, 3, 3): atom, components, direction, in e*A/V.

    They are minus third derivatives of the energy, twice by the field and once by a position, and
    say how strongly a vibration scatters light (Placzek, Handbuch der Radiologie 6, 205, 1934).

    Raises what `FieldHeads.terms` raises.
    """
    return _slopes(potential, batch, atoms, head)


@own_modes()
def _slopes(potential: Potential, batch: Batch, atoms: Atoms, head: Head) -> np.ndarray:
    """Derivatives of the answer of a head by the positions, (N, ..., 3)."""
    refuse_in_field(atoms)
    place = Place(potential, batch)
    slopes = place.gradients(place.answer(head, atoms))
    found: np.ndarray = slopes.movedim(-2, 0).cpu().numpy()
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
