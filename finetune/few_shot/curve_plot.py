"""The figure of a few-shot curve: test errors over the number of structures, for all strategies."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ...core.figures.style import STYLE, looks, plain_log_ticks
from ...core.numbers import FORCE_UNIT
from .results import STRATEGY_LABELS, UNCHANGED, ErrorName, FewShotCurve


# stored in the PNG file, so that it can be recognised later
KIND = "figure of `evenfield finetune curve`"


@rc_context(STYLE)
def draw_few_shot_curve(curve: FewShotCurve) -> Figure:
    """Medians over the seeds as lines and their ranges as bands, on logarithmic axes."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    force, energy = figure.subplots(1, 2)
    # energies are shown in meV/atom
    panels: list[tuple[Axes, ErrorName, float]] = [
        (force, "force_mae", 1.0),
        (energy, "energy_mae_per_atom", 1000.0),
    ]

    # known names first, so that a strategy has the same colour and marker in every figure
    names = dict.fromkeys([*STRATEGY_LABELS, *curve.strategies])
    styles = dict(zip(names, looks(), strict=False))
    for axes, error, factor in panels:
        for strategy in curve.strategies:
            _draw_strategy(axes, curve, strategy, error, factor, styles[strategy])
        _finish(axes, curve)

    force.set(title=f"{curve.target}: forces", ylabel=f"test force MAE ({FORCE_UNIT})")
    energy.set(title=f"{curve.target}: energies", ylabel="test energy MAE (meV/atom)")
    if curve.force_rms:
        _add_percent_axis(force, curve.force_rms)

    # both panels have the same lines, unless the data lack one of the labels
    drawn = force if force.lines else energy
    handles, labels = drawn.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _draw_strategy(
    axes: Axes,
    curve: FewShotCurve,
    strategy: str,
    error: ErrorName,
    factor: float,
    look: tuple[str, str],
) -> None:
    errors = curve.errors(strategy, error)
    if not errors:
        return
    colour, marker = look
    label = STRATEGY_LABELS.get(strategy, strategy)
    medians = [np.median(values) for values in errors.values()]
    middle = factor * np.array(medians)
    if strategy == UNCHANGED:
        axes.axhline(float(np.median(middle)), color=colour, ls="--", lw=2, label=label)
        return

    # The band is the full range, because two or three seeds do not determine quantiles.
    lowest = [min(values) for values in errors.values()]
    highest = [max(values) for values in errors.values()]
    low = factor * np.array(lowest)
    high = factor * np.array(highest)
    sizes = list(errors)
    axes.fill_between(sizes, low, high, color=colour, alpha=0.18, lw=0)
    axes.plot(sizes, middle, color=colour, marker=marker, ms=6, lw=2, label=label)


def _finish(axes: Axes, curve: FewShotCurve) -> None:
    axes.set(xscale="log", yscale="log", xlabel="structures of the target used")
    used = {row.num_structures for row in curve.rows if row.strategy != UNCHANGED}
    # zero cannot be shown on a logarithmic axis
    sizes = sorted(size for size in used if size > 0)
    axes.set_xticks(sizes, labels=[str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    plain_log_ticks(axes.yaxis)


def _add_percent_axis(axes: Axes, force_rms: float) -> None:
    """Add an axis in percent of the labels' RMS; at 100 %, nothing was learned."""

    def to_percent(mae: Any) -> Any:
        return 100 * mae / force_rms

    def to_mae(share: Any) -> Any:
        return share * force_rms / 100

    percent = axes.secondary_yaxis("right", functions=(to_percent, to_mae))
    percent.set_ylabel("% of the force RMS")
    low, high = axes.get_ylim()
    plain_log_ticks(percent.yaxis, (to_percent(low), to_percent(high)))
