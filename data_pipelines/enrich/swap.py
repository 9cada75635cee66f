"""Replace an element in a structure by another, and adapt the distances."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import natural_cutoffs, neighbor_list

from ..demo.geometry import LONGEST_BOND, stretched


# In isolated structures up to this size, every bond is fitted to its new length. The fit inverts a
# matrix over all atoms.
MOST_FITTED_ATOMS = 200

# Spheres with covalent radii fill 0.3 (diamond) to 1.5 (uranium) of a crystal's volume.
DENSEST = 2.0
# A^3 per atom; an atom in diamond has 5.7. This limit is needed for hydrogen: its covalent sphere
# is so small that DENSEST alone would allow cells in which an atom has thousands of neighbours.
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
    """A copy of `parent` in which the element `guest` replaces all or some atoms of `host`.

    host, guest: atomic numbers.
    rattle: bounds for the standard deviation of random displacements of each coordinate, A.
    others: atomic number of a further element of the parent -> element that replaces all its atoms.
    strain: bounds for the standard deviation of each component of a random strain of the cell.

    Bonds scale with the sums of covalent radii: individually in small isolated structures, and by a
    common factor, together with the cell, in all others. The copy has no calculator.
    """
    child = Atoms(parent.numbers, parent.positions, cell=parent.cell, pbc=parent.pbc)
    sites = np.flatnonzero(parent.numbers == host)
    # partial replacement shows the new element in other environments
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
    # shards store float32, and must contain exactly the positions that are labelled
    child.positions = child.positions.astype(np.float32).astype(np.float64)
    return child


def _strain(rng: np.random.Generator, atoms: Atoms, width: float) -> None:
    """Deform cell and positions, in place, by a random symmetric strain.

    width: standard deviation of each component of the strain.
    """
    lower = np.tril(rng.normal(0, width, (3, 3)))
    # symmetric, because a rotation would add no information
    deformation = np.eye(3) + lower + np.tril(lower, -1).T
    # non-periodic directions have no cell to deform
    deformation[~atoms.pbc] = np.eye(3)[~atoms.pbc]
    deformation[:, ~atoms.pbc] = np.eye(3)[:, ~atoms.pbc]
    atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=False)
    atoms.positions = atoms.positions @ deformation


def is_too_dense(atoms: Atoms) -> bool:
    """Whether a crystal has far less volume per atom than any known crystal."""
    if not atoms.pbc.all():
        return False
    spheres = 4 / 3 * np.pi * covalent_radii[atoms.numbers] ** 3
    least = max(spheres.sum() / DENSEST, LEAST_VOLUME * len(atoms))
    return bool(atoms.get_volume() < least)


def _bond_ratio(parent: Atoms, child: Atoms) -> float:
    """Mean ratio of new to old bond lengths over the bonds of `parent`, by covalent radii."""
    sender, receiver = neighbor_list("ij", parent, natural_cutoffs(parent, mult=LONGEST_BOND))
    if not len(sender):
        return 1.0
    old = covalent_radii[parent.numbers]
    new = covalent_radii[child.numbers]
    ratios = (new[sender] + new[receiver]) / (old[sender] + old[receiver])
    return float(ratios.mean())
