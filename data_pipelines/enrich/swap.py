"""A structure with one element in place of another, at distances that suit it."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import natural_cutoffs, neighbor_list

from ..demo.geometry import LONGEST_BOND, stretched


# Isolated structures up to this size are fitted to their new bonds one by one; the fit inverts a
# matrix of all atoms.
MOST_FITTED_ATOMS = 200

# Spheres of covalent radii fill 0.3 (diamond) to 1.5 (uranium) of a crystal's volume.
DENSEST = 2.0


def with_element(
    rng: np.random.Generator, parent: Atoms, host: int, guest: int, rattle: tuple[float, float]
) -> Atoms:
    """A bare copy of `parent` in which `guest` replaces `host`, in all its atoms or in some.

    rattle: bounds of the standard deviation of each coordinate's move, A.

    Bonds scale with the sums of the covalent radii: one by one in isolated structures, all alike,
    with the cell, in periodic ones.
    """
    child = Atoms(parent.numbers, parent.positions, cell=parent.cell, pbc=parent.pbc)
    sites = np.flatnonzero(parent.numbers == host)
    # mixtures of both show the element in other surroundings
    if len(sites) > 1 and rng.random() < 1 / 3:
        number = int(rng.integers(1, len(sites)))
        sites = rng.choice(sites, number, replace=False)
    child.numbers[sites] = guest

    if guest != host:
        if parent.pbc.any() or len(parent) > MOST_FITTED_ATOMS:
            factor = _bond_ratio(parent, child)
            child.set_cell(child.cell * factor, scale_atoms=False)
            child.positions *= factor
        else:
            child.positions = stretched(parent, child)
    width = rng.uniform(*rattle)
    child.positions += rng.normal(0, width, child.positions.shape)
    # the file must state exactly what was labelled, and stores 32 bits
    child.positions = child.positions.astype(np.float32).astype(np.float64)
    return child


def is_too_dense(atoms: Atoms) -> bool:
    """Whether the atoms of a crystal have far less room than those of any known one."""
    if not atoms.pbc.all():
        return False
    spheres = 4 / 3 * np.pi * covalent_radii[atoms.numbers] ** 3
    return bool(spheres.sum() > DENSEST * atoms.get_volume())


def _bond_ratio(parent: Atoms, child: Atoms) -> float:
    """Mean over the bonds of `parent` of their new length over the old one, by covalent radii."""
    sender, receiver = neighbor_list("ij", parent, natural_cutoffs(parent, mult=LONGEST_BOND))
    if not len(sender):
        return 1.0
    old = covalent_radii[parent.numbers]
    new = covalent_radii[child.numbers]
    ratios = (new[sender] + new[receiver]) / (old[sender] + old[receiver])
    return float(ratios.mean())
