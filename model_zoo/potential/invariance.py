"""The gate that a model passes before it is published: turned, moved, renumbered, wrapped, it predicts the same."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from scipy.spatial.transform import Rotation

from ...data_pipelines.batch import Batch
from ...data_pipelines.structure import Structure
from ..package.manifest import BadModelError
from .potential import Potential


# relative to the largest force or the energy's spread over atoms; trained float32 models stay below a tenth of it
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}


def check_invariance(potential: Potential, elements: dict[str, list[str]], seed: int = 0) -> float:
    """Largest relative error of energy and forces over all heads; BadModelError when it is above the tolerance.

    A small random cell of up to four of the head's elements is rotated with its forces, inverted, translated,
    renumbered, and has one atom moved by a lattice vector.
    """
    rng, worst = np.random.default_rng(seed), 0.0
    dtype = next(potential.parameters()).dtype
    for level, symbols in elements.items():
        if level not in potential.config.levels_of_theory or not symbols:
            continue
        atoms = random_cell(rng, symbols)
        energy, forces = _predict(potential, atoms, level)
        scale = max(float(np.abs(forces).max()), 1e-3)
        for name, changed, turn, order in changes(rng, atoms):
            other_energy, other_forces = _predict(potential, changed, level)
            error = max(
                abs(other_energy - energy) / (len(atoms) * scale),
                float(np.abs(other_forces - (forces @ turn.T)[order]).max()) / scale,
            )
            worst = max(worst, error)
            if not error < TOLERANCE[dtype]:
                raise BadModelError(
                    f"{level}: predictions change by {error:.1e} of the largest force under {name}"
                )
    return worst


def random_cell(rng: np.random.Generator, symbols: list[str]) -> Atoms:
    """A skewed, rattled cell of four atoms drawn from `symbols`, near the distances of their covalent radii."""
    numbers = [chemical_symbols.index(s) for s in rng.choice(symbols, 4)]
    spacing = 2.2 * float(np.mean(covalent_radii[numbers]))
    grid = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]]) * spacing / np.sqrt(2)
    cell = np.eye(3) * np.sqrt(2) * spacing + rng.normal(0, 0.05 * spacing, (3, 3))
    return Atoms(numbers, grid + rng.normal(0, 0.05 * spacing, (4, 3)), cell=cell, pbc=True)


def changes(
    rng: np.random.Generator, atoms: Atoms
) -> list[tuple[str, Atoms, np.ndarray, np.ndarray]]:
    """Name, changed cell, what turns its forces, and the order of its atoms."""
    same, identity = np.arange(len(atoms)), np.eye(3)
    rotation = Rotation.random(random_state=rng).as_matrix()
    turned, inverted, moved, wrapped = (atoms.copy() for _ in range(4))
    for copy, turn in ((turned, rotation), (inverted, -identity)):
        copy.set_cell(atoms.cell.array @ turn.T)
        copy.positions = atoms.positions @ turn.T
    moved.positions += rng.normal(0, 3, 3)
    wrapped.positions[1] += atoms.cell[0] - 2 * atoms.cell[2]
    order = rng.permutation(len(atoms))
    return [
        ("rotation", turned, rotation, same),
        ("inversion", inverted, -identity, same),
        ("translation", moved, identity, same),
        ("a lattice vector", wrapped, identity, same),
        ("renumbering", atoms[order], identity, order),
    ]


def _predict(potential: Potential, atoms: Atoms, level: str) -> tuple[float, np.ndarray]:
    """Interaction energy, which E0 cannot drown, and forces."""
    structure = Structure.from_atoms(atoms, level, "gate")
    parameter = next(potential.parameters())
    levels = potential.config.levels_of_theory
    batch = Batch.from_structure(structure, potential.config.cutoff, levels, parameter.dtype)
    with torch.no_grad():
        out = potential(batch.to(parameter.device))
    e0 = potential.e0[levels.index(level), batch.atomic_numbers].sum()
    return float(out.energy - e0), out.forces.cpu().double().numpy()
