"""Lattice parameters of cubic crystals against PBE or experiment."""

from __future__ import annotations

import numpy as np

from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.config import SanityConfig
from ..sanity.crystals import ATOMS_PER_CUBE, lattice_parameter, minimum
from ..sanity.reference.tables import lattices
from ..sanity.verdicts import failures, with_progress
from .elastic import crystal_symbols


LATTICE_ERROR = 2.0  # percent

# Functionals whose names contain "pbe" but which are not PBE.
NOT_PBE = ("pbesol", "pbe0", "revpbe", "rpbe")


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Lattice parameters of cubic crystals against PBE or experiment.

    Example: evenfield check lattice evenfield-s elements=[Cu,Al] --level-of-theory EMT
    """
    calculator = model.calculator("float64")
    known = set(settings.chosen(model.symbols))
    reference: str = settings.reference
    if reference == "auto":
        reference = reference_of(model.level)

    judged = [each for each in lattices() if set(crystal_symbols(each.name)) <= known]
    skipped = [each.name for each in lattices() if each not in judged]
    wrong = []
    table = []
    for each in with_progress("lattice", judged):
        expected = each.parameter(reference)
        volume = expected**3 / ATOMS_PER_CUBE[each.structure]
        curve = minimum(calculator, each.name, each.structure, volume)
        if not curve.volume > 0:
            wrong.append(f"{each.name} (no minimum)")
            continue
        found = lattice_parameter(each.structure, curve.volume)
        error = 100 * (found / expected - 1)
        table.append(f"{each.name:5} {found:6.3f} A, {reference} {expected:.3f} A, {error:+.1f} %")
        if not abs(error) <= LATTICE_ERROR:
            wrong.append(f"{each.name} ({error:+.1f} %)")

    figures = [Figure("crystals", len(judged), "")]
    lines: list[str] = []
    if judged:
        what = f"lattice parameters off by more than {LATTICE_ERROR:g} %"
        figure, lines = failures(what, wrong)
        share = 100 * len(wrong) / len(judged)
        figures += [figure, Figure("share of them", float(np.round(share, 1)), "%")]
    return CheckResult(figures, lines + table, skipped)


def reference_of(level: str) -> str:
    """The reference for a level of theory: "pbe" for PBE, "experiment" for everything else."""
    lowered = level.lower()
    is_other = any(name in lowered for name in NOT_PBE)
    return "pbe" if "pbe" in lowered and not is_other else "experiment"
