"""The structures that the benchmarks run on."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from evenfield.data_pipelines.sources.config import SourceConfig
from evenfield.data_pipelines.sources.read import read_structures


def copper(cells: int = 1) -> list[Atoms]:
    """128 atoms of fcc copper in one cell or two, rattled by 0.1 A, with EMT energy and forces."""
    structures = []
    for seed in range(cells):
        atoms = bulk("Cu", cubic=True).repeat((4, 4 // cells, 2))
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        energy = atoms.get_potential_energy()
        forces = atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        structures.append(atoms)
    return structures


def rock_salt(formula: str, distance: float, shape: tuple[int, int, int]) -> Atoms:
    """A block of ions on the sites of rock salt, without a cell, such as "NaCl".

    distance: between neighbours (A). shape: sites along each axis; the first kind is at the origin.
    """
    sites = np.array(list(np.ndindex(*shape)))
    one, other = Atoms(formula).get_chemical_symbols()
    symbols = [other if site.sum() % 2 else one for site in sites]
    return Atoms(symbols, sites * distance)


def from_file(
    path: Path, count: int, energy_key: str | None, forces_key: str | None
) -> list[Atoms]:
    """The first `count` structures of a file; a key of None means what ASE itself recognises."""
    keys = {"energy": (energy_key, "eV"), "forces": (forces_key, "eV/A")}
    columns = {label: key for label, (key, _) in keys.items() if key}
    units = {label: keys[label][1] for label in columns}
    source = SourceConfig(columns=columns, units=units, level_of_theory="of the file")
    taken = islice(read_structures(path, source), count)
    return [structure.to_atoms() for structure in taken]
