"""A structure with one element in place of another, at distances that suit it."""

from __future__ import annotations

from collections.abc import Mapping

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
# The covalent sphere of hydrogen is so small that DENSEST alone allows cells in which an atom has
# thousands of neighbours. A^3 per atom; an atom of diamond has 5.7.
LEAST_VOLUME = 1.5


def with_element(
    rng: np.random.Generator,
    parent: Atoms,
    host: int,
    guest: int,
    rattle: tuple[float, float],
    *,
    others: Mapping[int, int] | None = None,
    strain: tuple[float, float] = (0.0, 0.0),
) -> Atoms:
    """A bare copy of `parent` in which `guest` replaces `host`, in all its atoms or in some.

    rattle: bounds of the standard deviation of each coordinate's move, A.
    others: further elements of the parent -> what replaces all of their atoms.
    strain: bounds of the standard deviation of each component of a random strain of the cell.

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
    for old, new in (others or {}).items():
        child.numbers[parent.numbers == old] = new

    if guest != host or others:
        if parent.pbc.any() or len(parent) > MOST_FITTED_ATOMS:
            factor = _bond_ratio(parent, child)
            child.set_cell(child.cell * factor, scale_atoms=False)
            child.positions *= factor
        else:
            child.positions = stretched(parent, child)
    if parent.pbc.any() and strain[1] > 0:
        _strain(rng, child, rng.uniform(*strain))
    width = rng.uniform(*rattle)
    child.positions += rng.normal(0, width, child.positions.shape)
    # the file must state exactly what was labelled, and stores 32 bits
    child.positions = child.positions.astype(np.float32).astype(np.float64)
    return child


def _strain(rng: np.random.Generator, atoms: Atoms, width: float) -> None:
    """Deform cell and positions by a symmetric strain whose components have deviation `width`."""
    lower = np.tril(rng.normal(0, width, (3, 3)))
    # a rotation says nothing new, so the strain is symmetric
    deformation = np.eye(3) + lower + np.tril(lower, -1).T
    # directions without periodicity have no cell to deform
    deformation[~atoms.pbc] = np.eye(3)[~atoms.pbc]
    deformation[:, ~atoms.pbc] = np.eye(3)[:, ~atoms.pbc]
    atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=False)
    atoms.positions = atoms.positions @ deformation


def is_too_dense(atoms: Atoms) -> bool:
    """Whether the atoms of a crystal have far less room than those of any known one."""
    if not atoms.pbc.all():
        return False
    spheres = 4 / 3 * np.pi * covalent_radii[atoms.numbers] ** 3
    least = max(spheres.sum() / DENSEST, LEAST_VOLUME * len(atoms))
    return bool(atoms.get_volume() < least)


def _bond_ratio(parent: Atoms, child: Atoms) -> float:
    """Mean over the bonds of `parent` of their new length over the old one, by covalent radii."""
    sender, receiver = neighbor_list("ij", parent, natural_cutoffs(parent, mult=LONGEST_BOND))
    if not len(sender):
        return 1.0
    old = covalent_radii[parent.numbers]
    new = covalent_radii[child.numbers]
    ratios = (new[sender] + new[receiver]) / (old[sender] + old[receiver])
    return float(ratios.mean())
