"""Which crystal structure of an element has the lowest energy, each at its best volume?

Diamond and beta-tin have four and six nearest neighbours, close packing has twelve. A model without
angles cannot distinguish them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, covalent_radii
from scipy.optimize import minimize_scalar

from ..check import CheckedModel, CheckError, CheckResult, Figure


# Range of volumes that is searched, relative to the volume of touching spheres in the structure.
VOLUME_RANGE = (0.4, 1.8)
GRID_POINTS = 16

# Covalent radii are too small for metals; ten per cent more fits most of them.
SPHERE_SCALE = 1.1

# c/a of white tin; the other prototypes have no free parameter except the volume.
TIN_AXIAL_RATIO = 0.546

# (symbol, volume per atom in A^3) -> cell.
Prototype = Callable[[str, float], Atoms]


def check(
    model: CheckedModel,
    element: Annotated[str, typer.Argument(help="symbol of an element that the model knows")],
) -> CheckResult:
    """Which crystal structure is lowest: fcc, hcp, bcc, sc, beta-tin or diamond?

    Example: evenfield check phases evenfield-s Cu --level-of-theory EMT
    """
    if element not in model.symbols:
        known = " ".join(model.symbols)
        raise CheckError(f"{element}: the model was not trained on it; it knows {known}")

    # in float64, because phases differ by a few meV/atom in an energy of several eV/atom
    calculator = model.calculator("float64")
    ranking = rank_prototypes(calculator, element)
    lowest_energy = ranking[0].energy

    figures = []
    lines = []
    for phase in ranking:
        # meV/atom
        above = 1000 * (phase.energy - lowest_energy)
        figures.append(Figure(f"{phase.name} above the lowest", above, "meV/atom"))
        figures.append(Figure(f"{phase.name} volume", phase.volume, "A^3/atom"))

        remark = "   no minimum in the volumes searched" if phase.at_edge else ""
        lines.append(
            f"{phase.name:8} {above:8.1f} meV/atom above the lowest, "
            f"{phase.volume:6.2f} A^3/atom{remark}"
        )
    return CheckResult(figures, lines)


@dataclass(frozen=True)
class Phase:
    """A crystal structure at its lowest energy.

    energy: eV/atom.
    volume: A^3/atom.
    at_edge: the energy is lowest at the edge of the range of volumes, so this is not a minimum.
    """

    name: str
    energy: float
    volume: float
    at_edge: bool


def rank_prototypes(calculator: Calculator, symbol: str) -> list[Phase]:
    """All prototypes for an element, sorted by their energy per atom, the lowest first.

    Raises:
        CheckError: `symbol` is not an element.
    """
    if symbol not in atomic_numbers:
        raise CheckError(f"'{symbol}' is not an element")
    covalent_radius = covalent_radii[atomic_numbers[symbol]]
    radius = SPHERE_SCALE * covalent_radius
    sphere = 4 / 3 * np.pi * radius**3

    phases = []
    for name, (prototype, packing) in PROTOTYPES.items():
        # the volume per atom at which the spheres touch
        volume = sphere / packing
        phases.append(_lowest(calculator, symbol, name, prototype, volume))
    return sorted(phases, key=lambda phase: phase.energy)


def _lowest(
    calculator: Calculator, symbol: str, name: str, prototype: Prototype, volume: float
) -> Phase:
    """Search a grid of volumes around `volume`, then refine about the lowest grid point.

    volume: the volume of touching spheres in A^3/atom. The grid is needed because the energy of a
    learned potential may have several minima.
    """

    def energy(log_volume: float) -> float:
        """eV/atom."""
        atoms = prototype(symbol, float(np.exp(log_volume)))
        atoms.calc = calculator
        return atoms.get_potential_energy() / len(atoms)

    # logarithmic, because the energy is steep at small volumes and flat at large ones
    volumes = volume * np.geomspace(*VOLUME_RANGE, GRID_POINTS)
    grid = np.log(volumes)
    energies = [energy(log_volume) for log_volume in grid]
    lowest = int(np.argmin(energies))
    last = GRID_POINTS - 1

    left = grid[max(lowest - 1, 0)]
    right = grid[min(lowest + 1, last)]
    found = minimize_scalar(
        energy,
        bounds=(left, right),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return Phase(
        name=name,
        energy=float(found.fun),
        volume=float(np.exp(found.x)),
        at_edge=lowest in (0, last),
    )


def _cubic(name: str, atoms_per_cube: int) -> Prototype:
    """The prototype of one of ASE's cubic structures, in its primitive cell.

    atoms_per_cube: number of atoms in the conventional cubic cell.
    """

    def make(symbol: str, volume: float) -> Atoms:
        edge = (atoms_per_cube * volume) ** (1 / 3)
        return bulk(symbol, name, a=edge)

    return make


def _hcp(symbol: str, volume: float) -> Atoms:
    """Two atoms in a hexagonal cell of volume sqrt(3)/2 a^2 c, with the ideal ratio c/a."""
    ideal_ratio = np.sqrt(8 / 3)
    a = (4 * volume / np.sqrt(3) / ideal_ratio) ** (1 / 3)
    return bulk(symbol, "hcp", a=a, covera=ideal_ratio)


def _beta_tin(symbol: str, volume: float) -> Atoms:
    """Four atoms in a tetragonal cell with the axial ratio of tin."""
    a = (4 * volume / TIN_AXIAL_RATIO) ** (1 / 3)
    c = TIN_AXIAL_RATIO * a
    positions = [
        [0, 0, 0],
        [0.5, 0, 0.25],
        [0.5, 0.5, 0.5],
        [0, 0.5, 0.75],
    ]
    return Atoms([symbol] * 4, scaled_positions=positions, cell=[a, a, c], pbc=True)


# Name -> prototype, and the share of space that touching spheres fill in it.
PROTOTYPES: dict[str, tuple[Prototype, float]] = {
    "fcc": (_cubic("fcc", 4), 0.740),
    "hcp": (_hcp, 0.740),
    "bcc": (_cubic("bcc", 2), 0.680),
    "sc": (_cubic("sc", 1), 0.524),
    "beta-Sn": (_beta_tin, 0.535),
    "diamond": (_cubic("diamond", 8), 0.340),
}
