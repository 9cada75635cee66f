"""Are a source's units and signs what its config says?  Asked on a sample, before anything is converted.

Each test has a fixed threshold, tuned on some forty published sets, and is skipped, aloud, where the sample cannot
decide it.  A failed test names the key that mends it; `trust_units=true` converts nevertheless.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from ase import units
from scipy.stats import spearmanr

from ...core.errors import EvenfieldError
from ...core.labels import LABELS
from ..census.census import ReferenceFit, compositions
from ..sources.config import SourceConfig
from ..sources.read import read_part, sample_parts
from ..structure import Structure
from .unit_pairs import bonds, pressure_steps, works_between_frames


FIRST_LAW: tuple[str, ...] = ("forces", "stress")
SAMPLE_SIZE = 1000  # structures, and at most this many atoms:
SAMPLE_ATOMS = 60_000
SAMPLE_PARTS = 8
BOND_SAMPLE = 200

MAX_NET_FORCE = 0.5  # |sum F| / sqrt(sum |F|^2), median; 0 in nature, 1 for arrows thrown at random
SLOPES = (0.7, 1.4)  # energy difference over work; 1 in nature
MIN_PAIRS, MIN_CORRELATION, MIN_SHARE = 10, 0.8, 0.1  # what it takes to trust a slope
FALLING_PRESSURE = (
    0.25,
    0.6,
)  # share of volume steps with falling pressure: wrong below, right above
MIN_BOND_CORRELATION = 0.15  # a stretched bond pulls back
BOND_RATIOS = (
    0.55,
    1.4,
)  # closest pair over its covalent radii, median; published sets lie in 0.62..1.11
MAX_PRESSURE = 1000 * units.GPa  # median; the hottest published set has 180 GPa
MAX_RESIDUAL = 4.0  # eV/atom about the E0 fit, median; published sets lie below 2
MIN_RESIDUAL = 0.02  # the same among many different compositions


class UnitError(EvenfieldError):
    """A source whose units or signs look wrong; the message names the tests that failed and the keys that mend."""


@dataclass(frozen=True)
class Finding:
    """One test: its outcome, what was seen in words, and the number that decided."""

    test: str
    outcome: Literal["pass", "fail", "skipped"]
    text: str
    value: float | None = None


@dataclass(frozen=True)
class UnitReport:
    """What the unit check found in a source."""

    source: str
    num_structures: int
    findings: list[Finding]

    @property
    def failed(self) -> list[Finding]:
        """The tests that failed."""
        return [finding for finding in self.findings if finding.outcome == "fail"]


def refuse_suspicious_units(source: str, config: SourceConfig) -> UnitReport:
    """The report of a source that passes; raises UnitError, one line, for one that does not."""
    report = check_units(source, config)
    if report.failed:
        wrong = "; ".join(finding.text for finding in report.failed)
        raise UnitError(
            f"units or signs look wrong in {report.num_structures} sampled structures: {wrong}",
            file=source,
        )
    return report


def check_units(source: str, config: SourceConfig) -> UnitReport:
    """Run all tests on a sample of the source; bad records are left to the conversion."""
    structures = sample_structures(source, config)
    return UnitReport(source, len(structures), examine(structures, config))


def sample_structures(source: str, config: SourceConfig) -> list[Structure]:
    """The first structures of up to eight parts spread over the source; neighbours stay neighbours."""
    chosen = sample_parts(source, config, SAMPLE_PARTS)
    structures = []
    for part in chosen:
        atoms = 0
        found = (item for item in read_part(part, config) if isinstance(item, Structure))
        for structure in islice(found, SAMPLE_SIZE // len(chosen)):
            structures.append(structure)
            atoms += len(structure)
            if atoms > SAMPLE_ATOMS / len(chosen):
                break
    return structures


def examine(structures: list[Structure], config: SourceConfig) -> list[Finding]:
    """All tests on given structures."""
    lengths, push = _bond_tests(structures, config)
    first_law = _first_law(structures, config, bohr=lengths.outcome == "fail")
    pressures = [_pressure_size(structures), _pressure(structures, config)]
    return [lengths, _net_force(structures), push, *first_law, *pressures, _residuals(structures)]


def _net_force(structures: list[Structure]) -> Finding:
    name, ratios = "net force", []
    for s in structures:
        if s.forces is None or not s.pbc.all() or len(s) == 1 or np.abs(s.forces).mean() < 0.01:
            continue
        if s.forces.any(axis=1).all():  # an atom with no force at all may have been held fixed
            ratios.append(np.linalg.norm(s.forces.sum(axis=0)) / np.linalg.norm(s.forces))
    if len(ratios) < MIN_PAIRS:
        return Finding(
            name, "skipped", f"{name}: too few periodic structures with forces ({len(ratios)})"
        )
    ratio = float(np.median(ratios))
    if ratio < MAX_NET_FORCE:
        return Finding(name, "pass", f"{name}: {ratio:.3f} of a random sum", ratio)
    text = f"the forces do not sum to zero (median {ratio:.2f} of a random sum): columns.forces names another quantity"
    return Finding(name, "fail", text, ratio)


# --- energy against the work of forces and stress


def _first_law(structures: list[Structure], config: SourceConfig, bohr: bool) -> list[Finding]:
    works = works_between_frames(structures)
    columns = np.stack([works.forces, works.stress], axis=1)  # (P, 2)
    slopes = _least_deviations(columns, works.energy)
    verdicts: dict[str, tuple[float | None, str]] = {}
    for k, label in enumerate(FIRST_LAW):
        rest = works.energy - columns[:, 1 - k] * slopes[1 - k]
        verdicts[label] = _trusted(rest, columns[:, k], slopes[k], works.energy)
    wrong = {
        label: slope
        for label, (slope, _) in verdicts.items()
        if slope is not None and not _is_one(slope)
    }
    findings = []
    for label, (slope, why) in verdicts.items():
        name = f"energy against {label}"
        if slope is None:
            findings.append(Finding(name, "skipped", f"{name}: {why}"))
        elif label not in wrong:
            findings.append(Finding(name, "pass", f"{name}: slope {slope:.2f}, {why}", slope))
        else:
            all_wrong = len(wrong) == 2 and 0.85 < wrong["forces"] / wrong["stress"] < 1.18
            mend = (
                "set length_unit=Bohr"
                if bohr
                else _mend_slope(label, slope, config, energy_too=all_wrong)
            )
            text = f"energy changes by {slope:.3g} times the work of the {label} ({why}): {mend}"
            findings.append(Finding(name, "fail", text, slope))
    return findings


def _is_one(slope: float) -> bool:
    return SLOPES[0] < slope < SLOPES[1]


def _trusted(
    energy: np.ndarray, work: np.ndarray, slope: float, total: np.ndarray
) -> tuple[float | None, str]:
    """The slope, or None where pairs are few, the correlation weak or the work a small share; and why."""
    moved = work != 0
    count = int(moved.sum())
    if count < MIN_PAIRS:
        return None, f"too few pairs of close frames ({count})"
    correlation = abs(spearmanr(energy[moved], work[moved])[0])
    share = np.median(np.abs(slope * work[moved])) / max(np.median(np.abs(total[moved])), 1e-9)
    why = f"{count} pairs of frames, correlation {correlation:.2f}"
    if not correlation >= MIN_CORRELATION:
        return None, f"{why} is too weak"
    if share < MIN_SHARE:
        return None, f"{why}, but it makes up {share:.0%} of the energy differences only"
    return float(slope), why


def _least_deviations(columns: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Slopes (2,) that minimise the sum of |energy - columns @ slopes|, by reweighted least squares."""
    slopes = np.zeros(2)
    weights: np.ndarray = np.ones(len(energy))
    if len(energy) < MIN_PAIRS:
        return slopes
    floor = 1e-9 + 0.02 * np.median(np.abs(energy))
    for _ in range(20):
        slopes = np.linalg.lstsq(columns * weights[:, None], energy * weights, rcond=None)[0]
        weights = 1 / np.sqrt(np.maximum(np.abs(energy - columns @ slopes), floor))
    return slopes


def _mend_slope(label: str, slope: float, config: SourceConfig, energy_too: bool) -> str:
    """The key that would make the slope one: the label's unit or, where forces and stress agree, the energy's."""
    own, of_energy = _likely(label, slope, config), _likely("energy", 1 / slope, config)
    if of_energy and (energy_too or not own):
        return f"set {_key(of_energy[0], 'energy', config)}"
    return f"set {_key(own[0], label, config)}" if own else f"check units.{label} and units.energy"


def _likely(label: str, factor: float, config: SourceConfig) -> list[str]:
    """Units of the label, nearest first, in which it would be `factor` times what it is taken for."""
    wanted = (
        LABELS[label].unit_factors[config.units.get(label, next(iter(LABELS[label].unit_factors)))]
        * factor
    )
    off = {
        unit: abs(np.log(known / wanted))
        for unit, known in LABELS[label].unit_factors.items()
        if known / wanted > 0
    }
    return sorted((unit for unit in off if off[unit] < 0.2), key=lambda unit: off[unit])


def _key(unit: str, label: str, config: SourceConfig) -> str:
    column = "" if label in config.columns else f"columns.{label}={label} "
    return f"{column}units.{label}={unit}"


# --- bonds, pressure, energies per atom


def _bond_tests(structures: list[Structure], config: SourceConfig) -> tuple[Finding, Finding]:
    step = max(1, len(structures) // BOND_SAMPLE)
    found = bonds(structures[::step])
    return _bond_lengths(found.closest, config), _bond_signs(found.stretch, found.push, config)


def _bond_lengths(ratios: np.ndarray, config: SourceConfig) -> Finding:
    name = "bond lengths"
    if len(ratios) < MIN_PAIRS:
        return Finding(
            name, "skipped", f"{name}: too few structures with neighbours ({len(ratios)})"
        )
    ratio = float(np.median(ratios))
    if BOND_RATIOS[0] < ratio < BOND_RATIOS[1]:
        return Finding(name, "pass", f"{name}: {ratio:.2f} of the covalent radii", ratio)
    other = "Bohr" if ratio > 1 else ("A" if config.length_unit != "A" else "nm")
    text = f"the closest atoms stand at {ratio:.2f} times their covalent radii: set length_unit={other}"
    return Finding(name, "fail", text, ratio)


def _bond_signs(stretch: np.ndarray, push: np.ndarray, config: SourceConfig) -> Finding:
    name = "bonds pull back"
    if len(stretch) < 100 or not stretch.any() or not push.any():
        return Finding(name, "skipped", f"{name}: too few bonds under force ({len(stretch)})")
    correlation = float(spearmanr(stretch, push)[0])
    if correlation < -MIN_BOND_CORRELATION:
        return Finding(name, "pass", f"{name}: correlation {correlation:.2f}", correlation)
    if correlation < MIN_BOND_CORRELATION:
        return Finding(name, "skipped", f"{name}: correlation {correlation:.2f} decides nothing")
    text = f"stretched bonds push apart (correlation {correlation:.2f}): {_flip('forces', config)}"
    return Finding(name, "fail", text, correlation)


def _pressure(structures: list[Structure], config: SourceConfig) -> Finding:
    name = "pressure against volume"
    steps = pressure_steps(structures)
    if len(steps) < MIN_PAIRS:
        return Finding(
            name,
            "skipped",
            f"{name}: too few frames of the same atoms at other volumes ({len(steps)})",
        )
    share = float(np.mean(steps[:, 0] * steps[:, 1] < 0))
    if share > FALLING_PRESSURE[1]:
        return Finding(name, "pass", f"{name}: falls in {share:.0%} of {len(steps)} steps", share)
    if share > FALLING_PRESSURE[0]:
        return Finding(
            name,
            "skipped",
            f"{name}: falls in {share:.0%} of {len(steps)} steps, which decides nothing",
        )
    text = f"pressure rises with volume in {1 - share:.0%} of {len(steps)} steps: {_flip('stress', config)}"
    return Finding(name, "fail", text, share)


def _pressure_size(structures: list[Structure]) -> Finding:
    name = "size of the pressure"
    pressures = [abs(np.trace(s.stress)) / 3 for s in structures if s.stress is not None]
    if len(pressures) < MIN_PAIRS:
        return Finding(
            name, "skipped", f"{name}: too few structures with stress ({len(pressures)})"
        )
    pressure = float(np.median(pressures))
    seen = f"median {pressure / units.GPa:.3g} GPa"
    if pressure < MAX_PRESSURE:
        return Finding(name, "pass", f"{name}: {seen}", pressure)
    return Finding(
        name,
        "fail",
        f"pressures are beyond any experiment ({seen}): check units.stress (GPa, kbar?)",
        pressure,
    )


def _flip(label: str, config: SourceConfig) -> str:
    unit = config.units.get(label, next(iter(LABELS[label].unit_factors)))
    return f"set {_key(unit[1:] if unit.startswith('-') else f'-{unit}', label, config)}"


def _residuals(structures: list[Structure]) -> Finding:
    """Energies per atom about the E0 fit of each level of theory: formation energies, some 0.1 to 1 eV/atom."""
    name = "energies about the E0 fit"
    fits: dict[str, ReferenceFit] = defaultdict(ReferenceFit)
    labelled = [s for s in structures if s.energy is not None]
    for s in labelled:
        fits[s.level_of_theory].add(
            compositions(s.atomic_numbers, np.array([len(s)])), np.array([s.energy])
        )
    if len(labelled) < MIN_PAIRS:
        return Finding(name, "skipped", f"{name}: too few energies ({len(labelled)})")
    e0 = {level: fit.solve()[0] for level, fit in fits.items()}
    residuals = [
        abs((s.energy or 0.0) - sum(e0[s.level_of_theory][z] for z in s.atomic_numbers.tolist()))
        / len(s)
        for s in labelled
    ]
    residual = float(np.median(residuals))
    elements = {z for s in labelled for z in s.elements.tolist()}
    formulas = {tuple(np.bincount(s.atomic_numbers) / len(s)) for s in labelled}
    diverse = (
        len(elements) >= 10
        and len(formulas) >= 50
        and len(formulas) >= 5 * len(elements) * len(fits)
    )
    seen = f"{residual:.3g} eV/atom about the E0 fit"
    if residual > MAX_RESIDUAL:
        text = (
            f"energies scatter by {seen}, which is too much: check units.energy (kcal/mol, kJ/mol?)"
        )
        return Finding(name, "fail", text, residual)
    if diverse and residual < MIN_RESIDUAL:
        text = f"energies of {len(formulas)} compositions scatter by only {seen}: check units.energy (Hartree, Ry?)"
        return Finding(name, "fail", text, residual)
    return Finding(name, "pass", f"{name}: {seen}", residual)
