"""Salts with charges, physics of ASE's structures, and its derivatives by finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from evenfield.data_pipelines.physics.config import PhysicsConfig
from evenfield.data_pipelines.physics.physics import Physics, PhysicsResult


LEVEL = "salt"
# e, of sodium; chlorine has the opposite
CHARGE = 0.8
SALT = {"coulomb": {"charges": {"Na": CHARGE, "Cl": -CHARGE}}}
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


def salt(seed: int, size: tuple[int, int, int] = (1, 1, 1)) -> Atoms:
    """Strained and rattled rock salt without labels."""
    rng = np.random.default_rng(seed)
    atoms = bulk("NaCl", "rocksalt", a=5.6 * (1 + 0.03 * rng.normal()), cubic=True)
    atoms = atoms.repeat(size)
    atoms.rattle(0.1, seed=seed)
    return atoms


def label_salt(atoms: Atoms, config: PhysicsConfig | None) -> Atoms:
    """A copy labelled by a short-ranged potential and, on top, the physics."""
    labelled = atoms.copy()
    labelled.calc = LennardJones(sigma=2.5, epsilon=0.1, rc=5.0, smooth=True)
    labels: dict[str, Any] = {
        "energy": labelled.get_potential_energy(),
        "forces": labelled.get_forces(),
        "stress": labelled.get_stress(),
    }
    if config is not None:
        known = physics_of_atoms(config, atoms)
        assert known.stress is not None
        labels["energy"] += known.energy
        labels["forces"] = labels["forces"] + known.forces
        labels["stress"] = labels["stress"] + full_3x3_to_voigt_6_stress(known.stress)
    labelled.calc = SinglePointCalculator(labelled, **labels)
    return labelled


def write_salts(path: Path, number: int, config: PhysicsConfig | None, first: int = 0) -> Path:
    """A file of labelled salts; returns its path."""
    frames = [label_salt(salt(seed), config) for seed in range(first, first + number)]
    ase.io.write(path, frames)
    return path
