"""Check whether the units and signs of a source are those that its config states.

The check runs before anything is converted. Each test looks at a sample and has a fixed threshold,
tuned on about forty published data sets. If the sample is not sufficient, the test is skipped and
the report says so. The message of a failed test names the setting that would make it pass.
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


# limits of the sample: structures, and atoms in all of them
SAMPLE_SIZE = 1000
SAMPLE_ATOMS = 60_000
SAMPLE_PARTS = 8
BOND_SAMPLE = 200

# labels whose work accounts for energy differences
FIRST_LAW = ("forces", "stress")
# median of |sum F| / sqrt(sum |F|^2); 0 for correct forces, 1 for random vectors
MAX_NET_FORCE = 0.5
# eV/A, mean component; below this, the forces of a relaxed structure are mostly rounding errors
MIN_MEAN_FORCE = 0.01
# range for energy difference over work; 1 for correct units
SLOPES = (0.7, 1.4)
# a slope is trusted only with this many pairs, this correlation, and this share of the energy
# differences
MIN_PAIRS = 10
MIN_CORRELATION = 0.8
MIN_SHARE = 0.1
# if the ratio of the slopes of forces and stress is in this range, the energy unit is wrong
SAME_SLOPE = (0.85, 1.18)
# share of volume steps with falling pressure: below the first value the sign is wrong, above the
# second it is right
FALLING_PRESSURE = (0.25, 0.6)
# a stretched bond pulls its atoms together
MIN_BOND_CORRELATION = 0.15
MIN_BONDS = 100
# median of the shortest distance over the sum of covalent radii; 0.62 to 1.11 in published data
BOND_RATIOS = (0.55, 1.4)
# median; the published data set with the highest pressures has 180 GPa
MAX_PRESSURE = 1000 * units.GPa
# eV/atom, median deviation from the E0 fit; published data sets are below 2
MAX_RESIDUAL = 4.0
# eV/atom, least median deviation for many different compositions, whose energies always scatter
MIN_RESIDUAL = 0.02
# largest logarithm of the ratio between a slope and the unit factor that explains it
UNIT_TOLERANCE = 0.2
REWEIGHTINGS = 20
# a slope counts as wrong if at least 99 % of its resampled values are wrong
RESAMPLES = 400
LARGEST_DRAW = 500
SLOPE_QUANTILES = (0.01, 0.99)


class UnitError(EvenfieldError):
    """The units or signs of a source look wrong.

    The message names the failed tests and the settings that would make them pass.
    """


@dataclass(frozen=True)
class Finding:
    """The outcome of one test."""

    test: str
    outcome: Literal["pass", "fail", "skipped"]
    text: str
    """What was found, and for a failed test what to do."""
    value: float | None = None
    """The number on which the outcome is based."""


@dataclass(frozen=True)
class UnitReport:
    """The result of a unit check."""

    source: str
    num_structures: int
    findings: list[Finding]

    @property
    def failed(self) -> list[Finding]:
        """The tests that failed."""
        return [finding for finding in self.findings if finding.outcome == "fail"]


def refuse_suspicious_units(source: str, config: SourceConfig) -> UnitReport:
    """Check the units of a source and return the report. Raises UnitError if a test fails."""
    report = check_units(source, config)
    if report.failed:
        wrong = "; ".join(finding.text for finding in report.failed)
        raise UnitError(
            f"units or signs look wrong in {report.num_structures} sampled structures: {wrong}",
            file=source,
        )
    return report


def check_units(source: str, config: SourceConfig) -> UnitReport:
    """Run all tests on a sample of the source; bad records are skipped.

    Raises SourceError if the source cannot be read.
    """
    structures = sample_structures(source, config)
    return UnitReport(source, len(structures), examine(structures, config))


def sample_structures(source: str, config: SourceConfig) -> list[Structure]:
    """The first structures of up to SAMPLE_PARTS parts of the source.

    Consecutive structures stay next to each other, because the tests compare frames of a
    trajectory.
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
    """Yield the structures among the items, and stop after `most_bad` bad records.

    Otherwise, a part with only bad records would be read to its end.
    """
    num_bad = 0
    for item in items:
        if isinstance(item, Structure):
            yield item
        num_bad += isinstance(item, BadRecordError)
        if num_bad >= most_bad:
            return


def examine(structures: list[Structure], config: SourceConfig) -> list[Finding]:
    """Run all tests on the given structures; `config` states their units."""
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
    """Test that the forces on a periodic structure sum to zero."""
    name = "net force"
    ratios = []
    for structure in structures:
        forces = structure.forces
        # a molecule may be subject to an external field or wall, with a net force
        if forces is None or not structure.pbc.all():
            continue
        # the force on a single atom is zero by symmetry
        if len(structure) == 1 or np.abs(forces).mean() < MIN_MEAN_FORCE:
            continue
        # an atom with exactly zero force may have been fixed; then the others have a net force
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
    """Test energy differences against the work of the labels: one finding each for FIRST_LAW."""
    works = works_between_frames(structures)
    columns = np.stack([works.forces, works.stress], axis=1)  # (P, 2)
    slopes = _least_deviations(columns, works.energy)
    verdicts: dict[str, tuple[float | None, str]] = {}
    wrong = {}
    for index, label in enumerate(FIRST_LAW):
        # the part of the energy differences that the other label does not explain
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
    """The slope, or None if it cannot be trusted, and the evidence in words.

    energy: (P,) energy differences that the work of one label should explain, eV.
    work: (P,) this work, eV. slope: the fitted ratio of the two.
    total: (P,) total energy differences, eV.
    """
    moved = work != 0
    count = int(moved.sum())
    if count < MIN_PAIRS:
        return None, f"too few pairs of close frames ({count})"
    correlation = abs(spearmanr(energy[moved], work[moved])[0])
    typical_work = np.median(np.abs(slope * work[moved]))
    share = typical_work / max(np.median(np.abs(total[moved])), 1e-9)
    evidence = f"{count} pairs of frames, correlation {correlation:.2f}"
    # `not >=` and not `<`, so that NaN counts as too weak
    if not correlation >= MIN_CORRELATION:
        return None, f"{evidence} is too weak"
    if share < MIN_SHARE:
        return None, f"{evidence}, but it makes up {share:.0%} of the energy differences only"
    return float(slope), evidence


def _slope_range(energy: np.ndarray, work: np.ndarray) -> tuple[float, float]:
    """Confidence interval (low, high) of a slope, by bootstrap with RESAMPLES draws of pairs.

    energy, work: (P,) energy differences and work of one label, eV.
    """
    count = len(work)
    # Each frame is in up to four pairs, so about half of the pairs are redundant. Draws of half the
    # size compensate for this.
    size = min(max(count // 2, 2), LARGEST_DRAW)
    drawn = np.random.default_rng(0).integers(count, size=(RESAMPLES, size))
    energies = energy[drawn]
    works = work[drawn]

    # the fit of `_least_deviations` for a single column, for all draws at once
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

    columns: (P, 2) works. energy: (P,) energy differences.

    The fit uses iteratively reweighted least squares. Unlike plain least squares, it is robust
    against outliers.
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
    """The setting that would make the slope one: the unit of the label or of the energy.

    The energy's unit is suggested if forces and stress agree on it, or if no unit of the label
    fits.
    """
    # a slope above one means that the label is too small or the energy too large
    of_label = _likely_units(label, slope, config)
    of_energy = _likely_units("energy", 1 / slope, config)
    if of_energy and (energy_is_wrong or not of_label):
        return f"set {_setting(of_energy[0], 'energy', config)}"
    if of_label:
        return f"set {_setting(of_label[0], label, config)}"
    return f"check units.{label} and units.energy"


def _likely_units(label: str, factor: float, config: SourceConfig) -> list[str]:
    """Units that would make the label about `factor` times as large, the closest first."""
    known = LABELS[label].unit_factors
    stated = _stated_unit(label, config)
    if stated not in known:
        # a virial, which has the unit of an energy
        known = LABELS[label].times_volume
    wanted = known[stated] * factor
    distance = {}
    for unit, value in known.items():
        # a unit with the wrong sign cannot explain the factor
        if value / wanted > 0:
            distance[unit] = abs(np.log(value / wanted))
    near = [unit for unit in distance if distance[unit] < UNIT_TOLERANCE]
    return sorted(near, key=lambda unit: distance[unit])


def _stated_unit(label: str, config: SourceConfig) -> str:
    """The (first) unit that the config states, or the pipeline's default."""
    stated = config.units_of(label)
    return stated[0] if stated else LABELS[label].unit


def _setting(unit: str, label: str, config: SourceConfig) -> str:
    """The command-line words that set a unit; they name a column too, because a unit needs one."""
    setting = f"units.{label}={unit}"
    if label in config.columns:
        return setting
    if config.reference_columns:
        # the label may come from either of the two columns
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
    """Test the lengths of bonds, and that stretched bonds pull their atoms together."""
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
    # rank correlation, because bonds in a broken structure may have huge forces
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
    """Test that the pressure of a structure falls if its volume grows."""
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
    """Test that pressures are not higher than in any experiment."""
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
    """Test the deviations of energies from the E0 fit.

    These are formation energies, typically 0.1 to 1 eV/atom.
    """
    name = "energies about the E0 fit"
    labelled = [structure for structure in structures if structure.energy is not None]
    if len(labelled) < MIN_PAIRS:
        return Finding(name, "skipped", f"{name}: too few energies ({len(labelled)})")

    # each level of theory has its own zero of energy
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
    """Number of different compositions (fractions of elements)."""
    found = set()
    for structure in structures:
        shares = np.bincount(structure.atomic_numbers) / len(structure)
        found.add(tuple(shares))
    return len(found)


def _is_diverse(structures: list[Structure], num_compositions: int, num_levels: int) -> bool:
    """Whether there are too many compositions for E0 to explain all energies."""
    elements = set()
    for structure in structures:
        elements |= set(structure.elements.tolist())
    if len(elements) < 10 or num_compositions < 50:
        return False
    return num_compositions >= 5 * len(elements) * num_levels
