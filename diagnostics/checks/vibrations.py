"""Do small molecules have the right vibrational frequencies?

Each molecule is relaxed, and its second derivatives come from central differences of the forces.
Of the 3N modes, 6 (5 for a linear molecule) are translations and rotations, whose frequencies must
be zero. All others must be real. The matrix of second derivatives is symmetric if the forces are
derivatives of an energy. Frequencies are compared with experiment, or with the oracle of the
settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator

from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import ask_many, at_rest
from ..sanity.config import SanityConfig
from ..sanity.oracle import oracle_of
from ..sanity.verdicts import failures, with_progress


# Wave numbers in 1/cm, ascending; degenerate ones are repeated. Diatomic molecules: harmonic
# values, K. P. Huber and G. Herzberg, Constants of Diatomic Molecules (1979). Others: fundamentals,
# T. Shimanouchi, Tables of Molecular Vibrational Frequencies, NSRDS-NBS 39 (1972).
EXPERIMENT: dict[str, tuple[float, ...]] = {
    "H2": (4401,),
    "N2": (2359,),
    "CO": (2170,),
    "HF": (4138,),
    "HCl": (2991,),
    "F2": (917,),
    "H2O": (1595, 3657, 3756),
    "CO2": (667, 667, 1333, 2349),
    "HCN": (712, 712, 2097, 3311),
    "NH3": (950, 1627, 1627, 3337, 3444, 3444),
    "CH4": (1306, 1306, 1306, 1534, 1534, 2917, 3019, 3019, 3019),
    "C2H2": (612, 612, 730, 730, 1974, 3289, 3374),
}
QUICK = ("H2", "N2", "H2O", "CO2", "CH4")

STEP = 0.005  # A
FMAX = 1e-3  # eV/A
MAX_STEPS = 300

# A bond whose length changes by more than this share in the relaxation is broken.
INTACT = 0.3
# Largest frequency of translations and rotations, 1/cm: relaxations leave small forces, and finite
# differences have errors.
FREE = 60.0
# Largest asymmetry of the second derivatives, relative to their largest entry.
ASYMMETRY = 0.01
# Largest median error of the frequencies. Harmonic frequencies of PBE are within 5 % of experiment.
DEVIATION = 0.15


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Vibrations of small molecules against experiment or the oracle.

    Also checks that modes are real, and that second derivatives are symmetric.

    Example: evenfield check vibrations evenfield-s --level-of-theory GFN1-xTB suite=quick
    """
    calculator = model.calculator("float64")
    oracle = oracle_of(settings)
    known = set(settings.chosen(model.symbols))
    wanted = QUICK if settings.suite == "quick" else tuple(EXPERIMENT)
    judged = [name for name in wanted if set(molecule(name).symbols) <= known]
    skipped = [name for name in wanted if name not in judged]

    found = {}
    expected = {}
    for name in with_progress("vibrations", judged):
        found[name] = vibrations_of(calculator, molecule(name))
        expected[name] = np.array(EXPERIMENT[name], float)
        if oracle is not None:
            by_oracle = vibrations_of(oracle, molecule(name))
            expected[name] = by_oracle.frequencies

    figures = [Figure("molecules", len(judged), "")]
    lines: list[str] = []
    if judged:
        whole = {name: each for name, each in found.items() if each.is_whole}
        questions = {
            "molecules that fall apart": [name for name in judged if name not in whole],
            "molecules with imaginary modes": [
                name for name, each in whole.items() if not each.is_minimum
            ],
            "molecules that are not free to move and turn": [
                name for name, each in whole.items() if not each.free <= FREE
            ],
            "molecules with asymmetric second derivatives": [
                name for name, each in whole.items() if not each.asymmetry <= ASYMMETRY
            ],
        }
        for what, names in questions.items():
            figure, named = failures(what, names)
            figures.append(figure)
            lines += named

        source = "experiment" if oracle is None else "the oracle"
        deviations = []
        for name, each in whole.items():
            own = _deviations(each.frequencies, expected[name])
            deviations.append(own)
            lines.append(f"{name:4} {_listed(each.frequencies)}; {_listed(expected[name])}")
        if deviations:
            lines.insert(0, f"1/cm, then those of {source}:")
            median = float(np.median(np.concatenate(deviations)))
            figures.append(Figure(f"median error against {source}", median, "", limit=DEVIATION))
    return CheckResult(figures, lines, skipped)


def _deviations(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Relative differences, mode by mode; all NaN if the numbers of modes differ."""
    if len(found) != len(expected):
        return np.full(len(found), np.nan)
    deviations: np.ndarray = np.abs(found - expected) / np.abs(expected)
    return deviations


def _listed(frequencies: np.ndarray) -> str:
    return " ".join(f"{frequency:.0f}" for frequency in frequencies)


@dataclass(frozen=True)
class Vibrations:
    """Vibrations of one molecule.

    frequencies: (M,) 1/cm, ascending, negative if imaginary. free: largest frequency of the
    translations and rotations, 1/cm. asymmetry: of the second derivatives, relative to their
    largest entry. is_whole: whether the molecule stayed intact; if not, all other values are NaN.
    """

    frequencies: np.ndarray
    free: float
    asymmetry: float
    is_whole: bool

    @property
    def is_minimum(self) -> bool:
        """Whether all modes are real; False for NaN."""
        return bool((self.frequencies > 0).all())


def vibrations_of(calculator: Calculator, atoms: Atoms) -> Vibrations:
    """Relax a molecule and differentiate its forces."""
    broken = Vibrations(np.full(1, np.nan), np.nan, np.nan, is_whole=False)
    found = at_rest(calculator, atoms, FMAX, MAX_STEPS)
    if found is None or not _is_intact(atoms, found[0]):
        return broken
    relaxed, _ = found
    hessian = second_derivatives(calculator, relaxed)
    if not np.isfinite(hessian).all():
        return broken

    asymmetry = float(np.abs(hessian - hessian.T).max() / np.abs(hessian).max())
    waves = wave_numbers(hessian, relaxed.get_masses())
    num_free = 5 if _is_linear(relaxed) else 6
    # translations and rotations are the modes nearest to zero, whatever their sign
    by_size = np.argsort(np.abs(waves))
    free = float(np.abs(waves[by_size[:num_free]]).max())
    frequencies = np.sort(waves[by_size[num_free:]])
    return Vibrations(frequencies, free, asymmetry, is_whole=True)


def second_derivatives(calculator: Calculator, atoms: Atoms) -> np.ndarray:
    """Second derivatives (3N, 3N) in eV/A^2 by central differences of the forces.

    Each row is minus the derivative of all forces with respect to one coordinate. NaN if the
    calculator fails.
    """
    moved = []
    for atom in range(len(atoms)):
        for axis in range(3):
            for sign in (-1, 1):
                copy = atoms.copy()
                copy.positions[atom, axis] += sign * STEP
                moved.append(copy)
    forces = np.array([answer.forces.ravel() for answer in ask_many(calculator, moved)])
    hessian: np.ndarray = -(forces[1::2] - forces[::2]) / (2 * STEP)
    return hessian


def wave_numbers(hessian: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Wave numbers (3N,) in 1/cm, negative if imaginary.

    hessian: (3N, 3N) eV/A^2. masses: (N,) u.
    """
    weights = np.repeat(masses**-0.5, 3)
    symmetric = (hessian + hessian.T) / 2
    squared = np.linalg.eigvalsh(weights[:, None] * symmetric * weights)
    # ASE's unit of time is A sqrt(u / eV)
    angular = np.sign(squared) * np.sqrt(np.abs(squared))
    waves: np.ndarray = angular * units._hbar / units._e * units.s / units.invcm
    return waves


def _is_intact(before: Atoms, after: Atoms) -> bool:
    """Whether the distance of each atom to its nearest neighbour has hardly changed."""
    for atom in range(len(before)):
        others = [other for other in range(len(before)) if other != atom]
        old = before.get_distances(atom, others).min()
        new = after.get_distances(atom, others).min()
        # `not <` also catches NaN
        if not abs(new / old - 1) < INTACT:
            return False
    return True


def _is_linear(atoms: Atoms) -> bool:
    centred = atoms.positions - atoms.positions.mean(axis=0)
    widths = np.linalg.svd(centred, compute_uv=False)
    return bool(widths[1] < 0.01 * widths[0])
