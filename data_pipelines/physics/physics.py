"""Physics beside a model: a structure gives energy, forces, stress and charges.

Units: A, eV, eV/A, eV/A^3 and e; a stress is tensile-positive, as everywhere. Forces and stress are
derivatives of the energy by automatic differentiation, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.torch_modes import own_modes
from .config import PhysicsConfig
from .coulomb import Coulomb
from .dispersion import Dispersion


@dataclass(frozen=True)
class PhysicsResult:
    """What the physics says of one structure of N atoms."""

    energy: float
    """eV"""
    atom_energies: np.ndarray
    """(N,) eV, which add up to the energy"""
    forces: np.ndarray
    """(N, 3) eV/A"""
    stress: np.ndarray | None
    """(3, 3) eV/A^3; None unless all three directions are periodic"""
    charges: np.ndarray | None
    """(N,) e; None without a Coulomb term"""


class Physics:
    """All terms of a config together."""

    def __init__(self, config: PhysicsConfig) -> None:
        """Raises MissingPackageError where a term needs a package that is not installed."""
        self.config = config
        self._dispersion = None
        if config.dispersion is not None:
            self._dispersion = Dispersion(config.dispersion)
        self._coulomb = None
        if config.coulomb is not None:
            self._coulomb = Coulomb(config.coulomb)

    # forces are derivatives, whatever mode the caller is in
    @own_modes()
    def of(
        self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> PhysicsResult:
        """Energy and derivatives of one structure.

        numbers (N,), positions (N, 3) and cell (3, 3) in A, pbc (3,).

        Raises PhysicsError for a structure that a term has no answer for, and GeometryError for one
        whose neighbours cannot be searched.
        """
        numbers = np.asarray(numbers, np.int64)
        pbc = np.asarray(pbc, bool)
        with torch.enable_grad():
            at_rest = _leaf(positions)
            strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
            deformation = torch.eye(3, dtype=torch.float64) + strain
            strained = at_rest @ deformation
            strained_cell = torch.tensor(np.asarray(cell, np.float64)) @ deformation
            energies, charges = self._energies(numbers, strained, strained_cell, pbc)
            # an atom alone in a molecule depends on nothing
            gradient, by_strain = torch.autograd.grad(
                energies.sum(), [at_rest, strain], allow_unused=True, materialize_grads=True
            )

        stress = None
        if pbc.all():
            volume = abs(np.linalg.det(np.asarray(cell, np.float64)))
            stress = (0.5 * (by_strain + by_strain.T) / volume).numpy()
        return PhysicsResult(
            energy=float(energies.detach().sum()),
            atom_energies=energies.detach().numpy(),
            forces=-gradient.numpy(),
            stress=stress,
            charges=None if charges is None else charges.detach().numpy(),
        )

    def _energies(
        self, numbers: np.ndarray, positions: Tensor, cell: Tensor, pbc: np.ndarray
    ) -> tuple[Tensor, Tensor | None]:
        energies = 0.0 * positions.sum(1)
        charges = None
        if self._dispersion is not None:
            energies = energies + self._dispersion(numbers, positions, cell, pbc)
        if self._coulomb is not None:
            own, charges = self._coulomb(numbers, positions, cell, pbc)
            energies = energies + own
        return energies, charges


def _leaf(array: np.ndarray) -> Tensor:
    return torch.tensor(np.asarray(array, np.float64), requires_grad=True)
