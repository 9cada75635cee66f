"""Oracles: the calculators that label structures, and the rules for a label to be kept.

GFN1-xTB labels are reproducible. In 379 structures a second run with another charge mixing agreed
to 2e-7 eV and 4e-4 eV/A, except for one cluster that has two electronic solutions 1.8 eV apart.
"""

from __future__ import annotations

import importlib.util

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorError
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from ...core.errors import EvenfieldError, MissingPackageError


GFN1_LEVEL = "GFN1-xTB"
GFN2_LEVEL = "GFN2-xTB"
XTB_LEVELS = (GFN1_LEVEL, GFN2_LEVEL)
EMT_LEVEL = "EMT"

# Fermi smearing, K. In 6 of 250 clusters the self-consistent charges did not converge in 100
# iterations; at tblite's default of 300 K it was 18. 250 iterations rescue none of the 6.
ELECTRONIC_TEMPERATURE = 1500.0
MAX_SCC_ITERATIONS = 100

LARGEST_FORCE = 15.0  # eV/A


class OracleError(EvenfieldError):
    """A request that no oracle can serve."""


class RejectedStructure(Exception):
    """A structure that gets no label.

    `reason` is one of a few words that are counted, `detail` explains it.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def require_tblite() -> None:
    """Raise MissingPackageError unless tblite is installed."""
    if importlib.util.find_spec("tblite") is None:
        raise MissingPackageError("tblite", needed_for="labelling by GFN1-xTB", extra="demo")


def oracle_calculator(level_of_theory: str) -> Calculator:
    """A fresh ASE calculator for "GFN1-xTB", "GFN2-xTB" (tblite; not for periodic cells) or "EMT".

    Raises OracleError for another level of theory, MissingPackageError without tblite.
    """
    if level_of_theory == EMT_LEVEL:
        return EMT()
    if level_of_theory not in XTB_LEVELS:
        raise OracleError(
            f"no oracle for the level of theory '{level_of_theory}'",
            remedy=f"use {', '.join(XTB_LEVELS)} or {EMT_LEVEL}",
        )
    require_tblite()
    # only here: it is optional, and it must be loaded after the number of threads is set
    from tblite.ase import TBLite

    return TBLite(
        method=level_of_theory,
        electronic_temperature=ELECTRONIC_TEMPERATURE,
        max_iterations=MAX_SCC_ITERATIONS,
        verbosity=0,
    )


def label(atoms: Atoms, level_of_theory: str) -> Atoms:
    """A copy of `atoms` with energy (eV), forces (eV/A) and, if periodic, stress (eV/A^3).

    xTB also gives charges (e) and the dipole (e A).

    Raises RejectedStructure where the calculation fails or a force exceeds LARGEST_FORCE, and
    OracleError for a periodic structure at an xTB level: tblite samples only the Gamma point, which
    is wrong for small cells.
    """
    periodic = bool(atoms.pbc.any())
    if periodic and level_of_theory in XTB_LEVELS:
        raise OracleError(
            f"{level_of_theory} labels isolated structures only, and {atoms.symbols} is periodic"
        )

    # a calculator keeps its state: structures must not depend on those labelled before
    calculated = atoms.copy()
    calculated.calc = oracle_calculator(level_of_theory)
    try:
        forces = calculated.get_forces()
        stress = calculated.get_stress() if periodic else None
    except CalculatorError as error:
        raise RejectedStructure("calculation_failed", str(error)) from error
    _check_forces(forces)

    results = {
        "energy": calculated.get_potential_energy(),
        "forces": forces.round(6),
        "stress": stress,
        "charges": calculated.calc.results.get("charges"),
        "dipole": calculated.calc.results.get("dipole"),
    }
    given = {name: value for name, value in results.items() if value is not None}
    calculated.calc = SinglePointCalculator(calculated, **given)
    calculated.info["level_of_theory"] = level_of_theory
    return calculated


def _check_forces(forces: np.ndarray) -> None:
    largest = np.linalg.norm(forces, axis=1).max()
    if not np.isfinite(largest):
        raise RejectedStructure("force_not_finite")
    if largest > LARGEST_FORCE:
        raise RejectedStructure("force_too_large", f"{largest:.1f} eV/A is above {LARGEST_FORCE:g}")
