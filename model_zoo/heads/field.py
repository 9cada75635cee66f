"""A molecule in a uniform electric field, from its dipole moment and polarizability.

    E(R, F) = E(R) - mu(R) . F - F . alpha(R) . F / 2
    mu(R, F) = -dE/dF = mu(R) + alpha(R) . F

mu is the prediction of a dipole head, and alpha that of a polarizability head, or zero without one.
Forces are exact derivatives of this energy. A field F in V/A times a dipole in e*A is an energy in
eV.

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
    """The contributions of a field to energy and forces, and the moments in the field."""

    energy: float
    """In eV."""
    forces: np.ndarray
    """(N, 3) in eV/A."""
    dipole: np.ndarray
    """(3,) in e*A, including the part that the field induces."""
    polarizability: np.ndarray | None
    """(3, 3) in e*A^2/V; None without a polarizability head."""


@dataclass(frozen=True)
class FieldHeads:
    """The heads that determine the response of a molecule to a field."""

    dipole: Head
    polarizability: Head | None

    @classmethod
    def among(cls, heads: Iterable[Head]) -> FieldHeads:
        """Select the heads for a field. Raises HeadError without a dipole head, or for two."""
        chosen = list(heads)
        dipole = _only(chosen, "dipole")
        if dipole is None:
            raise HeadError("a field acts on a dipole, and no head gives one", remedy=REMEDY)
        return cls(dipole, _only(chosen, "polarizability"))

    @own_modes()
    def terms(
        self, potential: Potential, batch: Batch, atoms: Atoms, field: np.ndarray
    ) -> FieldTerms:
        """The contributions of `field` (3,) in V/A to one molecule.

        `batch` holds only this molecule. Raises HeadError for elements that a head was fitted
        without, and for a periodic or charged structure.
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
    """Atomic polar tensors d mu_a / d r_ib of one molecule, (N, 3, 3) in e.

    The axes are atom i, component a and direction b. The tensors are also called Born effective
    charges. Their sum over atoms is zero, because translating a neutral molecule does not change
    its dipole moment.

    Raises the errors of `FieldHeads.terms`.
    """
    return _slopes(potential, batch, atoms, head)


def raman_tensors(potential: Potential, batch: Batch, atoms: Atoms, head: Head) -> np.ndarray:
    """Raman tensors d alpha_ab / d r_ic of one molecule, (N, 3, 3, 3) in e*A/V.

    The axes are atom i, components a and b, and direction c. The tensors are minus the third
    derivatives of the energy, twice by the field and once by a position. They determine how
    strongly a vibration scatters light (Placzek, Handbuch der Radiologie 6, 205, 1934).

    Raises the errors of `FieldHeads.terms`.
    """
    return _slopes(potential, batch, atoms, head)


@own_modes()
def _slopes(potential: Potential, batch: Batch, atoms: Atoms, head: Head) -> np.ndarray:
    """Derivatives (N, ..., 3) of a head's prediction with respect to the positions."""
    refuse_in_field(atoms)
    place = Place(potential, batch)
    slopes = place.gradients(place.answer(head, atoms))
    found: np.ndarray = slopes.movedim(-2, 0).cpu().numpy()
    return found


def refuse_in_field(atoms: Atoms) -> None:
    """Raise HeadError for a structure whose energy in a field is not defined."""
    reason = without_dipole(atoms)
    if reason is not None:
        raise HeadError(f"in a field: {reason}", remedy="take a neutral molecule")


def _only(heads: list[Head], kind: Kind) -> Head | None:
    """The only head of a kind, or None. Raises HeadError if there are two."""
    found = [head for head in heads if head.description.kind == kind]
    if len(found) > 1:
        names = " and ".join(head.description.name for head in found)
        example = found[0].description.name
        raise HeadError(
            f"the heads {names} both give a {kind}",
            remedy=f'name those to use, as in heads=["{example}"]',
        )
    return found[0] if found else None
