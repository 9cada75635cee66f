"""Elemental crystals against the ACWF data: volume, bulk modulus, and the lowest structure.

The references are PBE without spin (E. Bosoni et al., Nat. Rev. Phys. 6, 45 (2024)), for fcc, bcc,
simple cubic and diamond. Elements for which these say little are left out: molecular and noble
gases, magnetic metals, and elements with open f shells. ACWF has no hcp. The order of fcc and hcp
is compared with the natural structure but not judged, because it depends on a few meV/atom. Volumes
and moduli are judged only for PBE levels: other functionals differ by more than the thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, chemical_symbols, reference_states

from ...core.figures.periodic_table import periodic_table_heat_map
from ...core.figures.style import figure_png
from ..check import CheckedCalculator, CheckResult, Figure
from ..sanity.config import SanityConfig
from ..sanity.crystals import minimum
from ..sanity.equation_of_state import EquationOfState
from ..sanity.reference.tables import ElementalPhase, elemental_phases
from ..sanity.verdicts import shortened, with_progress
from .lattice import reference_of


VOLUME_ERROR = 3.0  # percent, median over the elements
MODULUS_ERROR = 20.0  # percent, median over the elements
RIGHT_PHASES = 70.0  # percent of the elements, at least
# A structure counts as lowest if it is within this of the lowest in the reference, meV/atom.
TIE = 10.0

GASES = ["H", "He", "N", "O", "F", "Ne", "Cl", "Ar", "Br", "Kr", "I", "Xe", "Rn"]
MAGNETIC = ["Cr", "Mn", "Fe", "Co", "Ni"]
OPEN_F_SHELL = [*chemical_symbols[58:71], *chemical_symbols[91:104]]
NOT_COMPARABLE = {*GASES, *MAGNETIC, *OPEN_F_SHELL}

QUICK = [
    "Li",
    "C",
    "Na",
    "Mg",
    "Al",
    "Si",
    "K",
    "Ca",
    "Ti",
    "V",
    "Cu",
    "Zn",
    "Nb",
    "Mo",
    "Ag",
    "Ta",
    "W",
    "Pt",
    "Au",
    "Pb",
]


def check(model: CheckedCalculator, settings: SanityConfig) -> CheckResult:
    """Volumes, bulk moduli and lowest structures of the elements against PBE.

    Example: evenfield check crystals evenfield-s elements=[Cu,Al] --level-of-theory EMT
    """
    calculator = model.calculator("float64")
    known = settings.chosen(model.symbols)
    wanted = [symbol for symbol in elemental_phases() if symbol not in NOT_COMPARABLE]
    if settings.suite == "quick":
        wanted = [symbol for symbol in wanted if symbol in QUICK]
    judged = [symbol for symbol in wanted if symbol in known]
    skipped = [symbol for symbol in wanted if symbol not in known]
    if not judged:
        return CheckResult(lines=["no element of the table is known"], skipped=skipped)

    elements = []
    for symbol in with_progress("crystals", judged):
        elements.append(_element(calculator, symbol, elemental_phases()[symbol]))
    reference = settings.reference
    is_pbe = reference == "pbe" or (reference == "auto" and reference_of(model.level) == "pbe")
    figures, lines = _summary(elements, judges_sizes=is_pbe)
    if not is_pbe:
        lines.append("volumes and moduli have no verdict: the references are PBE, the level is not")
    pictures = {"volumes.png": _picture(elements)}
    return CheckResult(figures, lines, skipped, pictures)


@dataclass(frozen=True)
class Element:
    """Results for an element.

    volume_error, modulus_error: of the structure that is lowest in the reference, in percent with
    sign; NaN if the crystal has no minimum.
    lowest, expected: the lowest of the four structures by the calculator and by the reference.
    is_right: whether `lowest` is the lowest structure of the reference, or within TIE of it.
    hcp_is_right: whether the order of hcp and fcc agrees with the natural structure; None if that
    is neither, or if fcc has no minimum.
    """

    symbol: str
    volume_error: float
    modulus_error: float
    lowest: str
    expected: str
    is_right: bool
    hcp_is_right: bool | None


def _element(calculator: Calculator, symbol: str, references: dict[str, ElementalPhase]) -> Element:
    found: dict[str, EquationOfState] = {}
    for name, reference in references.items():
        found[name] = minimum(calculator, symbol, name, reference.volume)

    expected = min(references, key=lambda name: references[name].above)
    best = found[expected]
    energies = {name: curve.energy for name, curve in found.items() if np.isfinite(curve.energy)}
    lowest = min(energies, key=lambda name: energies[name]) if energies else "none"
    is_right = lowest != "none" and references[lowest].above <= TIE

    return Element(
        symbol=symbol,
        volume_error=100 * (best.volume / references[expected].volume - 1),
        modulus_error=100 * (best.bulk_modulus / references[expected].bulk_modulus - 1),
        lowest=lowest,
        expected=expected,
        is_right=is_right,
        hcp_is_right=_hcp_is_right(calculator, symbol, found["fcc"]),
    )


def _hcp_is_right(calculator: Calculator, symbol: str, fcc: EquationOfState) -> bool | None:
    state = reference_states[atomic_numbers[symbol]]
    natural = None if state is None else state["symmetry"]
    if natural not in ("fcc", "hcp") or not fcc.volume > 0:
        return None
    hcp = minimum(calculator, symbol, "hcp", fcc.volume)
    return bool((hcp.energy < fcc.energy) == (natural == "hcp"))


def _summary(elements: list[Element], *, judges_sizes: bool) -> tuple[list[Figure], list[str]]:
    """Figures and lines for all elements; judges_sizes: whether volumes and moduli are judged."""
    volume_errors = np.array([element.volume_error for element in elements])
    modulus_errors = np.array([element.modulus_error for element in elements])
    without = [element.symbol for element in elements if not np.isfinite(element.volume_error)]
    close_packed = [e.hcp_is_right for e in elements if e.hcp_is_right is not None]

    volume_limit = VOLUME_ERROR if judges_sizes else None
    modulus_limit = MODULUS_ERROR if judges_sizes else None
    figures = [
        Figure("elements", len(elements), ""),
        Figure("elements without a minimum", len(without), "", limit=0),
        Figure("median error of the volume", _median(volume_errors), "%", volume_limit),
        Figure("median error of the modulus", _median(modulus_errors), "%", modulus_limit),
        Figure(
            "elements with the right structure lowest",
            100 * float(np.mean([element.is_right for element in elements])),
            "%",
            at_least=RIGHT_PHASES,
        ),
    ]
    if close_packed:
        share = 100 * float(np.mean(close_packed))
        figures.append(Figure("fcc and hcp in the order of nature", share, "%"))

    lines = [f"elements without a minimum: {shortened(without)}"] if without else []
    far = [e for e in elements if abs(e.volume_error) > VOLUME_ERROR]
    if far:
        shown = [f"{e.symbol} {e.volume_error:+.0f} %" for e in far]
        lines.append(f"volume off by more than {VOLUME_ERROR:g} %: {shortened(shown)}")
    wrong = [f"{e.symbol} {e.lowest} for {e.expected}" for e in elements if not e.is_right]
    if wrong:
        lines.append(f"another structure lowest: {shortened(wrong)}")
    return figures, lines


def _median(errors: np.ndarray) -> float:
    """Median of the absolute errors; NaN, an element without a minimum, counts as infinite."""
    return float(np.median(np.where(np.isfinite(errors), np.abs(errors), np.inf)))


def _picture(elements: list[Element]) -> bytes:
    values = {e.symbol: abs(e.volume_error) for e in elements if np.isfinite(e.volume_error)}
    figure = periodic_table_heat_map(values, title="error of the volume", unit="%")
    return figure_png(figure)
