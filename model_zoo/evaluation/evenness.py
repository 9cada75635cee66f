"""Compare the errors of a model on rare and common elements.

The force error of an element in eV/A depends on the size of its forces: compressed structures have
large forces and large errors. Errors are therefore divided by the RMS of the element's reference
forces, which puts all elements on the same scale. They are averaged over thirds of the elements:
those with the fewest training structures are *rare*, and those with the most are *common*.

Elements whose error would be mostly noise are listed separately and excluded: those with few test
atoms, and those whose reference forces vanish by symmetry.

Intervals are percentile bootstraps (Efron 1979) over the elements of a group. They show how much a
result depends on which elements happen to be in the group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...core.numbers import FORCE_UNIT
from .summary import INTERVAL, ElementErrors, ErrorSummary


GROUPS = ("rare", "middle", "common")
FEWEST_ATOMS = 30
SMALLEST_FORCE_RMS = 0.01  # eV/A; smaller forces are zero by symmetry, up to noise of the labels
FEWEST_IN_GROUP = 3  # elements that a group needs

NUM_DRAWS = 2000

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """An estimate over the elements of a group, with its bootstrap interval."""

    value: float
    interval: Interval

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} [{low:.2f}, {high:.2f}]"

    @property
    def excludes_one(self) -> bool:
        """For a ratio: whether the interval excludes 1, so that the two sides differ."""
        low, high = self.interval
        return high < 1.0 or low > 1.0


@dataclass(frozen=True)
class GroupErrors:
    """Errors on one third of the elements."""

    symbols: tuple[str, ...]
    """Sorted, the rarest first."""
    num_train_structures: tuple[int, int]
    """The numbers for the rarest and the most common element of the group."""
    num_atoms: int
    """The number of test atoms."""
    relative_force_mae: Estimate
    """Geometric mean over elements of the ratio of force MAE to force RMS."""
    energy_mae_per_atom: float | None
    """Mean over elements, in eV/atom; None without energy labels."""


@dataclass(frozen=True)
class Evenness:
    """Errors of one model by thirds of the elements."""

    groups: dict[str, GroupErrors]
    """Keyed by the names in `GROUPS`; empty if too few elements can be judged."""
    gap: Estimate | None
    """Ratio of the relative force errors of rare and common elements; 1 is even."""
    apart: dict[str, str] = field(default_factory=dict)
    """Symbol -> reason why the element is excluded."""


@dataclass(frozen=True)
class EvennessChange:
    """How the errors of a second model differ, in the groups of the first one."""

    groups: dict[str, Estimate]
    """Geometric mean over elements of the ratio of force MAE after to before; below 1 is better."""


def evenness(summary: ErrorSummary) -> Evenness:
    """The errors in a summary for rare, middle and common elements."""
    apart = {}
    for symbol, errors in summary.per_element.items():
        reason = _why_not_judged(errors)
        if reason is not None:
            apart[symbol] = reason

    members = thirds(summary)
    if not members:
        return Evenness({}, None, apart)
    groups = {name: _group(summary, symbols) for name, symbols in members.items()}
    rare = _relative_errors(summary, members["rare"])
    common = _relative_errors(summary, members["common"])
    gap = _bootstrap([np.log(rare), np.log(common)], _ratio_of_geometric_means)
    return Evenness(groups, gap, apart)


def thirds(summary: ErrorSummary) -> dict[str, list[str]]:
    """The elements of each group in `GROUPS`, the rarest first; empty if too few can be judged."""
    judged = []
    for symbol, errors in summary.per_element.items():
        if _why_not_judged(errors) is None:
            judged.append(symbol)
    if len(judged) < FEWEST_IN_GROUP * len(GROUPS):
        return {}

    # ties are broken by symbol, so that two summaries of the same data have equal groups
    judged.sort(key=lambda symbol: (summary.per_element[symbol].num_train_structures, symbol))
    groups = {}
    for name, members in zip(GROUPS, np.array_split(judged, len(GROUPS)), strict=True):
        groups[name] = [str(symbol) for symbol in members]
    return groups


def error_of_third(summary: ErrorSummary, name: str) -> float | None:
    """Relative force error of one third, without an interval; None if too few can be judged."""
    groups = thirds(summary)
    if not groups:
        return None
    return float(_geometric_mean([np.log(_relative_errors(summary, groups[name]))]))


def evenness_change(before: ErrorSummary, after: ErrorSummary) -> EvennessChange:
    """The change of the errors from one model to another, averaged over elements.

    Each element is compared with itself, so neither the size of its forces nor its difficulty
    matters. The groups are those of `before`.
    """
    changes = {}
    for name, symbols in thirds(before).items():
        ratios = []
        for symbol in symbols:
            errors = after.per_element.get(symbol)
            old = before.per_element[symbol].force_mae
            if errors is not None and errors.force_mae and old:
                ratios.append(errors.force_mae / old)
        if len(ratios) >= FEWEST_IN_GROUP:
            changes[name] = _bootstrap([np.log(ratios)], _geometric_mean)
    return EvennessChange(changes)


def _why_not_judged(errors: ElementErrors) -> str | None:
    relative = errors.relative_force_mae
    if errors.force_mae is None or errors.force_rms is None:
        return "no reference forces"
    if errors.num_atoms < FEWEST_ATOMS:
        return f"{errors.num_atoms} test atoms"
    if errors.force_rms < SMALLEST_FORCE_RMS:
        return f"force RMS {errors.force_rms:.2g} {FORCE_UNIT}"
    if relative is None or not np.isfinite(relative) or relative <= 0:
        return "no finite error"
    return None


def _group(summary: ErrorSummary, symbols: list[str]) -> GroupErrors:
    members = [summary.per_element[symbol] for symbol in symbols]
    counts = [errors.num_train_structures for errors in members]
    energies = [
        errors.energy_mae_per_atom for errors in members if errors.energy_mae_per_atom is not None
    ]
    return GroupErrors(
        symbols=tuple(symbols),
        num_train_structures=(min(counts), max(counts)),
        num_atoms=sum(errors.num_atoms for errors in members),
        relative_force_mae=_bootstrap(
            [np.log(_relative_errors(summary, symbols))], _geometric_mean
        ),
        energy_mae_per_atom=float(np.mean(energies)) if energies else None,
    )


def _relative_errors(summary: ErrorSummary, symbols: Sequence[str]) -> np.ndarray:
    return np.array([summary.per_element[symbol].relative_force_mae for symbol in symbols])


def _geometric_mean(logarithms: Sequence[np.ndarray]) -> np.ndarray:
    (values,) = logarithms
    return np.exp(values.mean(axis=-1))


def _ratio_of_geometric_means(logarithms: Sequence[np.ndarray]) -> np.ndarray:
    above, below = logarithms
    return np.exp(above.mean(axis=-1) - below.mean(axis=-1))


def _bootstrap(
    samples: list[np.ndarray], statistic: Callable[[Sequence[np.ndarray]], np.ndarray]
) -> Estimate:
    """A statistic of independent samples, each (n,), with its bootstrap interval.

    `statistic` takes samples with any leading dimensions and reduces the last one.
    """
    # a fixed seed, because the same errors must always give the same result
    generator = np.random.default_rng(0)
    drawn = []
    for sample in samples:
        chosen = generator.integers(len(sample), size=(NUM_DRAWS, len(sample)))
        drawn.append(sample[chosen])
    values = statistic(drawn)

    low, high = np.quantile(values, INTERVAL)
    return Estimate(float(statistic(samples)), (float(low), float(high)))
