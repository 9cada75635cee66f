"""Physics of ASE's structures, and its derivatives by finite differences."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from evenfield.data_pipelines.physics.config import PhysicsConfig
from evenfield.data_pipelines.physics.physics import Physics, PhysicsResult


STEP = 2e-3  # A, and the same of a strain
# weights of the fourth-order central difference, by steps
STENCIL = {1: 8 / 12, -1: -8 / 12, 2: -1 / 12, -2: 1 / 12}


def physics_of_atoms(config: PhysicsConfig, atoms: Atoms) -> PhysicsResult:
    """Energy, forces, stress and charges of a structure."""
    return Physics(config).of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)


def difference_of_forces(config: PhysicsConfig, atoms: Atoms) -> float:
    """Largest difference from minus the slope of the energy, of the first two atoms, eV/A."""
    forces = physics_of_atoms(config, atoms).forces
    largest = 0.0
    for atom in range(2):
        for axis in range(3):
            slope = 0.0
            for steps, weight in STENCIL.items():
                moved = atoms.copy()
                moved.positions[atom, axis] += steps * STEP
                slope += weight * physics_of_atoms(config, moved).energy / STEP
            largest = max(largest, abs(forces[atom, axis] + slope))
    return largest


def difference_of_stress(config: PhysicsConfig, atoms: Atoms) -> float:
    """Largest difference from the slope of the energy by strain over the volume, eV/A^3."""
    stress = physics_of_atoms(config, atoms).stress
    assert stress is not None
    largest = 0.0
    for row, column in ((0, 0), (2, 2), (0, 1), (1, 2)):
        slope = 0.0
        for steps, weight in STENCIL.items():
            strain = np.zeros((3, 3))
            strain[row, column] += 0.5 * steps * STEP
            strain[column, row] += 0.5 * steps * STEP
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            slope += weight * physics_of_atoms(config, strained).energy / STEP
        largest = max(largest, abs(stress[row, column] - slope / atoms.get_volume()))
    return largest
