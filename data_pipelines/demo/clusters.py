"""Isolated structures of the demo data: clusters cut from ionic crystals, and molecules.

Every builder takes a `numpy.random.Generator` and returns a bare `ase.Atoms` (no calculator, no
magnetic moments) with `info["config_type"]`. The order of the random draws is part of the data:
a builder that draws in another order makes other structures from the same seed.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.build import molecule as g2_molecule
from ase.collections import g2
from ase.data import atomic_numbers, covalent_radii

from .geometry import finished, mix_in, stretched


def _symbols(*rows: str) -> list[str]:
    text = " ".join(rows)
    return text.split()


# Cations in about the order of their abundance in the Earth's crust, all that GFN1-xTB knows.
# Drawing them by Zipf's law gives a few common elements and a long tail of rare ones, as real
# collections of data have.
CATIONS = _symbols(
    "Si Al Fe Ca Na Mg K Ti Mn Ba Sr Zr V Cr Rb Ni Zn Ce Cu Nd La Y Co Sc Li Nb Ga Pb B Pr Sm Gd",
    "Dy Er Yb Hf Cs Be Sn Ta Eu Ge As Ho W Mo Tb Tl Lu Tm In Sb Cd Hg Ag Pd Bi Pt Au Os Ru Ir Rh",
    "Re Po Tc Pm",
)
ANIONS = _symbols("O F Cl S N H Se Br C I Te P At")
COVALENT_CATIONS = _symbols("Be B Mg Al Si Zn Ga Ge As Cd In Sn Sb Hg Tl Pb Bi Po")
CLUSTER_SIZES = (2, 3, 4, 6, 8, 10, 12)
# with room for two cations
EVEN_CLUSTER_SIZES = (6, 8, 10, 12)

# name -> lattice constant over the bond length
LATTICES = (("rocksalt", 2.0), ("zincblende", 4 / 3**0.5))

# main groups of the periodic table, lightest first: molecules swap elements within one
GROUPS = [
    _symbols("Li Na K Rb Cs"),
    _symbols("Be Mg Ca Sr Ba"),
    _symbols("B Al Ga In Tl"),
    _symbols("C Si Ge Sn Pb"),
    _symbols("N P As Sb Bi"),
    _symbols("O S Se Te Po"),
    _symbols("F Cl Br I At"),
]
PARENTS = [name for name in g2.names if len(g2[name]) > 1]
# those of organic chemistry, without the smallest
ORGANIC = [name for name in PARENTS if set(g2[name].symbols) <= set("HCNO") and len(g2[name]) >= 4]


def cluster(rng: np.random.Generator) -> Atoms:
    """The 2 to 12 atoms nearest to a random point of a rocksalt or zincblende crystal, rattled.

    In 30 % of the clusters some of the cations become a second element.
    """
    cation = _zipf(rng, CATIONS, 1.2)
    anion = _zipf(rng, ANIONS, 1.2)
    num_atoms = int(rng.choice(CLUSTER_SIZES))
    atoms = cut_from_crystal(rng, cation, anion, num_atoms)

    if rng.random() < 0.3:
        pure = atoms.copy()
        guest = _zipf(rng, CATIONS, 1.2)
        share = rng.uniform(0, 0.6)
        mix_in(rng, atoms, cation, guest, share)
        atoms.positions = stretched(pure, atoms)

    rattle = rng.uniform(0.02, 0.1)
    return finished(rng, atoms, "cluster", rattle=rattle)


def even_cluster(rng: np.random.Generator) -> Atoms:
    """A cluster with two cations, each as likely as any other.

    Most cations are so rare in `cluster` that a tenth of the structures cannot judge them.
    """
    cation, guest = (str(symbol) for symbol in rng.choice(CATIONS, 2, replace=False))
    anion = _zipf(rng, ANIONS, 1.2)
    num_atoms = int(rng.choice(EVEN_CLUSTER_SIZES))
    pure = cut_from_crystal(rng, cation, anion, num_atoms)

    atoms = pure.copy()
    mix_in(rng, atoms, cation, guest, 0.5)
    atoms.positions = stretched(pure, atoms)

    rattle = rng.uniform(0.02, 0.1)
    return finished(rng, atoms, "even_cluster", rattle=rattle)


def cut_from_crystal(rng: np.random.Generator, cation: str, anion: str, num_atoms: int) -> Atoms:
    """The atoms nearest to a random point of a rocksalt or zincblende crystal.

    Bonds are 0.95 to 1.12 times the length at which GFN1-xTB clusters of that size are, on average,
    at rest under uniform scaling.
    """
    # larger clusters have longer bonds
    stretch = rng.uniform(0.95, 1.12)
    growth = 0.95 + 0.008 * num_atoms
    bond = stretch * growth * _ionic_bond(cation, anion)

    lattice, constant = LATTICES[rng.integers(2)]
    cell = bulk(cation + anion, lattice, a=constant * bond, cubic=True)
    crystal = cell.repeat(3)

    # anywhere in the middle one of the 27 cells
    small_diagonal = crystal.cell.sum(axis=0) / 3
    centre = small_diagonal * (1 + rng.random(3))
    distances = np.linalg.norm(crystal.positions - centre, axis=1)
    # stable, so that atoms at equal distances are taken in the same order everywhere
    order = np.argsort(distances, kind="stable")
    nearest = order[:num_atoms]
    return Atoms(crystal.symbols[nearest], crystal.positions[nearest] - centre)


def molecule(rng: np.random.Generator) -> Atoms:
    """A molecule of the g2 set in which elements may be replaced by others of their main group.

    An element is replaced with probability 0.4, in all its atoms or in one. The geometry is
    stretched to the new covalent radii and rattled.
    """
    chosen = rng.integers(len(PARENTS))
    parent = g2_molecule(PARENTS[chosen])
    child = Atoms(parent.symbols, parent.positions)

    # sorted, because the order of a set differs between runs and the draws follow it
    symbols = sorted(set(parent.symbols))
    for symbol in symbols:
        # hydrogen is in none of them, and stays
        group = next((group for group in GROUPS if symbol in group), None)
        if group is None:
            continue
        if rng.random() > 0.4:
            continue

        sites = np.flatnonzero(parent.symbols == symbol)
        if rng.random() >= 0.5:
            sites = rng.choice(sites, 1)
        others = [other for other in group if other != symbol]
        child.symbols[sites] = _zipf(rng, others, 1.0)

    child.positions = stretched(parent, child)
    rattle = rng.uniform(0.0, 0.05)
    return finished(rng, child, "molecule", rattle=rattle)


def organic_molecule(rng: np.random.Generator) -> Atoms:
    """One of the 61 molecules of the g2 set with four or more atoms of H, C, N and O, rattled."""
    chosen = rng.integers(len(ORGANIC))
    parent = g2_molecule(ORGANIC[chosen])
    rattle = rng.uniform(0.03, 0.12)
    return finished(rng, Atoms(parent.symbols, parent.positions), "organic", rattle=rattle)


def _zipf(rng: np.random.Generator, items: list[str], exponent: float) -> str:
    """One of `items`; the one of rank k has a probability proportional to k^-exponent."""
    ranks = np.arange(1, len(items) + 1)
    weights = ranks**-exponent
    probabilities = weights / weights.sum()
    return items[rng.choice(len(items), p=probabilities)]


def _ionic_bond(cation: str, anion: str) -> float:
    """Bond length at which clusters are about at rest, A.

    The sum of the covalent radii, and 13 % less with s-, d- and f-metals.
    """
    cation_radius = covalent_radii[atomic_numbers[cation]]
    anion_radius = covalent_radii[atomic_numbers[anion]]
    contraction = 1.0 if cation in COVALENT_CATIONS else 0.87
    bond = cation_radius + anion_radius
    return bond * contraction
