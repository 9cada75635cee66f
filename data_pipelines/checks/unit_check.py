"""Are the units and signs of a source what its config says? Asked before anything is converted.

Each test looks at a sample and has a fixed threshold, tuned on some forty published data sets.
Where the sample cannot decide it, the test is skipped, and the report says so. A failed test names
the setting that would make it pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
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
from ..structure import BadRecordError, Structure
from .unit_pairs import bonds, pressure_steps, works_between_frames


# structures of the sample, and the most atoms in them
SAMPLE_SIZE = 1000
SAMPLE_ATOMS = 60_000
SAMPLE_PARTS = 8
BOND_SAMPLE = 200

# labels whose work explains energy differences
FIRST_LAW = ("forces", "stress")
# |sum F| / sqrt(sum |F|^2), median; 0 in nature, 1 for random arrows
MAX_NET_FORCE = 0.5
# eV/A, mean; the forces of a relaxed structure are rounding
MIN_MEAN_FORCE = 0.01
# energy difference over work; 1 in nature
SLOPES = (0.7, 1.4)
# pairs, correlation, and share of the energy differences that a slope needs to be trusted
MIN_PAIRS = 10
MIN_CORRELATION = 0.8
MIN_SHARE = 0.1
# slopes of forces and stress that differ by less have one cause, the unit of the energy
SAME_SLOPE = (0.85, 1.18)
# share of volume steps with falling pressure: wrong below the first, right above the second
FALLING_PRESSURE = (0.25, 0.6)
# a stretched bond pulls back
MIN_BOND_CORRELATION = 0.15
MIN_BONDS = 100
# closest pair over its covalent radii, median; published data sets are in 0.62 to 1.11
BOND_RATIOS = (0.55, 1.4)
# median; the hottest published data set has 180 GPa
MAX_PRESSURE = 1000 * units.GPa
# eV/atom about the E0 fit, median; published data sets are below 2
MAX_RESIDUAL = 4.0
# the same among many different compositions, which do scatter
MIN_RESIDUAL = 0.02
# logarithm of the largest factor between a slope and the unit that explains it
UNIT_TOLERANCE = 0.2
REWEIGHTINGS = 20
# a slope is wrong when all but a hundredth of its resampled values are
RESAMPLES = 400
LARGEST_DRAW = 500
SLOPE_QUANTILES = (0.01, 0.99)


class UnitError(EvenfieldError):
    """A source whose units or signs look wrong.

    The message names the tests that failed and the settings that would make them pass.
    """


@dataclass(frozen=True)
class Finding:
    """The outcome of one test."""

    test: str
    outcome: Literal["pass", "fail", "skipped"]
    text: str
    """What was seen, and for a failed test what to do."""
    value: float | None = None
    """The number that decided."""


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
    """Check a source, and return the report. Raises UnitError if a test fails."""
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
    """The first structures of up to SAMPLE_PARTS parts of the source.

    Structures that follow each other stay neighbours: frames of one trajectory are evidence.
    """
    chosen = sample_parts(source, config, SAMPLE_PARTS)
    structures = []
    for part in chosen:
        most = SAMPLE_SIZE // len(chosen)
        atoms = 0
        readable = _until_bad(read_part(part, config), most)
        for structure in islice(readable, most):
            structures.append(structure)
            atoms += len(structure)
            if atoms > SAMPLE_ATOMS / len(chosen):
                break
    return structures


def _until_bad(
    items: Iterator[Structure | BadRecordError | None], most_bad: int
) -> Iterator[Structure]:
    """The structures among some items, up to that many bad records.

    A part of bad records only would be read to its end, for a sample of nothing.
    """
    num_bad = 0
    for item in items:
        if isinstance(item, Structure):
            yield item
        num_bad += isinstance(item, BadRecordError)
        if num_bad >= most_bad:
            return


def examine(structures: list[Structure], config: SourceConfig) -> list[Finding]:
    """Run all tests on given structures."""
    bond_lengths, bond_signs = _bond_tests(structures, config)
    return [
        bond_lengths,
        _net_force(structures),
        bond_signs,
        *_first_law(structures, config, lengths_are_wrong=bond_lengths.outcome == "fail"),
        _pressure_size(structures),
        _pressure_by_volume(structures, config),
        _residuals(structures),
    ]


def _net_force(structures: list[Structure]) -> Finding:
    """The forces on a periodic structure sum to zero."""
    name = "net force"
    ratios = []
    for structure in structures:
        forces = structure.forces
        # a molecule in a box may be held by a wall or a field
        if forces is None or not structure.pbc.all():
            continue
        # one atom has no other to balance its force
        if len(structure) == 1 or np.abs(forces).mean() < MIN_MEAN_FORCE:
            continue
        # an atom without any force may have been held fixed, and then took the net force
        if forces.any(axis=1).all():
            net_force = np.linalg.norm(forces.sum(axis=0))
            random_sum = np.linalg.norm(forces)
            ratios.append(net_force / random_sum)
    count = len(ratios)
    if count < MIN_PAIRS:
        text = f"{name}: too few periodic structures with forces ({count})"
        return Finding(name, "skipped", text)
    ratio = float(np.median(ratios))
    if ratio < MAX_NET_FORCE:
        return Finding(name, "pass", f"{name}: {ratio:.3f} of a random sum", ratio)
    text = (
        f"the forces do not sum to zero (median {ratio:.2f} of a random sum): "
        "columns.forces names another quantity"
    )
    return Finding(name, "fail", text, ratio)


# --- energy against the work of forces and stress


def _first_law(
    structures: list[Structure], config: SourceConfig, lengths_are_wrong: bool
) -> list[Finding]:
    """One finding for forces and one for stress."""
    works = works_between_frames(structures)
    columns = np.stack([works.forces, works.stress], axis=1)  # (P, 2)
    slopes = _least_deviations(columns, works.energy)
    verdicts: dict[str, tuple[float | None, str]] = {}
    wrong = {}
    for index, label in enumerate(FIRST_LAW):
        # what the other label does not explain
        rest = works.energy - columns[:, 1 - index] * slopes[1 - index]
        work = columns[:, index]
        slope, evidence = _trusted_slope(rest, work, slopes[index], works.energy)
        if slope is not None and not SLOPES[0] < slope < SLOPES[1]:
            low, high = _slope_range(rest[work != 0], work[work != 0])
            if high < SLOPES[0] or low > SLOPES[1]:
                wrong[label] = slope
            else:
                evidence = (
                    f"slope {slope:.2f}, {evidence}, but other pairs of this kind might give "
                    f"{low:.2f} to {high:.2f}, which decides nothing"
                )
                slope = None
        verdicts[label] = (slope, evidence)
    both_wrong = False
    if len(wrong) == len(FIRST_LAW):
        both_wrong = SAME_SLOPE[0] < wrong["forces"] / wrong["stress"] < SAME_SLOPE[1]

    findings = []
    for label, (slope, evidence) in verdicts.items():
        name = f"energy against {label}"
        if slope is None:
            findings.append(Finding(name, "skipped", f"{name}: {evidence}"))
        elif label not in wrong:
            text = f"{name}: slope {slope:.2f}, {evidence}"
            findings.append(Finding(name, "pass", text, slope))
        else:
            remedy = "set length_unit=Bohr"
            if not lengths_are_wrong:
                remedy = _remedy_of_slope(label, slope, config, energy_is_wrong=both_wrong)
            text = f"energy changes by {slope:.3g} times the work of the {label} ({evidence})"
            findings.append(Finding(name, "fail", f"{text}: {remedy}", slope))
    return findings


def _trusted_slope(
    energy: np.ndarray, work: np.ndarray, slope: float, total: np.ndarray
) -> tuple[float | None, str]:
    """The slope and its evidence in words; None instead of a slope that cannot be trusted.

    energy: (P,) what the work of one label should explain.  total: (P,) all energy differences.
    """
    moved = work != 0
    count = int(moved.sum())
    if count < MIN_PAIRS:
        return None, f"too few pairs of close frames ({count})"
    correlation = abs(spearmanr(energy[moved], work[moved])[0])
    typical_work = np.median(np.abs(slope * work[moved]))
    share = typical_work / max(np.median(np.abs(total[moved])), 1e-9)
    evidence = f"{count} pairs of frames, correlation {correlation:.2f}"
    # written so that NaN is too weak as well
    if not correlation >= MIN_CORRELATION:
        return None, f"{evidence} is too weak"
    if share < MIN_SHARE:
        return None, f"{evidence}, but it makes up {share:.0%} of the energy differences only"
    return float(slope), evidence


def _slope_range(energy: np.ndarray, work: np.ndarray) -> tuple[float, float]:
    """Which slopes (low, high) other frames of the same kind might have given.

    energy, work: (P,) of one label.  By a bootstrap: the slopes of RESAMPLES random draws of pairs.
    """
    count = len(work)
    # Each frame is in up to four pairs, two of which would do. Draws of half the size make up for
    # pairs that say the same thing twice.
    size = min(max(count // 2, 2), LARGEST_DRAW)
    drawn = np.random.default_rng(0).integers(count, size=(RESAMPLES, size))
    energies = energy[drawn]
    works = work[drawn]

    # the fit of `_least_deviations` for one column, in all draws at once
    floor = 1e-9 + 0.02 * np.median(np.abs(energy))
    weights = np.ones_like(works)
    slopes = np.zeros(RESAMPLES)
    for _ in range(REWEIGHTINGS):
        products = (weights * works * energies).sum(axis=1)
        squares = (weights * works**2).sum(axis=1)
        slopes = products / squares
        residuals = np.abs(energies - slopes[:, None] * works)
        weights = 1 / np.maximum(residuals, floor)
    low, high = np.quantile(slopes, SLOPE_QUANTILES)
    return float(low), float(high)


def _least_deviations(columns: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Slopes (2,) that minimise the sum of |energy - columns @ slopes|.

    By reweighted least squares. Outliers do not bend it, as they would bend a least-squares fit.
    """
    slopes = np.zeros(2)
    weights: np.ndarray = np.ones(len(energy))
    if len(energy) < MIN_PAIRS:
        return slopes
    floor = 1e-9 + 0.02 * np.median(np.abs(energy))
    for _ in range(REWEIGHTINGS):
        slopes = np.linalg.lstsq(columns * weights[:, None], energy * weights, rcond=None)[0]
        weights = 1 / np.sqrt(np.maximum(np.abs(energy - columns @ slopes), floor))
    return slopes


def _remedy_of_slope(label: str, slope: float, config: SourceConfig, energy_is_wrong: bool) -> str:
    """The setting that would make the slope one: the label's unit, or the energy's.

    It is the energy's if forces and stress agree on it, or if no unit of the label fits.
    """
    # a slope above one means that the label is too small, or the energy too large
    of_label = _likely_units(label, slope, config)
    of_energy = _likely_units("energy", 1 / slope, config)
    if of_energy and (energy_is_wrong or not of_label):
        return f"set {_setting(of_energy[0], 'energy', config)}"
    if of_label:
        return f"set {_setting(of_label[0], label, config)}"
    return f"check units.{label} and units.energy"


def _likely_units(label: str, factor: float, config: SourceConfig) -> list[str]:
    """Units in which the label would be `factor` times as large as now, the nearest first."""
    known = LABELS[label].unit_factors
    stated = _stated_unit(label, config)
    if stated not in known:
        # a virial, whose unit is that of an energy
        known = LABELS[label].times_volume
    wanted = known[stated] * factor
    distance = {}
    for unit, value in known.items():
        # units with the other sign explain nothing
        if value / wanted > 0:
            distance[unit] = abs(np.log(value / wanted))
    near = [unit for unit in distance if distance[unit] < UNIT_TOLERANCE]
    return sorted(near, key=lambda unit: distance[unit])


def _stated_unit(label: str, config: SourceConfig) -> str:
    """The unit that the config states, the first of several, or that the pipeline assumes."""
    stated = config.units_of(label)
    return stated[0] if stated else LABELS[label].unit


def _setting(unit: str, label: str, config: SourceConfig) -> str:
    """The words of a command line that set a unit; it needs a column to belong to."""
    setting = f"units.{label}={unit}"
    if label in config.columns:
        return setting
    if config.reference_columns:
        # whichever of the two has been read
        return f"columns.{label}=[{label},REF_{label}] {setting}"
    return f"columns.{label}={label} {setting}"


def _opposite_sign(label: str, config: SourceConfig) -> str:
    """The remedy for a label with the wrong sign."""
    unit = _stated_unit(label, config)
    opposite = f"-{unit}"
    if unit.startswith("-"):
        opposite = unit.removeprefix("-")
    return f"set {_setting(opposite, label, config)}"


# --- bonds, pressure, energies per atom


def _bond_tests(structures: list[Structure], config: SourceConfig) -> tuple[Finding, Finding]:
    """Lengths of bonds, and whether stretched bonds pull back."""
    step = max(1, len(structures) // BOND_SAMPLE)
    found = bonds(structures[::step])
    lengths = _bond_lengths(found.closest, config)
    return lengths, _bond_signs(found.stretch, found.push, config)


def _bond_lengths(ratios: np.ndarray, config: SourceConfig) -> Finding:
    name = "bond lengths"
    count = len(ratios)
    if count < MIN_PAIRS:
        text = f"{name}: too few structures with neighbours ({count})"
        return Finding(name, "skipped", text)
    ratio = float(np.median(ratios))
    if BOND_RATIOS[0] < ratio < BOND_RATIOS[1]:
        return Finding(name, "pass", f"{name}: {ratio:.2f} of the covalent radii", ratio)
    if ratio > 1:
        unit = "Bohr"
    elif config.length_unit != "A":
        unit = "A"
    else:
        unit = "nm"
    text = (
        f"the closest atoms are at {ratio:.2f} times the sum of their covalent radii: "
        f"set length_unit={unit}"
    )
    return Finding(name, "fail", text, ratio)


def _bond_signs(stretch: np.ndarray, push: np.ndarray, config: SourceConfig) -> Finding:
    name = "bonds pull back"
    count = len(stretch)
    # a constant has no correlation with anything
    if count < MIN_BONDS or not stretch.any() or not push.any():
        return Finding(name, "skipped", f"{name}: too few bonds under force ({count})")
    # ranks, because a few bonds in a broken structure carry forces of any size
    statistic, _ = spearmanr(stretch, push)
    correlation = float(statistic)
    if correlation < -MIN_BOND_CORRELATION:
        return Finding(name, "pass", f"{name}: correlation {correlation:.2f}", correlation)
    if correlation < MIN_BOND_CORRELATION:
        return Finding(name, "skipped", f"{name}: correlation {correlation:.2f} decides nothing")
    text = (
        f"stretched bonds push apart (correlation {correlation:.2f}): "
        f"{_opposite_sign('forces', config)}"
    )
    return Finding(name, "fail", text, correlation)


def _pressure_by_volume(structures: list[Structure], config: SourceConfig) -> Finding:
    """The pressure of a structure falls when its volume grows."""
    name = "pressure against volume"
    steps = pressure_steps(structures)
    count = len(steps)
    if count < MIN_PAIRS:
        text = f"{name}: too few frames of the same atoms at other volumes ({count})"
        return Finding(name, "skipped", text)
    of_volume, of_pressure = steps.T
    falls = of_volume * of_pressure < 0
    share = float(np.mean(falls))
    seen = f"{name}: falls in {share:.0%} of {count} steps"
    if share > FALLING_PRESSURE[1]:
        return Finding(name, "pass", seen, share)
    if share > FALLING_PRESSURE[0]:
        return Finding(name, "skipped", f"{seen}, which decides nothing")
    text = (
        f"pressure rises with volume in {1 - share:.0%} of {count} steps: "
        f"{_opposite_sign('stress', config)}"
    )
    return Finding(name, "fail", text, share)


def _pressure_size(structures: list[Structure]) -> Finding:
    """Pressures are below those of any experiment."""
    name = "size of the pressure"
    pressures = []
    for structure in structures:
        if structure.stress is not None:
            trace = np.trace(structure.stress)
            pressures.append(abs(trace) / 3)
    count = len(pressures)
    if count < MIN_PAIRS:
        text = f"{name}: too few structures with stress ({count})"
        return Finding(name, "skipped", text)
    # the median, because a few structures may have been compressed on purpose
    pressure = float(np.median(pressures))
    in_gpa = pressure / units.GPa
    seen = f"median {in_gpa:.3g} GPa"
    if pressure < MAX_PRESSURE:
        return Finding(name, "pass", f"{name}: {seen}", pressure)
    text = f"pressures are beyond any experiment ({seen}): check units.stress (GPa, kbar?)"
    return Finding(name, "fail", text, pressure)


def _residuals(structures: list[Structure]) -> Finding:
    """Energies per atom about the E0 fit are formation energies, some 0.1 to 1 eV/atom."""
    name = "energies about the E0 fit"
    labelled = [structure for structure in structures if structure.energy is not None]
    if len(labelled) < MIN_PAIRS:
        return Finding(name, "skipped", f"{name}: too few energies ({len(labelled)})")

    # each level of theory has a zero of its own
    fits: dict[str, ReferenceFit] = defaultdict(ReferenceFit)
    for structure in labelled:
        size = np.array([len(structure)])
        energy = np.array([structure.energy])
        counts = compositions(structure.atomic_numbers, size)
        fits[structure.level_of_theory].add(counts, energy)
    e0 = {}
    for level, fit in fits.items():
        e0[level], _ = fit.solve()

    residuals = []
    for structure in labelled:
        assert structure.energy is not None
        of_level = e0[structure.level_of_theory]
        numbers = structure.atomic_numbers.tolist()
        reference = sum(of_level[number] for number in numbers)
        difference = abs(structure.energy - reference)
        residuals.append(difference / len(structure))
    residual = float(np.median(residuals))
    seen = f"{residual:.3g} eV/atom about the E0 fit"
    if residual > MAX_RESIDUAL:
        text = (
            f"energies scatter by {seen}, which is too much: check units.energy (kcal/mol, kJ/mol?)"
        )
        return Finding(name, "fail", text, residual)

    num_compositions = _num_compositions(labelled)
    if _is_diverse(labelled, num_compositions, len(fits)) and residual < MIN_RESIDUAL:
        text = (
            f"energies of {num_compositions} compositions scatter by only {seen}: "
            "check units.energy (Hartree, Ry?)"
        )
        return Finding(name, "fail", text, residual)
    return Finding(name, "pass", f"{name}: {seen}", residual)


def _num_compositions(structures: list[Structure]) -> int:
    """Different shares of elements."""
    found = set()
    for structure in structures:
        shares = np.bincount(structure.atomic_numbers) / len(structure)
        found.add(tuple(shares))
    return len(found)


def _is_diverse(structures: list[Structure], num_compositions: int, num_levels: int) -> bool:
    """Whether compositions are too many for E0 to explain all energies."""
    elements = set()
    for structure in structures:
        elements |= set(structure.elements.tolist())
    if len(elements) < 10 or num_compositions < 50:
        return False
    return num_compositions >= 5 * len(elements) * num_levels
