"""Cubic and hcp crystals at a given volume, and the search for their minimum."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator

from .answers import energy_per_atom
from .equation_of_state import EquationOfState, find_minimum


# Atoms in the conventional cubic cell; the crystals themselves use primitive cells.
ATOMS_PER_CUBE = {
    "sc": 1,
    "bcc": 2,
    "fcc": 4,
    "diamond": 8,
    "zincblende": 8,
    "rocksalt": 8,
}


def lattice_parameter(structure: str, volume: float) -> float:
    """The edge in A of the conventional cubic cell at a volume in A^3/atom."""
    return float((ATOMS_PER_CUBE[structure] * volume) ** (1 / 3))


def crystal(name: str, structure: str, volume: float) -> Atoms:
    """The primitive cell of a cubic crystal at a volume in A^3/atom."""
    return bulk(name, structure, a=lattice_parameter(structure, volume))


def hcp(symbol: str, volume: float) -> Atoms:
    """The hcp cell of two atoms at a volume in A^3/atom, with the ideal axial ratio."""
    ratio = np.sqrt(8 / 3)
    edge = (4 * volume / np.sqrt(3) / ratio) ** (1 / 3)
    return bulk(symbol, "hcp", a=edge, covera=ratio)


def minimum(calculator: Calculator, name: str, structure: str, expected: float) -> EquationOfState:
    """The minimum of the energy of a crystal near an expected volume in A^3/atom."""

    def energy(volume: float) -> float:
        make = hcp(name, volume) if structure == "hcp" else crystal(name, structure, volume)
        return energy_per_atom(calculator, make)

    return find_minimum(energy, expected)
