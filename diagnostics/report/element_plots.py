"""Figures of the errors by element: maps, maps before and after reweighting, error and rarity."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ...core.figures.periodic_table import (
    PANEL_SIZE,
    colour_norm,
    draw_periodic_table,
    periodic_table_heat_map,
)
from ...core.figures.style import STYLE, looks, plain_log_ticks
from ...core.numbers import FORCE_UNIT
from ...model_zoo.evaluation.summary import ErrorSummary


# number of elements with the largest errors that the picture of rarity labels
NUM_NAMED = 5
# position on the logarithmic axis for elements that no training structure contains
NEVER_SEEN = 0.5


def element_maps(
    evaluations: dict[str, ErrorSummary], *, relative: bool = False
) -> dict[str, Figure]:
    """Run -> periodic-table map of the force MAE of each element; all runs share one colour scale.

    The MAE is in eV/A, or with `relative` in percent of the RMS of the element's force labels.
    """
    tables = {}
    for name, evaluation in evaluations.items():
        if relative:
            tables[name] = _relative_errors(evaluation)
        else:
            tables[name] = evaluation.force_mae_of_elements()

    # one scale for all runs, so that their maps can be compared by eye
    norm = colour_norm(list(tables.values()), log=True)
    assert norm.vmin is not None and norm.vmax is not None
    limits = (norm.vmin, norm.vmax)

    if relative:
        measure = "Force MAE relative to force RMS"
        unit = "force MAE / force RMS (%)"
    else:
        measure = "Force MAE"
        unit = f"force MAE ({FORCE_UNIT})"

    figures = {}
    for name, values in tables.items():
        split = evaluations[name].split
        title = f"{measure}: {name}, {split} split"
        figures[name] = periodic_table_heat_map(values, title, unit, log=True, limits=limits)
    return figures


def _relative_errors(evaluation: ErrorSummary) -> dict[str, float]:
    """Symbol -> force MAE in percent of the RMS of the element's force labels."""
    values = {}
    for symbol, errors in evaluation.per_element.items():
        if errors.relative_force_mae is not None:
            values[symbol] = 100 * errors.relative_force_mae
    return values


def reweighting_maps(before: ErrorSummary, after: ErrorSummary, names: tuple[str, str]) -> Figure:
    """Maps of the force MAE of each element before and after reweighting, and of their ratio."""
    width, height = PANEL_SIZE
    figure = Figure(figsize=(width, 3 * height), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1)
    old_name, new_name = names

    old = before.force_mae_of_elements()
    new = after.force_mae_of_elements()
    norm = colour_norm([old, new], log=True)
    unit = f"force MAE ({FORCE_UNIT}), one scale for both"
    draw_periodic_table(top, old, title=f"Before: {old_name}", unit=unit, norm=norm)
    draw_periodic_table(middle, new, title=f"After: {new_name}", unit=unit, norm=norm)

    # the scale is symmetric about 1, so that white means unchanged; it spans at least 10 %, so that
    # noise stays pale
    ratio = element_ratio(before, after)
    inverse = [1 / value for value in ratio.values()]
    widest = max([1.1, *ratio.values(), *inverse])
    draw_periodic_table(
        bottom,
        ratio,
        title=f"Ratio: {new_name} / {old_name}",
        unit="force MAE after / before (log scale; blue: better after)",
        norm=LogNorm(1 / widest, widest),
        colour_map="RdBu_r",
        number=lambda value: f"{value:.2f}",
    )
    return figure


def element_ratio(before: ErrorSummary, after: ErrorSummary) -> dict[str, float]:
    """Symbol -> force MAE after / before, for elements whose MAE is known and not zero in both."""
    old = before.force_mae_of_elements()
    new = after.force_mae_of_elements()
    ratios = {}
    for symbol, error in old.items():
        if error and new.get(symbol):
            ratios[symbol] = new[symbol] / error
    return ratios


@rc_context(STYLE)
def error_and_rarity(evaluations: dict[str, ErrorSummary]) -> Figure:
    """Force MAE of each element against the number of training structures that contain it."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots()
    # not strict, because looks() is endless
    for run, look in zip(evaluations.items(), looks(), strict=False):
        name, evaluation = run
        colour, marker = look
        points = _points_of_rarity(evaluation)
        if points:
            _draw_rarity(axes, points, name, colour, marker)

    axes.set(xlabel=f"training structures that contain the element (none: {NEVER_SEEN})")
    axes.set(ylabel=f"force MAE ({FORCE_UNIT})", xscale="log", yscale="log")
    axes.set_title(
        "One point for each element; line: median of elements of similar rarity; "
        f"the worst {NUM_NAMED} are named"
    )
    plain_log_ticks(axes.xaxis)
    plain_log_ticks(axes.yaxis)
    axes.legend(loc="upper right")
    return figure


def _points_of_rarity(evaluation: ErrorSummary) -> list[tuple[float, float, str]]:
    """(training structures, force MAE in eV/A, symbol) of each element, the rarest first."""
    points = []
    for symbol, errors in evaluation.per_element.items():
        # zero cannot be shown on a logarithmic axis
        if errors.force_mae:
            count = max(errors.num_train_structures, NEVER_SEEN)
            points.append((count, errors.force_mae, symbol))
    return sorted(points)


def _draw_rarity(
    axes: Axes, points: list[tuple[float, float, str]], name: str, colour: str, marker: str
) -> None:
    """Draw the points of one run, the line through their medians, and the names of the worst."""
    counts = np.array([count for count, _, _ in points])
    errors = np.array([error for _, error, _ in points])
    axes.scatter(counts, errors, s=34, color=colour, marker=marker, alpha=0.7, lw=0, label=name)

    # at least nine elements in each group, if there are that many: enough for a median
    num_groups = max(1, len(points) // 9)
    groups = np.array_split(np.arange(len(points)), num_groups)
    middle_counts = [np.median(counts[group]) for group in groups]
    middle_errors = [np.median(errors[group]) for group in groups]
    axes.plot(middle_counts, middle_errors, color=colour, lw=2.5)

    worst = sorted(points, key=lambda point: -point[1])[:NUM_NAMED]
    for count, error, symbol in worst:
        text = axes.annotate(symbol, (count, error), (6, -4), textcoords="offset points", size=11)
        # a white outline, because the labels lie among the points
        rim = withStroke(linewidth=3, foreground="white")
        text.set(color=colour, path_effects=[rim])
