"""Evaluate the analytic physics of a structure: energy, forces, stress and charges.

Units: A, eV, eV/A, eV/A^3 and e. The stress is tensile-positive, as in the rest of the package.
Forces and stress are derivatives of the energy by automatic differentiation, in float64.
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
    """Analytic energy, forces, stress and charges of one structure of N atoms."""

    energy: float
    """eV"""
    atom_energies: np.ndarray
    """(N,) eV; they add up to the energy"""
    forces: np.ndarray
    """(N, 3) eV/A"""
    stress: np.ndarray | None
    """(3, 3) eV/A^3; None unless all three directions are periodic"""
    charges: np.ndarray | None
    """(N,) e; None without a Coulomb term"""


class Physics:
    """The sum of all terms of a config."""

    def __init__(self, config: PhysicsConfig) -> None:
        """Raises MissingPackageError if a term needs a package that is not installed."""
        self.config = config
        self._dispersion = None
        if config.dispersion is not None:
            self._dispersion = Dispersion(config.dispersion)
        self._coulomb = None
        if config.coulomb is not None:
            self._coulomb = Coulomb(config.coulomb)

    # autograd must work even if the caller has switched gradients off
    @own_modes()
    def of(
        self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> PhysicsResult:
        """Compute the energy of one structure and its derivatives.

        numbers: atomic numbers, (N,). positions (N, 3) and cell (3, 3) in A, pbc (3,).

        Raises PhysicsError if a term does not apply to the structure, and GeometryError if the
        structure cannot be searched for neighbours.
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
            # the energy of an isolated atom depends on neither positions nor strain
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
