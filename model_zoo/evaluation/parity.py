"""The parity figure: predicted against reference values, with one panel per label."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...core.figures.style import COLOURS, STYLE
from ...core.labels import LABELS, Label
from ...core.numbers import short_number, written_unit
from .predictions import ParityPairs
from .summary import Errors, ErrorSummary


# with more points than this, dots would hide each other, so their density is shown
MANY_POINTS = 6000
# with more levels of theory than this, the legend would cover the first panel, so it goes below
MANY_LEVELS = 5
LEGEND_COLUMNS = 3
LEGEND_ROW = 0.55  # height in inches of one legend entry


@rc_context(STYLE)
def draw_parity(parity: ParityPairs, summary: ErrorSummary, title: str) -> Figure:
    """Draw one parity panel for each label that has references.

    Per-structure labels are coloured by level of theory. Per-atom labels are drawn component by
    component. The legend of the first panel states the errors of each level of theory.
    """
    shown = []
    for name in parity.pairs:
        if len(parity.flat(name)):
            shown.append(LABELS[name])

    figure = Figure(figsize=(max(1, len(shown)) * 6.0, 5.9), layout="constrained")
    if not shown:
        figure.suptitle(f"{title}: no labels to compare with", x=0.01, ha="left", size=15)
        return figure

    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, label in zip(panels, shown, strict=True):
        unit = written_unit(label.error_unit)
        if label.per == "structure":
            _by_level(axes, parity, label)
        else:
            _all_components(axes, parity.flat(label.name), unit)
        _diagonal(axes, parity.flat(label.name))

        # the range of reference energies would hide all errors
        less = " less E0" if label.name == "energy" else ""
        quantity = f"{label.title}{less} ({unit})"
        axes.set(xlabel=f"reference {quantity}", ylabel=f"predicted {quantity}")

        error = summary.mae.get(label.name)
        if error is not None:
            name = label.title.capitalize()
            axes.set_title(f"{name}: MAE {_error_text(label, error)}")

    _legend(figure.axes[0], parity, summary)
    figure.suptitle(title, x=0.01, ha="left", size=15)
    return figure


def _by_level(axes: Axes, parity: ParityPairs, label: Label) -> None:
    """Draw a dot for each component of a per-structure label, in the colour of its level."""
    values = parity.pairs[label.name]
    components = values[0, ..., 0].size
    rows = values.reshape(-1, 2)
    levels = np.repeat(parity.level_index, components)
    is_known = np.isfinite(rows).all(axis=1)
    known = np.flatnonzero(is_known)
    # shuffled, so that no level of theory is drawn on top of all others
    known = np.random.default_rng(0).permutation(known)

    # dots become smaller as their number grows
    size = float(np.clip(3e4 / max(len(known), 1), 3, 28))
    palette = np.array(COLOURS)
    # colours repeat if there are more levels than colours
    colours = palette[levels[known] % len(COLOURS)]
    axes.scatter(
        rows[known, 0],
        rows[known, 1],
        s=size,
        c=colours,
        alpha=0.55,
        lw=0,
        rasterized=True,
    )


def _all_components(axes: Axes, rows: np.ndarray, unit: str) -> None:
    """Draw components (M, 2) as dots if there are few, else as a density."""
    reference = rows[:, 0]
    predicted = rows[:, 1]
    # rasterized, because vector dots would make files of many MB
    if len(rows) <= MANY_POINTS:
        axes.scatter(reference, predicted, s=8, color=COLOURS[0], alpha=0.5, lw=0, rasterized=True)
        return

    low, high = _range(rows)
    density = axes.hexbin(
        reference,
        predicted,
        gridsize=90,
        extent=(low, high, low, high),
        bins="log",
        mincnt=1,
        lw=0.1,
        rasterized=True,
    )
    # plain numbers, because powers of ten would be typeset as formulas, which the figures avoid
    numbers = FuncFormatter(lambda value, _: short_number(value))
    label = "components in a cell"
    axes.figure.colorbar(density, ax=axes, label=label, format=numbers, pad=0.02, shrink=0.9)


def _legend(axes: Axes, parity: ParityPairs, summary: ErrorSummary) -> None:
    """Add a legend with the name and all errors of each level of theory."""
    for index, level in enumerate(parity.level_names):
        if level not in summary.levels:
            continue
        lines = [level, *_errors_of(summary.levels[level])]
        text = "\n".join(lines)
        colour = COLOURS[index % len(COLOURS)]
        # an empty series, so that the legend does not depend on what was drawn first
        axes.scatter([], [], s=45, color=colour, label=text)
    handles, texts = axes.get_legend_handles_labels()
    if len(texts) > MANY_LEVELS:
        figure = axes.get_figure(root=True)
        assert figure is not None, "the panels are drawn"
        rows = -(-len(texts) // LEGEND_COLUMNS)
        figure.set_figheight(figure.get_figheight() + LEGEND_ROW * rows)
        figure.legend(
            handles,
            texts,
            loc="outside lower left",
            ncols=LEGEND_COLUMNS,
            fontsize=10,
            handletextpad=0.2,
        )
    elif texts:
        axes.legend(loc="upper left", fontsize=10, handletextpad=0.2)


def _errors_of(errors: Errors) -> list[str]:
    """The errors of all labels in one line; an empty list if there are none."""
    parts = []
    for name, error in errors.mae.items():
        if error is not None:
            parts.append(_error_text(LABELS[name], error))
    if not parts:
        return []
    return [", ".join(parts)]


def _error_text(label: Label, error: float) -> str:
    """An error with its customary unit: meV, not eV."""
    number = short_number(label.display_scale * error)
    return f"{number} {written_unit(label.display_unit)}"


def _diagonal(axes: Axes, rows: np.ndarray) -> None:
    """Draw the line of perfect agreement, and set the same range on both axes."""
    low, high = _range(rows)
    axes.plot([low, high], [low, high], color="#444444", lw=1, ls="--", zorder=0.5)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def _range(rows: np.ndarray) -> tuple[float, float]:
    """A range slightly larger than that of the values."""
    low = float(rows.min())
    high = float(rows.max())
    # a single value has no range, but still needs an axis
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin
