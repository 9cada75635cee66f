"""Do metals mix, or do they separate?

The energy of mixing is the energy of a random alloy, relaxed at its own volume, above the energy of
the pure metals:

    E_mix(x) = E(A_(1-x) B_x) - (1 - x) E(A) - x E(B)

per atom, all fcc. If it is negative at x = 1/2, the metals mix at any temperature. If it is
positive and the curve bends downwards, they separate into two alloys at low temperature. The sign
at x = 1/2 is compared with calorimetry, or with the oracle of the settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.optimize import FIRE

from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import FAILURES, energy_per_atom
from ..sanity.config import SanityConfig, Suite
from ..sanity.crystals import lattice_parameter, minimum
from ..sanity.equation_of_state import FIT, find_minimum, fit_birch_murnaghan
from ..sanity.oracle import oracle_of
from ..sanity.plots import curves_png
from ..sanity.verdicts import failures, with_progress
from .elastic import expected_volume


# Sign of the enthalpy of mixing of solid solutions at x = 1/2, for alloys where it is beyond doubt:
# R. Hultgren et al., Selected Values of the Thermodynamic Properties of Binary Alloys (1973). Ag
# and Ni do not even mix as liquids.
SIGNS: dict[tuple[str, str], int] = {
    ("Ag", "Au"): -1,
    ("Ag", "Ni"): 1,
    ("Al", "Ni"): -1,
    ("Ag", "Cu"): 1,
    ("Ag", "Pd"): -1,
    ("Au", "Cu"): -1,
    ("Au", "Ni"): 1,
    ("Au", "Pd"): -1,
    ("Cu", "Pt"): -1,
}
QUICK = (("Ag", "Au"), ("Ag", "Ni"), ("Al", "Ni"))

# Numbers of atoms that are replaced by the second metal, in a cell of 32 atoms.
ATOMS = 32
REPLACED: dict[Suite, tuple[int, ...]] = {
    "quick": (16,),
    "standard": (8, 16, 24),
    "full": (4, 8, 12, 16, 20, 24, 28),
}
FMAX = 0.05  # eV/A
MAX_STEPS = 40
# Energies of mixing of the oracle below this, in eV/atom, are too small for their sign to be
# judged.
SMALL = 0.01


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Do random fcc alloys mix or separate as in experiment, or as the oracle says?

    Example: evenfield check mixing --calculator ase.calculators.emt:EMT elements=[Ag,Ni,Au]
    """
    calculator = model.calculator()
    oracle = oracle_of(settings)
    known = set(settings.chosen(model.symbols))
    wanted = QUICK if settings.suite == "quick" else tuple(SIGNS)
    judged = [pair for pair in wanted if set(pair) <= known]
    skipped = ["-".join(pair) for pair in wanted if pair not in judged]

    figures = [Figure("alloys", len(judged), "")]
    lines = []
    wrong = []
    failed = []
    curves = {}
    for first, second in with_progress("mixing", judged):
        name = f"{first}-{second}"
        replaced = REPLACED[settings.suite]
        own = mixing_curve(calculator, first, second, replaced, settings.seed)
        if not np.isfinite(own.energies).all():
            failed.append(name)
            continue
        curves[name] = (own.fractions, 1000 * own.energies)

        line = f"{name}: {own.middle:+.0f} meV/atom at x = 1/2, the curve bends {own.bend}"
        sign = SIGNS[first, second]
        is_right = np.sign(own.middle) == sign
        expected = "mix" if sign < 0 else "part"
        if oracle is not None:
            theirs = mixing_curve(oracle, first, second, replaced, settings.seed)
            is_small = abs(theirs.middle) < 1000 * SMALL
            is_right = is_small or np.sign(own.middle) == np.sign(theirs.middle)
            expected = f"{theirs.middle:+.0f} at the oracle"
        lines.append(f"{line} ({expected})")
        if not is_right:
            wrong.append(name)

    pictures = {}
    if judged:
        for what, names in (("alloys without a finite energy", failed), _question(oracle, wrong)):
            figure, named = failures(what, names)
            figures.append(figure)
            lines += named
    if curves:
        pictures["mixing.png"] = curves_png(
            "random alloys", "share of the second metal", "energy of mixing, meV/atom", curves
        )
    return CheckResult(figures, lines, skipped, pictures)


def _question(oracle: Calculator | None, wrong: list[str]) -> tuple[str, list[str]]:
    if oracle is None:
        return "alloys that mix or part against experiment", wrong
    return "alloys that mix or part against the oracle", wrong


@dataclass(frozen=True)
class MixingCurve:
    """Energies of mixing in eV/atom and the fractions of the second metal, from 0 to 1."""

    fractions: np.ndarray
    energies: np.ndarray

    @property
    def middle(self) -> float:
        """Energy of mixing at x = 1/2, in meV/atom."""
        return 1000 * float(self.energies[len(self.energies) // 2])

    @property
    def bend(self) -> str:
        """The curvature: "upwards" (no mixture separates), "downwards" (all do) or "both ways"."""
        widths = np.diff(self.fractions)
        slopes = np.diff(self.energies) / widths
        turns = np.sign(np.diff(slopes))
        if (turns > 0).all():
            return "upwards"
        if (turns < 0).all():
            return "downwards"
        return "both ways"


def mixing_curve(
    calculator: Calculator, first: str, second: str, replaced: tuple[int, ...], seed: int
) -> MixingCurve:
    """The curve of two metals; NaN if a metal has no minimum or a call fails."""
    pure = [
        minimum(calculator, name, "fcc", expected_volume(name, "fcc")) for name in (first, second)
    ]
    volumes = [each.volume for each in pure]
    fractions = np.array([0, *(count / ATOMS for count in replaced), 1])
    energies = [0.0]
    # the same order of replacement for all compositions makes the curve smooth
    order = np.random.default_rng(seed).permutation(ATOMS)
    for fraction in fractions[1:-1]:
        if not all(volume > 0 for volume in volumes):
            energies.append(np.nan)
            continue
        # Vegard's law as a first guess
        volume = float((1 - fraction) * volumes[0] + fraction * volumes[1])
        alloy = bulk(first, "fcc", a=lattice_parameter("fcc", volume), cubic=True) * 2
        count = round(fraction * ATOMS)
        alloy.symbols[order[:count]] = second
        found = relaxed_energy(calculator, alloy)
        energies.append(found - (1 - fraction) * pure[0].energy - fraction * pure[1].energy)
    return MixingCurve(fractions, np.array([*energies, 0.0]))


def relaxed_energy(calculator: Calculator, alloy: Atoms) -> float:
    """Energy in eV/atom of an alloy with relaxed volume and positions; NaN if a call fails."""

    def energy(volume: float) -> float:
        return energy_per_atom(calculator, _scaled(atoms, volume))

    atoms = alloy
    volume = find_minimum(energy, alloy.get_volume() / len(alloy)).volume
    if not volume > 0:
        return float("nan")
    atoms = _scaled(alloy, volume)
    atoms.calc = calculator
    try:
        with np.errstate(all="ignore"):
            FIRE(atoms, logfile=None).run(fmax=FMAX, steps=MAX_STEPS)
    except FAILURES:
        return float("nan")

    # relaxed positions change the best volume a little, so it is fitted again
    volumes = volume * FIT
    return fit_birch_murnaghan(volumes, np.array([energy(each) for each in volumes])).energy


def _scaled(atoms: Atoms, volume: float) -> Atoms:
    """The crystal scaled to a volume in A^3/atom."""
    scaled = atoms.copy()
    factor = (volume * len(atoms) / atoms.get_volume()) ** (1 / 3)
    scaled.set_cell(atoms.cell * factor, scale_atoms=True)
    return scaled
