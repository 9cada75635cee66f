"""Are phonon frequencies real, and does the speed of sound agree with the elastic constants?

phonopy computes force constants from displaced atoms in a supercell. An imaginary frequency means
that the crystal is not a minimum. Near zero wave vector, the speed of sound follows from C11 and
C44. These constants are also computed from strains, and both must agree, whatever the training
data.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator

from ...core.errors import MissingPackageError
from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import ask
from ..sanity.config import SanityConfig, Suite
from ..sanity.crystals import crystal, lattice_parameter
from ..sanity.plots import curves_png
from ..sanity.verdicts import failures, with_progress
from .elastic import CRYSTALS, crystal_symbols, elastic_constants


if TYPE_CHECKING:
    from phonopy import Phonopy


QUICK = ("Cu", "Si", "NaCl")
STANDARD = (*QUICK, "Al", "Na", "W", "C", "MgO", "GaAs", "Fe")
# Primitive cells along each edge of the supercell.
REPEATS: dict[Suite, int] = {"quick": 4, "standard": 5, "full": 6}

DISPLACEMENT = 0.01  # A
MESH = 11
# Smaller imaginary frequencies, in THz, come from rounding and from truncated force constants.
IMAGINARY = 0.1
TEMPERATURE = 300.0

# Wave vector for the speed of sound, in 1/A without 2 pi; allowed difference between rho v^2 and
# the elastic constant, relative to the larger constant.
SOUND_VECTOR = 0.005
SOUND_ERROR = 0.15

# Path from the zone centre to X and L, in units of 1/a for a cubic cell of edge a.
PATH = ([0, 0, 0], [1, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0])
PATH_POINTS = 40


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Imaginary phonons, heat capacity, and sound against elastic constants.

    Needs phonopy (extra `phonons`).

    Example: evenfield check phonons evenfield-s elements=[Cu] --level-of-theory EMT
    """
    calculator = model.calculator("float64")
    known = set(settings.chosen(model.symbols))
    wanted = {"quick": QUICK, "standard": STANDARD, "full": tuple(CRYSTALS)}[settings.suite]
    judged = [name for name in wanted if set(crystal_symbols(name)) <= known]
    skipped = [name for name in wanted if name not in judged]

    found = []
    without = []
    for name in with_progress("phonons", judged):
        vibrations = vibrations_of(calculator, name, REPEATS[settings.suite])
        if vibrations is None:
            without.append(name)
        else:
            found.append(vibrations)

    figures = [Figure("crystals", len(judged), "")]
    lines: list[str] = []
    if judged:
        imaginary = [f"{v.name} ({v.lowest:.2f} THz)" for v in found if not v.is_stable]
        apart = [each.name for each in found if each.is_stable and not each.sound_agrees]
        for what, names in (
            ("crystals without a minimum", without),
            ("crystals with imaginary modes", imaginary),
            ("crystals whose sound is not that of their elastic constants", apart),
        ):
            figure, named = failures(what, names)
            figures.append(figure)
            lines += named
    lines += [str(each) for each in found]
    pictures = {f"phonons {each.name}.png": each.picture() for each in found[:4]}
    return CheckResult(figures, lines, skipped, pictures)


@dataclass(frozen=True)
class Vibrations:
    """Phonons of a crystal with N atoms in the primitive cell.

    lowest, highest: frequencies in THz, negative if imaginary. heat_capacity: at 300 K, in k per
    atom. by_sound, by_strain: C11 and C44 in GPa. path: (P,) length along the path of wave vectors,
    2 pi/a. bands: (P, 3 N) frequencies along it in THz.
    """

    name: str
    lowest: float
    highest: float
    heat_capacity: float
    by_sound: tuple[float, float]
    by_strain: tuple[float, float]
    path: np.ndarray
    bands: np.ndarray

    @property
    def is_stable(self) -> bool:
        """Whether no frequency is imaginary; False for NaN."""
        return self.lowest >= -IMAGINARY

    @property
    def sound_agrees(self) -> bool:
        """Whether C11 and C44 from sound and from strains agree; False for NaN."""
        sound, strain = np.array(self.by_sound), np.array(self.by_strain)
        return bool((np.abs(sound - strain) <= SOUND_ERROR * np.abs(strain).max()).all())

    def __str__(self) -> str:
        c11, c44 = self.by_sound
        strain11, strain44 = self.by_strain
        return (
            f"{self.name:5} {self.lowest:+.2f} to {self.highest:.2f} THz, {self.heat_capacity:.2f} "
            f"k per atom at 300 K; C11 C44 in GPa: sound {c11:.0f} {c44:.0f}, "
            f"strain {strain11:.0f} {strain44:.0f}"
        )

    def picture(self) -> bytes:
        """PNG of the bands from the zone centre to X and L and back."""
        curves = {f"{index}": (self.path, band) for index, band in enumerate(self.bands.T)}
        title = f"phonons of {self.name}: zone centre, X, L, zone centre"
        return curves_png(
            title, "wave vector, 2 pi/a", "frequency, THz", curves, markers=False, legend=False
        )


def vibrations_of(calculator: Calculator, name: str, repeats: int) -> Vibrations | None:
    """Phonons at the calculator's own volume; None if the crystal has no minimum.

    repeats: primitive cells along each edge of the supercell.
    """
    structure = CRYSTALS[name]
    constants = elastic_constants(calculator, name, structure)
    if constants is None:
        return None
    atoms = crystal(name, structure, constants.volume)
    phonons: Any = force_constants(calculator, atoms, repeats)

    phonons.run_mesh([MESH] * 3, is_gamma_center=True)
    frequencies = phonons.mesh.frequencies
    phonons.run_thermal_properties(temperatures=[TEMPERATURE], cutoff_frequency=1e-3)
    # J/K per mole of primitive cells
    heat = float(phonons.thermal_properties.heat_capacity[0])
    heat /= len(atoms) * units._Nav * units._k

    path, points = _path(lattice_parameter(structure, constants.volume))
    return Vibrations(
        name,
        float(frequencies.min()),
        float(frequencies.max()),
        heat,
        sound(phonons, atoms),
        (constants.by_energy.c11, constants.by_energy.c44),
        path,
        frequencies_at(phonons, atoms, points),
    )


def force_constants(calculator: Calculator, atoms: Atoms, repeats: int) -> Phonopy:
    """A Phonopy object of a primitive cell, with force constants from a supercell.

    Raises MissingPackageError if phonopy is not installed.
    """
    try:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
    except ImportError as error:
        raise MissingPackageError("phonopy", needed_for="phonons", extra="phonons") from error

    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        cell=atoms.cell.array,
        scaled_positions=atoms.get_scaled_positions(),
    )
    phonons: Any = Phonopy(
        cell, supercell_matrix=repeats * np.eye(3, dtype=int), primitive_matrix=np.eye(3)
    )
    phonons.generate_displacements(distance=DISPLACEMENT, is_plusminus=True)
    forces = []
    for supercell in phonons.supercells_with_displacements:
        displaced = Atoms(
            supercell.symbols,
            cell=supercell.cell,
            scaled_positions=supercell.scaled_positions,
            pbc=True,
        )
        forces.append(ask(calculator, displaced).forces)
    phonons.forces = forces
    phonons.produce_force_constants()
    # acoustic sum rule: no force when all atoms move together
    phonons.symmetrize_force_constants()
    return phonons


def frequencies_at(phonons: Any, atoms: Atoms, vectors: np.ndarray) -> np.ndarray:
    """Frequencies (Q, 3 N) in THz at Cartesian wave vectors (Q, 3) in 1/A, without 2 pi."""
    phonons.run_qpoints(vectors @ atoms.cell.array.T)
    found: np.ndarray = phonons.qpoints.frequencies
    return found


def sound(phonons: Any, atoms: Atoms) -> tuple[float, float]:
    """C11 and C44 in GPa: density times the squared speed of sound along an edge of the cube."""
    bands = np.sort(frequencies_at(phonons, atoms, np.array([[SOUND_VECTOR, 0, 0]]))[0])
    # THz A = 100 m/s
    transverse, _, longitudinal = 100 * bands[:3] / SOUND_VECTOR
    density = atoms.get_masses().sum() * units._amu / (atoms.get_volume() * 1e-30)
    # an imaginary frequency gives a negative constant
    squares = np.array([longitudinal, transverse]) * np.abs([longitudinal, transverse])
    c11, c44 = density * squares / 1e9
    return float(c11), float(c44)


def _path(edge: float) -> tuple[np.ndarray, np.ndarray]:
    """Length along the path in units of 1/a, and wave vectors in 1/A."""
    corners = np.array(PATH, float)
    stops = [
        start + (end - start) * share
        for start, end in pairwise(corners)
        for share in np.linspace(0, 1, PATH_POINTS, endpoint=False)
    ]
    points = np.array([*stops, corners[-1]])
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)]), points / edge
