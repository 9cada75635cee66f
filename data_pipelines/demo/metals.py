"""Periodic metals of the demo data, of the seven elements that EMT describes well.

The order of the random draws is part of the data, see `clusters.py`.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc100, fcc110, fcc111
from ase.data import reference_states

from .geometry import finished, mix_in


EMT_METALS = ["Al", "Cu", "Ni", "Ag", "Au", "Pd", "Pt"]

# ordered compound -> the lattice that it decorates, and the sites of the second element
COMPOUNDS = {"L1_0": ("fcc", [0, 1]), "L1_2": ("fcc", [0]), "B2": ("bcc", [0])}


def metal(rng: np.random.Generator) -> Atoms:
    """A strained, rattled, periodic metal of one or two of the seven EMT elements."""
    builders = (_crystal, _alloy, _surface, _vacancy)
    chosen = rng.choice(4, p=(0.25, 0.35, 0.25, 0.15))
    build = builders[chosen]
    atoms = build(rng)

    # a random strain, and on average a slight expansion
    random_strain = rng.normal(0, 0.02, (3, 3))
    expansion = rng.uniform(-0.03, 0.05)
    # the antisymmetric part would turn the crystal, which no model can see
    symmetric = (random_strain + random_strain.T) / 2
    strain = symmetric + expansion * np.eye(3)
    deformation = np.eye(3) + strain
    atoms.set_cell(atoms.cell @ deformation, scale_atoms=True)

    config_type = build.__name__.strip("_")
    rattle = rng.uniform(0.02, 0.12)
    return finished(rng, atoms, config_type, rattle=rattle)


def _crystal(rng: np.random.Generator) -> Atoms:
    """An elemental fcc, bcc, hcp or simple cubic crystal, or an ordered compound."""
    first, second = rng.choice(EMT_METALS, 2, replace=False)
    prototype = rng.choice(["fcc", "bcc", "hcp", "sc", "L1_0", "L1_2", "B2"])
    lattice, swapped = COMPOUNDS.get(prototype, (prototype, []))
    if lattice == "hcp":
        # the ideal ratio of close-packed spheres, sqrt(8/3); there is no cubic cell
        cell = bulk(first, "hcp", a=1.0, c=1.633)
    else:
        cell = bulk(first, lattice, a=1.0, cubic=True)
    cell.symbols[swapped] = second

    # built with a lattice constant of 1 A, and only now of its real size
    wanted_volume = len(cell) * _atomic_volume(cell)
    ratio = wanted_volume / cell.get_volume()
    _scale(cell, ratio ** (1 / 3))

    # twice along a vector is as likely again as once
    repeats = rng.choice([1, 2, 2], size=3)
    return cell.repeat(repeats)


def _alloy(rng: np.random.Generator) -> Atoms:
    """A random solid solution of two metals on 16 or 32 sites of an fcc lattice."""
    share = rng.uniform(0.1, 0.9)
    return _fcc_solution(rng, share)


def _surface(rng: np.random.Generator) -> Atoms:
    """A slab of 3 to 5 layers with about 12 A of vacuum; half of the slabs are random binaries."""
    builders = (fcc111, fcc100, fcc110)
    build = builders[rng.integers(3)]
    first, second = rng.choice(EMT_METALS, 2, replace=False)
    pure = Atoms([first])
    constant = _fcc_constant(pure)
    num_layers = int(rng.integers(3, 6))
    slab = build(first, (2, 2, num_layers), a=constant, vacuum=6.0)
    if rng.random() < 0.5:
        share = rng.uniform(0.1, 0.9)
        mix_in(rng, slab, first, second, share)
        ratio = _fcc_constant(slab) / constant
        _scale(slab, ratio)
    # EMT and the models see the vacuum as part of the cell
    slab.pbc = True
    return slab


def _vacancy(rng: np.random.Generator) -> Atoms:
    """An fcc metal or, half of the time, random binary that lacks one or two atoms."""
    share = rng.choice([0.0, rng.uniform(0.1, 0.9)])
    atoms = _fcc_solution(rng, share)
    num_vacancies = rng.integers(1, 3)
    vacant = rng.choice(len(atoms), num_vacancies, replace=False)
    del atoms[vacant]
    return atoms


def _fcc_solution(rng: np.random.Generator, share: float) -> Atoms:
    """16 or 32 fcc sites of one metal, `share` of them replaced by another.

    The volume follows the composition.
    """
    first, second = rng.choice(EMT_METALS, 2, replace=False)
    num_repeats = int(rng.integers(1, 3))
    cell = bulk(first, "fcc", a=1.0, cubic=True)
    atoms = cell.repeat((2, 2, num_repeats))
    mix_in(rng, atoms, first, second, share)
    _scale(atoms, _fcc_constant(atoms))
    return atoms


def _scale(atoms: Atoms, factor: float) -> None:
    """Multiply all lengths by `factor`, in place."""
    atoms.set_cell(atoms.cell * factor, scale_atoms=True)


def _fcc_constant(atoms: Atoms) -> float:
    """Lattice constant at which an fcc crystal has the volume that its elements suggest, A."""
    cell_volume = 4 * _atomic_volume(atoms)
    return cell_volume ** (1 / 3)


def _atomic_volume(atoms: Atoms) -> float:
    """Mean volume per atom of the fcc metals that `atoms` consists of, A^3."""
    # an fcc cell has four atoms
    volumes = [reference_states[number]["a"] ** 3 / 4 for number in atoms.numbers]
    return float(np.mean(volumes))
