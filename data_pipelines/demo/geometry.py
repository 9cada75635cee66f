"""What the builders of the demo data share: rattle, stretch, mix, and look for close contacts."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import natural_cutoffs, neighbor_list
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import cdist


SHORTEST_CONTACT = 0.6  # of the sum of two covalent radii
LONGEST_BOND = 1.3  # likewise
MAJORIZATION_STEPS = 60


def finished(rng: np.random.Generator, atoms: Atoms, config_type: str, rattle: float) -> Atoms:
    """A bare copy of `atoms`, each coordinate moved by N(0, rattle) A, rounded to 1e-6 A.

    Rounding comes before labelling, so that the file states exactly what was labelled.
    """
    moves = rng.normal(0, rattle, atoms.positions.shape)
    positions = (atoms.positions + moves).round(6)
    bare = Atoms(atoms.symbols, positions, cell=atoms.cell, pbc=atoms.pbc)
    bare.info["config_type"] = config_type
    return bare


def has_close_contact(atoms: Atoms) -> bool:
    """Whether two atoms are nearer than SHORTEST_CONTACT times the sum of their covalent radii."""
    cutoffs = natural_cutoffs(atoms, mult=SHORTEST_CONTACT)
    receivers = neighbor_list("i", atoms, cutoffs)
    return len(receivers) > 0


def mix_in(rng: np.random.Generator, atoms: Atoms, host: str, guest: str, share: float) -> None:
    """Turn `share` of the `host` atoms into `guest`, in place; at least one unless share is 0."""
    sites = np.flatnonzero(atoms.symbols == host)
    wanted = round(share * len(sites))
    if wanted == 0 and share > 0:
        wanted = 1
    num_swapped = min(len(sites), wanted)
    swapped = rng.choice(sites, num_swapped, replace=False)
    atoms.symbols[swapped] = guest


def stretched(parent: Atoms, child: Atoms) -> np.ndarray:
    """Positions (N, 3) of `parent`, moved so that its bonds suit the elements of `child`, A.

    Bonds scale with the sums of the covalent radii. The distance of two atoms that are not bonded
    scales like the shortest path of bonds between them. Stress majorization fits positions to
    these distances (Gansner, Koren and North, Graph drawing by stress majorization, 2004).
    """
    distances = cdist(parent.positions, parent.positions)
    path = _bond_paths(parent, parent)
    new_path = _bond_paths(parent, child)

    # atoms of different fragments have no path, and keep their distance
    has_path = np.isfinite(path) & (path > 0)
    # 0/0 on the diagonal and inf/inf between fragments, which the mask leaves out
    with np.errstate(invalid="ignore"):
        scaling = new_path / path
    ratio = np.where(has_path, scaling, 1.0)
    targets = distances * ratio

    # the usual weights of stress majorization are d^-2; bonds weigh even more here
    divisors = _infinite_where_zero(targets)
    weights = 1.0 / divisors**4

    # a Laplacian is singular: moving all atoms together costs nothing
    inverse = np.linalg.pinv(_laplacian(weights))
    positions = parent.positions.copy()
    for _ in range(MAJORIZATION_STEPS):
        current = _infinite_where_zero(cdist(positions, positions))
        pull = weights * targets / current
        positions = inverse @ (_laplacian(pull) @ positions)
    return positions


def _infinite_where_zero(distances: np.ndarray) -> np.ndarray:
    """Distances to divide by: an atom does not pull on itself."""
    return np.where(distances > 0, distances, np.inf)


def _laplacian(weights: np.ndarray) -> np.ndarray:
    """The graph Laplacian (N, N) of symmetric edge weights (N, N)."""
    degrees = weights.sum(axis=1)
    return np.diag(degrees) - weights


def _bond_paths(bonded: Atoms, sized: Atoms) -> np.ndarray:
    """Shortest sums of bond lengths (N, N), A: bonds of `bonded`, lengths from radii of `sized`."""
    cutoffs = natural_cutoffs(bonded, mult=LONGEST_BOND)
    sender, receiver = neighbor_list("ij", bonded, cutoffs)
    radii = covalent_radii[sized.numbers]

    # scipy takes a zero of a dense matrix for "no edge"
    num_atoms = len(bonded)
    lengths = np.zeros((num_atoms, num_atoms))
    lengths[sender, receiver] = radii[sender] + radii[receiver]
    return shortest_path(lengths, directed=False)
