"""Pictures of errors per element: periodic tables, before and after reweighting, error against rarity."""

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
from .plot_style import FORCE_UNIT, STYLE, looks, plain_log_ticks
from .run_files import Evaluation


def element_errors(
    evaluations: dict[str, Evaluation], *, relative: bool = False
) -> dict[str, Figure]:
    """Run -> map of the force MAE in eV/A, or in percent of the element's force RMS, on one scale."""
    factor, unit = (
        (100, "force MAE / force RMS (%)") if relative else (1, f"force MAE ({FORCE_UNIT})")
    )
    tables = {
        name: {
            s: None if v is None else factor * v
            for s, v in e.element_values(relative=relative).items()
        }
        for name, e in evaluations.items()
    }
    norm = colour_norm(list(tables.values()), log=True)
    assert norm.vmin is not None and norm.vmax is not None
    limits = (norm.vmin, norm.vmax)
    measure = "Force MAE relative to force RMS" if relative else "Force MAE"
    return {
        name: periodic_table_heat_map(
            values,
            f"{measure}: {name}, {evaluations[name].split} split",
            unit,
            log=True,
            limits=limits,
        )
        for name, values in tables.items()
    }


def reweighting_heat_maps(before: Evaluation, after: Evaluation, names: tuple[str, str]) -> Figure:
    """Force MAE per element before and after on one scale, and their ratio (below 1: better after)."""
    figure = Figure(figsize=(PANEL_SIZE[0], 3 * PANEL_SIZE[1]), layout="constrained")
    panels = figure.subplots(3, 1)
    tables = [before.element_values(), after.element_values()]
    norm, unit = colour_norm(tables, log=True), f"force MAE ({FORCE_UNIT}), one scale for both"
    for axes, values, when, name in zip(panels, tables, ("Before", "After"), names, strict=False):
        draw_periodic_table(axes, values, title=f"{when}: {name}", unit=unit, norm=norm)
    ratio = element_ratio(before, after)
    widest = max([1.1, *ratio.values(), *(1 / r for r in ratio.values())])
    draw_periodic_table(
        panels[2],
        ratio,
        title=f"Ratio: {names[1]} / {names[0]}",
        unit="force MAE after / before (log scale; blue: better after)",
        norm=LogNorm(1 / widest, widest),
        colour_map="RdBu_r",
        number=lambda r: f"{r:.2f}",
    )
    return figure


def element_ratio(before: Evaluation, after: Evaluation) -> dict[str, float]:
    """Force MAE after over before, for the elements that have both and neither is zero."""
    old, new = before.element_values(), after.element_values()
    pairs = ((symbol, value, new.get(symbol)) for symbol, value in old.items())
    return {symbol: after / before for symbol, before, after in pairs if before and after}


@rc_context(STYLE)
def error_and_rarity(evaluations: dict[str, Evaluation]) -> Figure:
    """Force MAE per element against the number of training structures that contain it."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots()
    for (name, evaluation), (colour, marker) in zip(evaluations.items(), looks(), strict=False):
        points = [
            (max(e.num_train_structures, 0.5), e.force_mae, symbol)
            for symbol, e in evaluation.per_element.items()
            if e.force_mae
        ]
        if points:
            _rarity_points(axes, sorted(points), name, colour, marker)
    axes.set(xlabel="training structures that contain the element (none: 0.5)", xscale="log")
    axes.set(ylabel=f"force MAE ({FORCE_UNIT})", yscale="log")
    axes.set_title(
        "One point per element; line: median of neighbours in rarity; the worst five are named"
    )
    for axis in (axes.xaxis, axes.yaxis):
        plain_log_ticks(axis)
    axes.legend(loc="upper right")
    return figure


def _rarity_points(
    axes: Axes, points: list[tuple[float, float, str]], name: str, colour: str, marker: str
) -> None:
    """points: (training structures, force MAE in eV/A, symbol), sorted."""
    counts, errors = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    axes.scatter(counts, errors, s=34, color=colour, marker=marker, alpha=0.7, lw=0, label=name)
    groups = np.array_split(np.arange(len(points)), max(1, len(points) // 9))
    axes.plot(
        [np.median(counts[g]) for g in groups],
        [np.median(errors[g]) for g in groups],
        color=colour,
        lw=2.5,
    )
    for count, error, symbol in sorted(points, key=lambda p: -p[1])[:5]:
        label = axes.annotate(symbol, (count, error), (6, -4), textcoords="offset points", size=11)
        label.set(color=colour, path_effects=[withStroke(linewidth=3, foreground="white")])
