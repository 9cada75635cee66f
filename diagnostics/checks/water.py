"""The water dimer: is it bound by a hydrogen bond, and do the molecules stay intact?"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.optimize import BFGS

from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.answers import FAILURES
from ..sanity.config import SanityConfig


BINDING = (0.1, 0.4)  # eV
BOND = (0.90, 1.05)  # A, of O-H
ANGLE = (98.0, 112.0)  # degrees
OXYGENS = (2.5, 3.3)  # A, between the two molecules
FMAX = 0.01  # eV/A
MAX_STEPS = 300


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Is the water dimer bound by 0.1 to 0.4 eV, with its molecules intact?

    Example: evenfield check water evenfield-s --level-of-theory GFN1-xTB
    """
    if not {"H", "O"} <= set(settings.chosen(model.symbols)):
        return CheckResult(lines=["H or O is not known"], skipped=["water dimer"])

    from ase.collections import s22

    calculator = model.calculator("float64")
    # the order of atoms in s22: oxygen and hydrogens of the donor, then those of the acceptor
    dimer = _relaxed(calculator, s22["Water_dimer"])
    molecule = _relaxed(calculator, s22["Water_dimer"][:3])
    if dimer is None or molecule is None:
        return CheckResult([Figure("relaxations that failed", 1, "", limit=0)], ["no relaxation"])

    binding = 2 * molecule.get_potential_energy() - dimer.get_potential_energy()
    bonds = []
    angles = []
    for oxygen, first, second in ((0, 1, 2), (3, 4, 5)):
        bonds += [dimer.get_distance(oxygen, first), dimer.get_distance(oxygen, second)]
        angles.append(dimer.get_angle(first, oxygen, second))
    apart = float(dimer.get_distance(0, 3))

    figures = [
        Figure("binding", float(binding), "eV", limit=BINDING[1], at_least=BINDING[0]),
        Figure("shortest O-H bond", float(min(bonds)), "A", limit=BOND[1], at_least=BOND[0]),
        Figure("longest O-H bond", float(max(bonds)), "A", limit=BOND[1], at_least=BOND[0]),
        Figure("smallest angle", float(min(angles)), "degrees", at_least=ANGLE[0]),
        Figure("largest angle", float(max(angles)), "degrees", limit=ANGLE[1]),
        Figure("distance of the oxygens", apart, "A", limit=OXYGENS[1], at_least=OXYGENS[0]),
    ]
    line = (
        f"bound by {binding:.3f} eV at {apart:.2f} A; O-H {min(bonds):.3f} to {max(bonds):.3f} A, "
        f"angles {min(angles):.0f} and {max(angles):.0f} degrees"
    )
    return CheckResult(figures, [line])


def _relaxed(calculator: Calculator, atoms: Atoms) -> Atoms | None:
    """A relaxed copy of the atoms, with energy and forces; None if the calculator fails."""
    atoms = atoms.copy()
    atoms.calc = calculator
    try:
        with np.errstate(all="ignore"):
            BFGS(atoms, logfile=None).run(fmax=FMAX, steps=MAX_STEPS)
            # keep the results of these atoms, because the calculator is shared
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    except FAILURES:
        return None

    from ase.calculators.singlepoint import SinglePointCalculator

    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms
