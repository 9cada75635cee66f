"""Built-in systems for dynamics and relaxations: a few of each kind, at experimental geometry.

To add a system, add a line to SYSTEMS. Systems have about thirty atoms, so that all of them
together take minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.cluster import Icosahedron
from ase.data import covalent_radii
from ase.spacegroup import crystal


# Longest stable time steps in fs: with hydrogen, for other molecules, and for everything else.
HYDROGEN_STEP = 0.5
MOLECULE_STEP = 1.0
STEP = 2.0

# Two atoms are fused if they are closer than this share of the smallest distance between their two
# elements at the start.
FUSED = 0.75


@dataclass(frozen=True)
class System:
    """A structure to simulate.

    make: makes the structure. time_step: fs. is_crystal: whether its cell may be relaxed.
    is_quick: whether the quick suite has it.
    """

    name: str
    make: Callable[[], Atoms]
    time_step: float = STEP
    is_crystal: bool = True
    is_quick: bool = False

    def atoms(self) -> Atoms:
        """The structure, without the magnetic moments that ASE sets for some elements."""
        made = self.make()
        made.set_initial_magnetic_moments(None)
        return made


def _cubic(
    name: str, structure: str, a: float, repeat: tuple[int, int, int], c: float | None = None
) -> Callable[[], Atoms]:
    """A crystal by ASE's name of its structure, in cubic cells if the structure is cubic."""

    def make() -> Atoms:
        if structure in ("hcp", "wurtzite"):
            return bulk(name, structure, a=a, c=c) * repeat
        return bulk(name, structure, a=a, cubic=True) * repeat

    return make


def _spacegroup(
    symbols: list[str],
    basis: list[tuple[float, float, float]],
    number: int,
    cell: list[float],
    repeat: tuple[int, int, int] = (1, 1, 1),
) -> Callable[[], Atoms]:
    """A crystal by its space group; `cell` has a, b, c in A and three angles in degrees."""

    def make() -> Atoms:
        made: Atoms = crystal(symbols, basis, spacegroup=number, cellpar=cell)
        # ase.spacegroup leaves arrays and info that are not needed later
        return Atoms(made.symbols, made.positions, cell=made.cell, pbc=True) * repeat

    return make


def _molecule(name: str) -> Callable[[], Atoms]:
    return lambda: molecule(name)


def _water_box() -> Atoms:
    """Eight water molecules at 1 g/cm3, each in a random orientation."""
    edge = 6.21
    rng = np.random.default_rng(5)
    atoms = Atoms(cell=[edge] * 3, pbc=True)
    for corner in np.ndindex(2, 2, 2):
        one = molecule("H2O")
        one.rotate(float(rng.uniform(0, 360)), rng.normal(size=3), center="COM")
        one.translate((np.array(corner) + 0.25) * edge / 2 - one.get_center_of_mass())
        atoms += one
    return atoms


def _copper_gold() -> Atoms:
    """A random alloy with equal numbers of copper and gold atoms."""
    atoms = bulk("Cu", "fcc", a=3.87, cubic=True) * 2
    order = np.random.default_rng(7).permutation(len(atoms))
    atoms.symbols[order[: len(atoms) // 2]] = "Au"
    return atoms


def _carbon_monoxide_on_copper() -> Atoms:
    slab = fcc111("Cu", (2, 2, 3), a=3.61, vacuum=8.0)
    # carbon at the bottom; in ASE's own molecule, oxygen would be the first atom
    adsorbate = Atoms("CO", [[0, 0, 0], [0, 0, 1.15]])
    add_adsorbate(slab, adsorbate, 1.85, "ontop")
    slab.center(vacuum=8.0, axis=2)
    return _plain(slab)


def _oxygen_on_platinum() -> Atoms:
    slab = fcc111("Pt", (2, 2, 3), a=3.92, vacuum=8.0)
    add_adsorbate(slab, "O", 1.2, "fcc")
    slab.center(vacuum=8.0, axis=2)
    return _plain(slab)


def _plain(atoms: Atoms) -> Atoms:
    """A copy of the atoms without tags and info about the surface."""
    return Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _salt_cluster() -> Atoms:
    """Eight ions of NaCl."""
    atoms = bulk("NaCl", "rocksalt", a=5.4, cubic=True)
    return Atoms(atoms.symbols, atoms.positions)


def _copper_cluster() -> Atoms:
    atoms = Icosahedron("Cu", 2, latticeconstant=3.61)
    return Atoms(atoms.symbols, atoms.positions)


SYSTEMS = (
    # metals
    System("Cu", _cubic("Cu", "fcc", 3.61, (2, 2, 2)), is_quick=True),
    System("Al", _cubic("Al", "fcc", 4.05, (2, 2, 2))),
    System("Fe", _cubic("Fe", "bcc", 2.87, (3, 3, 2))),
    System("W", _cubic("W", "bcc", 3.165, (3, 3, 2))),
    System("Na", _cubic("Na", "bcc", 4.23, (3, 3, 2))),
    System("Mg", _cubic("Mg", "hcp", 3.21, (3, 3, 2), 5.21)),
    System("Ti", _cubic("Ti", "hcp", 2.95, (3, 3, 2), 4.68)),
    # alloys
    System("CuAu, random", _copper_gold),
    System("NiAl", _cubic("NiAl", "cesiumchloride", 2.887, (3, 3, 2))),
    # semiconductors
    System("Si", _cubic("Si", "diamond", 5.431, (2, 2, 1)), is_quick=True),
    System("diamond", _cubic("C", "diamond", 3.567, (2, 2, 1)), MOLECULE_STEP),
    System("GaAs", _cubic("GaAs", "zincblende", 5.653, (2, 2, 1))),
    # oxides
    System("MgO", _cubic("MgO", "rocksalt", 4.212, (2, 2, 1)), is_quick=True),
    System(
        "TiO2, rutile",
        _spacegroup(
            ["Ti", "O"],
            [(0, 0, 0), (0.305, 0.305, 0)],
            136,
            [4.594, 4.594, 2.959, 90, 90, 90],
            (2, 2, 2),
        ),
    ),
    System(
        "Al2O3, corundum",
        _spacegroup(
            ["Al", "O"],
            [(0, 0, 0.3522), (0.3063, 0, 0.25)],
            167,
            [4.759, 4.759, 12.99, 90, 90, 120],
        ),
    ),
    System(
        "SiO2, cristobalite",
        _spacegroup(
            ["Si", "O"],
            [(0.3003, 0.3003, 0), (0.2392, 0.1044, 0.1787)],
            92,
            [4.973, 4.973, 6.926, 90, 90, 90],
            (2, 2, 1),
        ),
    ),
    System("ZnO", _cubic("ZnO", "wurtzite", 3.25, (2, 2, 2), 5.21)),
    System(
        "SrTiO3",
        _spacegroup(
            ["Sr", "Ti", "O"],
            [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
            221,
            [3.905, 3.905, 3.905, 90, 90, 90],
            (2, 2, 2),
        ),
    ),
    # halides
    System("NaCl", _cubic("NaCl", "rocksalt", 5.64, (2, 2, 1)), is_quick=True),
    System("LiF", _cubic("LiF", "rocksalt", 4.03, (2, 2, 1))),
    System("CsCl", _cubic("CsCl", "cesiumchloride", 4.12, (3, 3, 2))),
    System("CaF2", _cubic("CaF2", "fluorite", 5.463, (2, 2, 1))),
    # nitrides
    System("TiN", _cubic("TiN", "rocksalt", 4.24, (2, 2, 1)), is_quick=True),
    System("AlN", _cubic("AlN", "wurtzite", 3.11, (2, 2, 2), 4.98)),
    System("GaN", _cubic("GaN", "zincblende", 4.50, (2, 2, 1))),
    # molecules
    System(
        "CO2, molecular crystal",
        _spacegroup(
            ["C", "O"], [(0, 0, 0), (0.119, 0.119, 0.119)], 205, [5.62, 5.62, 5.62, 90, 90, 90]
        ),
        MOLECULE_STEP,
        is_quick=True,
        is_crystal=False,
    ),
    System("water, 8 molecules", _water_box, HYDROGEN_STEP, is_quick=True, is_crystal=False),
    System("ethanol", _molecule("CH3CH2OH"), HYDROGEN_STEP, is_crystal=False),
    System("benzene", _molecule("C6H6"), HYDROGEN_STEP, is_crystal=False),
    # slabs and clusters
    System(
        "CO on Cu(111)",
        _carbon_monoxide_on_copper,
        MOLECULE_STEP,
        is_quick=True,
        is_crystal=False,
    ),
    System("O on Pt(111)", _oxygen_on_platinum, is_crystal=False),
    System("Cu13", _copper_cluster, is_crystal=False),
    System("(NaCl)4", _salt_cluster, is_crystal=False),
)


class PairDistances:
    """Finds fused pairs of atoms by comparing distances with those at the start."""

    def __init__(self, start: Atoms) -> None:
        """`start` is a structure without fused atoms."""
        rows, columns = np.triu_indices(len(start), 1)
        self._pairs = rows, columns
        numbers = np.sort(np.stack([start.numbers[rows], start.numbers[columns]], 1), 1)
        distances = self._distances(start)

        # elements that are far from each other at the start may still form a bond
        self._limits = np.empty(len(distances))
        for pair in np.unique(numbers, axis=0):
            is_pair = (numbers == pair).all(1)
            bond = sum(covalent_radii[number] for number in pair)
            nearest = min(float(distances[is_pair].min()), 1.25 * bond)
            self._limits[is_pair] = FUSED * nearest
        self._symbols = start.get_chemical_symbols()

    def fused(self, atoms: Atoms) -> str | None:
        """The worst fused pair with its distance, as text; None if no pair is fused."""
        distances = self._distances(atoms)
        shares = distances / self._limits
        worst = int(np.argmin(shares))
        # `not >` also catches NaN
        if shares[worst] > 1:
            return None
        first, second = (self._symbols[int(side[worst])] for side in self._pairs)
        return f"{first} and {second} at {distances[worst]:.2f} A"

    def _distances(self, atoms: Atoms) -> np.ndarray:
        found: np.ndarray = atoms.get_all_distances(mic=True)[self._pairs]
        return found
