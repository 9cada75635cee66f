"""The symmetry check that a model must pass before it is published."""

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


# Relative to the largest force. Trained float32 models stay below a tenth of their tolerance.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}

# Lower bound, in eV/A, of the force that errors are relative to.
SMALLEST_SCALE = 1e-3


def check_invariance(potential: Potential, elements: dict[str, list[str]], seed: int = 0) -> float:
    """Return the largest relative symmetry error of energy and forces over all heads.

    For each head, a small random cell is made from up to four of its elements. The cell is rotated,
    inverted, translated and renumbered, and one atom is moved by a lattice vector. `elements` maps
    levels of theory to chemical symbols.

    Raises BadModelError if an error exceeds the tolerance.
    """
    rng = np.random.default_rng(seed)
    worst = 0.0
    tolerance = TOLERANCE[next(potential.parameters()).dtype]
    for level, symbols in elements.items():
        # without elements, there is nothing to build a cell from
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
    """A skewed, rattled periodic cell of four atoms drawn from `symbols`.

    Distances are close to the sums of covalent radii.
    """
    drawn = rng.choice(symbols, 4)
    numbers = []
    for symbol in drawn:
        numbers.append(chemical_symbols.index(symbol))

    # 10 % longer than bonds, so that rattled atoms do not overlap
    mean_radius = float(np.mean(covalent_radii[numbers]))
    spacing = 2.2 * mean_radius

    # an fcc cell
    sites = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
    corners = sites * spacing / np.sqrt(2)
    cube = np.eye(3) * np.sqrt(2) * spacing

    # without noise, all forces vanish by symmetry and nothing is tested
    spread = 0.05 * spacing
    cell = cube + rng.normal(0, spread, (3, 3))
    positions = corners + rng.normal(0, spread, (4, 3))
    return Atoms(numbers, positions, cell=cell, pbc=True)


def changes(
    rng: np.random.Generator, atoms: Atoms
) -> list[tuple[str, Atoms, np.ndarray, np.ndarray]]:
    """Changes that must leave the energy unchanged.

    Each entry holds a name, the changed cell, the matrix (3, 3) that rotates its forces, and the
    new order of its atoms.
    """
    same_order = np.arange(len(atoms))
    identity = np.eye(3)
    rotation = Rotation.random(random_state=rng).as_matrix()

    turned = _turned(atoms, rotation)
    inverted = _turned(atoms, -identity)

    # by a few Angstrom, so that atoms leave the cell
    moved = atoms.copy()
    moved.positions += rng.normal(0, 3, 3)

    # one atom moves to another periodic image: the crystal stays the same
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
    """A copy whose cell and positions are transformed by an orthogonal `matrix` (3, 3)."""
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ matrix.T)
    copy.positions = atoms.positions @ matrix.T
    return copy


def _predict(potential: Potential, atoms: Atoms, level: str) -> tuple[float, np.ndarray]:
    """Energy in eV without reference energies, and forces (N, 3) in eV/A.

    Reference energies are so large that they would hide the errors.
    """
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
