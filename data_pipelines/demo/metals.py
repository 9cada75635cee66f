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
    build = builders[rng.choice(4, p=(0.25, 0.35, 0.25, 0.15))]
    atoms = build(rng)

    strain = rng.normal(0, 0.02, (3, 3))
    strain = (strain + strain.T) / 2 + rng.uniform(-0.03, 0.05) * np.eye(3)
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    config_type = build.__name__.strip("_")
    return finished(rng, atoms, config_type, rattle=rng.uniform(0.02, 0.12))


def _crystal(rng: np.random.Generator) -> Atoms:
    """An elemental fcc, bcc, hcp or simple cubic crystal, or an ordered L1_0, L1_2 or B2 compound."""
    first, second = rng.choice(EMT_METALS, 2, replace=False)
    prototype = rng.choice(["fcc", "bcc", "hcp", "sc", "L1_0", "L1_2", "B2"])
    lattice, swapped = COMPOUNDS.get(prototype, (prototype, []))
    if lattice == "hcp":
        cell = bulk(first, "hcp", a=1.0, c=1.633)
    else:
        cell = bulk(first, lattice, a=1.0, cubic=True)
    cell.symbols[swapped] = second
    wanted_volume = len(cell) * _atomic_volume(cell)
    _scale(cell, (wanted_volume / cell.get_volume()) ** (1 / 3))
    return cell.repeat(rng.choice([1, 2, 2], size=3))


def _alloy(rng: np.random.Generator) -> Atoms:
    """A random solid solution of two metals on 16 or 32 sites of an fcc lattice."""
    return _fcc_solution(rng, rng.uniform(0.1, 0.9))


def _surface(rng: np.random.Generator) -> Atoms:
    """A slab of 3 to 5 layers with about 12 A of vacuum; half of the slabs are random binaries."""
    build = (fcc111, fcc100, fcc110)[rng.integers(3)]
    first, second = rng.choice(EMT_METALS, 2, replace=False)
    constant = (4 * _atomic_volume(Atoms([first]))) ** (1 / 3)
    slab = build(first, (2, 2, int(rng.integers(3, 6))), a=constant, vacuum=6.0)
    if rng.random() < 0.5:
        mix_in(rng, slab, first, second, rng.uniform(0.1, 0.9))
        _scale(slab, (4 * _atomic_volume(slab)) ** (1 / 3) / constant)
    # EMT and the models see the vacuum as part of the cell
    slab.pbc = True
    return slab


def _vacancy(rng: np.random.Generator) -> Atoms:
    """An fcc metal or, half of the time, random binary that lacks one or two atoms."""
    atoms = _fcc_solution(rng, rng.choice([0.0, rng.uniform(0.1, 0.9)]))
    del atoms[rng.choice(len(atoms), rng.integers(1, 3), replace=False)]
    return atoms


def _fcc_solution(rng: np.random.Generator, share: float) -> Atoms:
    """16 or 32 fcc sites of one metal, `share` of them replaced by another.

    The volume follows the composition.
    """
    first, second = rng.choice(EMT_METALS, 2, replace=False)
    atoms = bulk(first, "fcc", a=1.0, cubic=True).repeat((2, 2, int(rng.integers(1, 3))))
    mix_in(rng, atoms, first, second, share)
    _scale(atoms, (4 * _atomic_volume(atoms)) ** (1 / 3))
    return atoms


def _scale(atoms: Atoms, factor: float) -> None:
    """Multiply all lengths by `factor`, in place."""
    atoms.set_cell(atoms.cell * factor, scale_atoms=True)


def _atomic_volume(atoms: Atoms) -> float:
    """Mean volume per atom of the fcc metals that `atoms` consists of, A^3."""
    # an fcc cell has four atoms
    volumes = [reference_states[number]["a"] ** 3 / 4 for number in atoms.numbers]
    return float(np.mean(volumes))
