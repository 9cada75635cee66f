"""Oracles: the calculators that label structures, and the rules for a label to be kept.

GFN1-xTB labels are sharp: in 379 structures, a second run with other charge mixing agreed to 2e-7 eV and
4e-4 eV/A, but for one cluster that has two electronic solutions 1.8 eV apart.
"""

from __future__ import annotations

import importlib.util

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorError
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator


GFN1_LEVEL = "GFN1-xTB"
EMT_LEVEL = "EMT"
# Fermi smearing, K. In 6 of 250 clusters the self-consistent charges (SCC) did not converge in 100 iterations,
# in 18 at tblite's default of 300 K; 250 iterations rescue none of the 6.
ELECTRONIC_TEMPERATURE = 1500.0
MAX_SCC_ITERATIONS = 100
LARGEST_FORCE = 15.0  # eV/A


class RejectedStructure(Exception):
    """A structure that gets no label, for a `reason` that can be counted and a `detail` that explains it."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def require_tblite() -> None:
    """Raise an ImportError that says what to install, unless tblite is there."""
    if importlib.util.find_spec("tblite") is None:
        raise ImportError(
            "GFN1-xTB labels need tblite, which is not installed: pip install evenfield[demo]"
        )


def oracle_calculator(level_of_theory: str) -> Calculator:
    """A fresh ASE calculator for "GFN1-xTB" (tblite; never for periodic cells) or "EMT"."""
    if level_of_theory == EMT_LEVEL:
        return EMT()
    if level_of_theory != GFN1_LEVEL:
        raise ValueError(
            f"no oracle for level_of_theory {level_of_theory!r}; use {GFN1_LEVEL} or {EMT_LEVEL}"
        )
    require_tblite()
    from tblite.ase import (
        TBLite,  # on first use: its threads are set by then, and it is an optional extra
    )

    return TBLite(
        method=GFN1_LEVEL,
        electronic_temperature=ELECTRONIC_TEMPERATURE,
        max_iterations=MAX_SCC_ITERATIONS,
        verbosity=0,
    )


def label(atoms: Atoms, level_of_theory: str) -> Atoms:
    """A copy of `atoms` with energy (eV), forces (eV/A) and, if periodic, stress (eV/A^3) attached.

    GFN1-xTB also gives charges (e) and the dipole (e A). Raises RejectedStructure where the oracle fails or
    a force exceeds LARGEST_FORCE, ValueError for a periodic structure at GFN1-xTB: tblite samples only the
    Gamma point, which is wrong for small cells.
    """
    periodic = bool(atoms.pbc.any())
    if periodic and level_of_theory == GFN1_LEVEL:
        raise ValueError(
            f"{GFN1_LEVEL} labels isolated structures only, {atoms.symbols} is periodic"
        )
    labelled = atoms.copy()
    labelled.calc = oracle_calculator(level_of_theory)
    try:
        forces = labelled.get_forces()
        stress = labelled.get_stress() if periodic else None
    except CalculatorError as error:
        raise _rejection(error) from error
    _check_forces(forces)
    results = {
        "energy": labelled.get_potential_energy(),
        "forces": forces.round(6),
        "stress": stress,
    }
    results |= {key: labelled.calc.results.get(key) for key in ("charges", "dipole")}
    labelled.calc = SinglePointCalculator(
        labelled, **{k: v for k, v in results.items() if v is not None}
    )
    labelled.info["level_of_theory"] = level_of_theory
    return labelled


def _rejection(error: CalculatorError) -> RejectedStructure:
    """The reason for which a calculator failed."""
    message = str(error)
    return RejectedStructure(
        "scc_not_converged" if "not converged" in message else "oracle_failed", message
    )


def _check_forces(forces: np.ndarray) -> None:
    largest = np.linalg.norm(forces, axis=1).max()
    if not np.isfinite(largest):
        raise RejectedStructure("force_not_finite")
    if largest > LARGEST_FORCE:
        raise RejectedStructure("force_too_large", f"{largest:.1f} eV/A is above {LARGEST_FORCE:g}")
