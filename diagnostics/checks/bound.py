"""Free atoms, diatomic molecules and elemental crystals: finite, bound, of the right size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import Dimer, ask, dimer_curves, energy_per_atom
from ..sanity.config import SanityConfig
from ..sanity.crystals import crystal
from ..sanity.reference.tables import Diatomic, diatomics, elemental_phases
from ..sanity.verdicts import failures


LENGTH_ERROR = 5.0  # percent of the experimental bond length

# Range of distances of a curve, relative to the experimental bond length; number of points.
NEAREST = 0.55
FARTHEST = 3.5
POINTS = 119
# Depth in eV below which a minimum does not count.
DEPTH = 0.03


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Are free atoms finite, diatomic bond lengths right, and crystals bound?

    Example: evenfield check bound evenfield-s --level-of-theory GFN1-xTB
    """
    calculator = model.calculator("float64")
    symbols = settings.chosen(model.symbols)
    atoms_figure, lines = _free_atoms(calculator, symbols)
    figures = [atoms_figure]

    judged = [each for each in diatomics() if {each.first, each.second} <= set(symbols)]
    skipped = [each.name for each in diatomics() if each not in judged]
    figures.append(Figure("molecules of two atoms", len(judged), ""))
    if judged:
        found = curves(calculator, judged)
        wrong = [f"{curve.name} ({curve.fault})" for curve in found if curve.fault]
        figure, named = failures("molecules that are not right", wrong)
        figures.append(figure)
        lines += named
        lines += [
            f"{curve.name:5} {curve.length:6.3f} A, experiment {curve.expected:.3f} A, "
            f"bound by {curve.binding:.2f} eV"
            for curve in found
        ]

    free_atoms = settings.free_atoms
    if free_atoms is None:
        free_atoms = model.knows_free_atoms
    crystals_figures, named = _crystals(calculator, symbols, judged=free_atoms)
    return CheckResult(figures + crystals_figures, lines + named, skipped)


@dataclass(frozen=True)
class Curve:
    """Results for a diatomic molecule.

    length, expected: A. binding: eV. fault: what is wrong, empty if nothing is.
    """

    name: str
    length: float
    expected: float
    binding: float
    fault: str


def _free_atoms(calculator: Calculator, symbols: list[str]) -> tuple[Figure, list[str]]:
    wrong = []
    for symbol in symbols:
        answer = ask(calculator, Atoms(symbol))
        if not (np.isfinite(answer.energy) and np.abs(answer.forces).max() < 1e-3):
            wrong.append(symbol)
    return failures("free atoms that are not finite and at rest", wrong)


def curves(calculator: Calculator, molecules: list[Diatomic]) -> list[Curve]:
    """Compute and judge the energy curve of each molecule."""
    dimers = []
    grid = np.linspace(NEAREST, FARTHEST, POINTS)
    for molecule in molecules:
        for distance in grid * molecule.length:
            dimers.append(Dimer(molecule.first, molecule.second, float(distance)))
    energies, _ = dimer_curves(calculator, dimers)
    by_molecule = energies.reshape(len(molecules), POINTS)
    return [
        _judged(molecule, grid * molecule.length, energy)
        for molecule, energy in zip(molecules, by_molecule, strict=True)
    ]


def _judged(molecule: Diatomic, radii: np.ndarray, energies: np.ndarray) -> Curve:
    if not np.isfinite(energies).all():
        return Curve(molecule.name, np.nan, molecule.length, np.nan, "not finite")

    minima = deep_minima(energies)
    lowest = int(energies.argmin())
    length = float(radii[lowest])
    if 0 < lowest < len(radii) - 1:
        # minimum of the parabola through the lowest point and its neighbours
        near, middle, far = energies[lowest - 1 : lowest + 2]
        length += float(0.5 * (near - far) / (near - 2 * middle + far)) * (radii[1] - radii[0])

    error = 100 * abs(length / molecule.length - 1)
    fault = ""
    if lowest == 0:
        fault = "collapses"
    elif not minima:
        fault = "not bound"
    elif len(minima) > 1:
        fault = f"{len(minima)} minima"
    elif error > LENGTH_ERROR:
        fault = f"{length:.2f} A instead of {molecule.length:.2f} A"
    binding = float(energies[-1] - energies[lowest])
    return Curve(molecule.name, length, molecule.length, binding, fault)


def deep_minima(energies: np.ndarray) -> list[int]:
    """Indices of the minima that are deeper than DEPTH on both sides, without the two ends."""
    from scipy.signal import find_peaks

    found, _ = find_peaks(-energies, prominence=DEPTH)
    return [int(index) for index in found]


def _crystals(
    calculator: Calculator, symbols: list[str], *, judged: bool
) -> tuple[list[Figure], list[str]]:
    """Figures and lines about elements whose crystal is not lower in energy than the free atom.

    judged: whether the figure has a threshold.
    """
    unbound = []
    num_crystals = 0
    for symbol in symbols:
        phases = elemental_phases().get(symbol)
        if phases is None:
            continue
        num_crystals += 1
        name, phase = min(phases.items(), key=lambda item: item[1].above)
        solid = energy_per_atom(calculator, crystal(symbol, name, phase.volume))
        atom = ask(calculator, Atoms(symbol)).energy
        # `not <` also catches NaN
        if not solid < atom:
            unbound.append(symbol)

    what = "crystals that are not below the free atom"
    figure, lines = failures(what, unbound)
    if not judged:
        figure = Figure(what, len(unbound), "")
    return [Figure("elemental crystals", num_crystals, ""), figure], lines
