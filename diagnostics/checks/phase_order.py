"""Which crystal structure of an element a potential holds to be lowest, each at the volume that it likes best.

Diamond and beta-tin, of four and six near neighbours, beside close packing: a model without angles cannot tell them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, covalent_radii
from scipy.optimize import minimize_scalar


SPREAD = (
    0.4,
    1.8,
)  # volumes that are looked at, as shares of that of touching spheres in the same structure
GRID = 16


@dataclass(frozen=True)
class Phase:
    """A structure at its lowest energy: eV/atom, A^3/atom; `at_edge`: no minimum lies within the volumes looked at."""

    name: str
    energy: float
    volume: float
    at_edge: bool


def _beta_tin(symbol: str, volume: float) -> Atoms:
    """beta-Sn with the axial ratio of tin, 0.546; `volume` in A^3/atom."""
    a = (4 * volume / 0.546) ** (1 / 3)
    positions = [[0, 0, 0], [0.5, 0, 0.25], [0.5, 0.5, 0.5], [0, 0.5, 0.75]]
    return Atoms([symbol] * 4, scaled_positions=positions, cell=[a, a, 0.546 * a], pbc=True)


def _cubic(name: str, atoms_per_cube: int) -> Callable[[str, float], Atoms]:
    return lambda symbol, volume: bulk(symbol, name, a=(atoms_per_cube * volume) ** (1 / 3))


def _hcp(symbol: str, volume: float) -> Atoms:
    ideal = np.sqrt(8 / 3)
    return bulk(symbol, "hcp", a=(4 * volume / np.sqrt(3) / ideal) ** (1 / 3), covera=ideal)


# name -> cell of a volume an atom, and the share of space that touching spheres fill
PROTOTYPES: dict[str, tuple[Callable[[str, float], Atoms], float]] = {
    "fcc": (_cubic("fcc", 4), 0.740),
    "hcp": (_hcp, 0.740),
    "bcc": (_cubic("bcc", 2), 0.680),
    "sc": (_cubic("sc", 1), 0.524),
    "beta-Sn": (_beta_tin, 0.535),
    "diamond": (_cubic("diamond", 8), 0.340),
}


def rank_prototypes(calculator: Calculator, symbol: str) -> list[Phase]:
    """The prototypes of an element, lowest energy first. ValueError for a symbol that is no element."""
    if symbol not in atomic_numbers:
        raise ValueError(f"'{symbol}' is no element")
    sphere = 4 / 3 * np.pi * (1.1 * covalent_radii[atomic_numbers[symbol]]) ** 3
    phases = []
    for name, (cell, filling) in PROTOTYPES.items():

        def energy(log_volume: float, cell: Callable[[str, float], Atoms] = cell) -> float:
            atoms = cell(symbol, float(np.exp(log_volume)))
            atoms.calc = calculator
            return atoms.get_potential_energy() / len(atoms)

        grid = np.log(sphere / filling * np.geomspace(*SPREAD, GRID))
        lowest = int(np.argmin([energy(x) for x in grid]))
        around = grid[max(lowest - 1, 0)], grid[min(lowest + 1, GRID - 1)]
        found = minimize_scalar(energy, bounds=around, method="bounded", options={"xatol": 1e-4})
        phases.append(
            Phase(name, float(found.fun), float(np.exp(found.x)), lowest in (0, GRID - 1))
        )
    return sorted(phases, key=lambda phase: phase.energy)
