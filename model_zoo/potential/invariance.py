"""The check that a model passes before it is published: its predictions respect all symmetries."""

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


# Relative to the largest force. Trained float32 models stay below a tenth of it.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}

# Below this largest force, eV/A, errors are relative to it instead.
SMALLEST_SCALE = 1e-3


def check_invariance(potential: Potential, elements: dict[str, list[str]], seed: int = 0) -> float:
    """The largest relative error of energy and forces over all heads.

    A small random cell of up to four of each head's elements is rotated, inverted, translated and
    renumbered, and has one atom moved by a lattice vector. `elements` maps the levels of theory to
    chemical symbols.

    Raises BadModelError when an error is above the tolerance.
    """
    rng = np.random.default_rng(seed)
    worst = 0.0
    tolerance = TOLERANCE[next(potential.parameters()).dtype]
    for level, symbols in elements.items():
        # a level without elements has nothing to build a cell of
        if level not in potential.config.levels_of_theory or not symbols:
            continue

        atoms = random_cell(rng, symbols)
        energy, forces = _predict(potential, atoms, level)
        scale = max(float(np.abs(forces).max()), SMALLEST_SCALE)

        for name, changed, rotation, order in changes(rng, atoms):
            other_energy, other_forces = _predict(potential, changed, level)
            expected_forces = (forces @ rotation.T)[order]
            force_differences = np.abs(other_forces - expected_forces)

            energy_error = abs(other_energy - energy) / (len(atoms) * scale)
            force_error = float(force_differences.max()) / scale
            error = max(energy_error, force_error)
            worst = max(worst, error)

            # `not <` rather than `>=`: NaN must be refused too
            if not error < tolerance:
                raise BadModelError(
                    f"{level}: predictions change by {error:.1e} of the largest force under {name}"
                )
    return worst


def random_cell(rng: np.random.Generator, symbols: list[str]) -> Atoms:
    """A skewed, rattled cell of four atoms drawn from `symbols`.

    Distances are near the sums of covalent radii.
    """
    drawn = rng.choice(symbols, 4)
    numbers = []
    for symbol in drawn:
        numbers.append(chemical_symbols.index(symbol))

    # a tenth longer than bonds, so that rattled atoms do not overlap
    mean_radius = float(np.mean(covalent_radii[numbers]))
    spacing = 2.2 * mean_radius

    # an fcc cell
    sites = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
    corners = sites * spacing / np.sqrt(2)
    cube = np.eye(3) * np.sqrt(2) * spacing

    # without noise, symmetry makes all forces vanish, and nothing is tested
    spread = 0.05 * spacing
    cell = cube + rng.normal(0, spread, (3, 3))
    positions = corners + rng.normal(0, spread, (4, 3))
    return Atoms(numbers, positions, cell=cell, pbc=True)


def changes(
    rng: np.random.Generator, atoms: Atoms
) -> list[tuple[str, Atoms, np.ndarray, np.ndarray]]:
    """Changes that leave the energy as it is.

    For each: a name, the changed cell, the matrix that its forces are turned by, and the order of
    its atoms.
    """
    same_order = np.arange(len(atoms))
    identity = np.eye(3)
    rotation = Rotation.random(random_state=rng).as_matrix()

    turned = _turned(atoms, rotation)
    inverted = _turned(atoms, -identity)

    # by some Angstrom, so that atoms leave the cell
    moved = atoms.copy()
    moved.positions += rng.normal(0, 3, 3)

    # one atom moves to another image of the cell: the crystal stays the same
    wrapped = atoms.copy()
    wrapped.positions[1] += atoms.cell[0] - 2 * atoms.cell[2]

    order = rng.permutation(len(atoms))
    return [
        ("rotation", turned, rotation, same_order),
        ("inversion", inverted, -identity, same_order),
        ("translation", moved, identity, same_order),
        ("a lattice vector", wrapped, identity, same_order),
        ("renumbering", atoms[order], identity, order),
    ]


def _turned(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    """A copy with its cell and positions multiplied by an orthogonal `matrix` (3, 3)."""
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ matrix.T)
    copy.positions = atoms.positions @ matrix.T
    return copy


def _predict(potential: Potential, atoms: Atoms, level: str) -> tuple[float, np.ndarray]:
    """Energy without reference energies, next to which errors would be lost, and forces."""
    structure = Structure.from_atoms(atoms, level, "invariance")
    parameter = next(potential.parameters())
    levels = potential.config.levels_of_theory
    batch = Batch.from_structure(structure, potential.cutoff, levels, parameter.dtype)
    with torch.no_grad():
        prediction = potential(batch.to(parameter.device))

    head = levels.index(level)
    reference_energies = potential.e0[head, batch.atomic_numbers]
    energy = float(prediction.energy - reference_energies.sum())
    forces = prediction.forces.cpu().double()
    return energy, forces.numpy()
