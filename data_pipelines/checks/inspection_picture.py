"""Draw the histograms of an inspection as one picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...core.figures.style import COLOURS, QUIET_INK, STYLE, figure_png, plain_log_ticks
from ...core.labels import LABELS
from ...core.numbers import ANGSTROM, FORCE_UNIT, short_number
from ..store.folder_files import INSPECTION_PICTURE
from .inspection import Histogram, Inspection
from .inspection_measures import CUTOFF
from .outliers import MIN_BOND_SHARE


# one dash pattern per colour, for printing in black and white
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), "-")
# if there are more levels of theory than colours, the smallest are combined
MAX_LEVELS = len(COLOURS)
# characters of a name in the legend
MAX_NAME = 28
SETTINGS: Any = {
    **STYLE,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.1,
}
# quantity -> title, x label, what is counted, whether x is logarithmic
PANELS = {
    "energy": ("Energy per atom after E0", "energy after E0 (eV/atom)", "structures", False),
    "force": (
        "Forces",
        f"force norm of an atom ({FORCE_UNIT}); first bin: 0.0001 and less",
        "atoms",
        True,
    ),
    "neighbours": (
        "Neighbours",
        f"neighbours of an atom within {CUTOFF:g} {ANGSTROM}",
        "atoms",
        False,
    ),
    "distance": (
        "Shortest distances",
        "smallest distance / sum of covalent radii",
        "structures",
        False,
    ),
    "size": ("Sizes", "atoms in a structure", "structures", True),
}


def draw_inspection(inspection: Inspection) -> bytes:
    """PNG bytes with five histograms by level of theory, and the share of labels present."""
    with rc_context(SETTINGS):
        return figure_png(_figure(inspection), kind=INSPECTION_PICTURE)


def _figure(inspection: Inspection) -> Figure:
    levels = shown_levels(inspection)
    is_sample = inspection.num_sampled < inspection.num_structures
    figure = Figure(figsize=(15, 9), layout="constrained")
    panels = figure.subplots(2, 3).ravel()

    for axes, (name, (title, label, counted, log)) in zip(panels, PANELS.items(), strict=False):
        if is_sample and name in ("neighbours", "distance"):
            title = f"{title} ({inspection.num_sampled:,} sampled)"
        axes.set_title(title, loc="left")
        axes.set(xlabel=label, ylabel=counted)
        _draw_histogram(axes, inspection.histograms[name], levels, log)
    _mark_suspects(panels[3])
    _draw_label_shares(panels[5], inspection, levels)

    handles, names = panels[4].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)))
    title = f"{inspection.folder.name}: {inspection.num_structures:,} structures"
    figure.suptitle(title, x=0.01, ha="left", size=15)
    return figure


def shown_levels(inspection: Inspection) -> dict[str, list[str]]:
    """Name in the legend -> levels of theory that it stands for, the largest first."""
    ordered = inspection.levels
    if len(ordered) <= MAX_LEVELS:
        return {level: [level] for level in ordered}
    alone = ordered[: MAX_LEVELS - 1]
    others = ordered[MAX_LEVELS - 1 :]
    return {level: [level] for level in alone} | {f"{len(others)} others": others}


def _draw_histogram(
    axes: Axes, histogram: Histogram, levels: dict[str, list[str]], log: bool
) -> None:
    """Draw outlines on a logarithmic axis of counts; empty bins at both ends are left out."""
    nothing = np.zeros(len(histogram.edges) - 1)
    rows = []
    for group in levels.values():
        rows.append(sum((histogram.counts.get(level, nothing) for level in group), nothing))
    filled = np.flatnonzero(sum(rows, nothing))
    if not len(filled):
        place = (0.5, 0.5)
        axes.annotate("no values", place, xycoords="axes fraction", ha="center", color=QUIET_INK)
        axes.set(xticks=[], yticks=[])
        return

    first = filled[0]
    last = filled[-1] + 1
    edges = histogram.edges[first : last + 1]
    for name, counts, colour, dashes in zip(levels, rows, COLOURS, DASHES, strict=False):
        axes.stairs(
            counts[first:last],
            edges,
            label=_legend(name),
            color=colour,
            linestyle=dashes,
            linewidth=1.7,
            baseline=0.5,
        )
        axes.stairs(counts[first:last], edges, color=colour, fill=True, alpha=0.12, baseline=0.5)

    axes.set_yscale("log")
    # below 1, so that a count of 1 is visible; a logarithmic axis cannot show 0
    axes.set_ylim(bottom=0.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    if log:
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis)


def _mark_suspects(axes: Axes) -> None:
    """Draw a line at the distance below which structures are suspicious."""
    axes.axvline(MIN_BOND_SHARE, color="#777777", linewidth=1)
    axes.set_xlim(left=min(axes.get_xlim()[0], MIN_BOND_SHARE - 0.1))
    axes.annotate(
        "suspects",
        (MIN_BOND_SHARE, 0.98),
        (-2, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        va="top",
        rotation=90,
        size=10,
        color=QUIET_INK,
    )


def _draw_label_shares(axes: Axes, inspection: Inspection, levels: dict[str, list[str]]) -> None:
    """Draw bars for the share of structures that have each label."""
    height = 0.8 / len(levels)
    middles = np.arange(len(LABELS))
    for row, (group, colour) in enumerate(zip(levels.values(), COLOURS, strict=False)):
        total = sum(sum(inspection.structures[level].values()) for level in group)
        shares = []
        for name in LABELS:
            labelled = sum(inspection.labels[level][name] for level in group)
            shares.append(100 * labelled / total)
        places = middles - 0.4 + (row + 0.5) * height
        axes.barh(places, shares, 0.9 * height, color=colour, alpha=0.8)
        for place, share in zip(places, shares, strict=True):
            axes.annotate(f" {_percent(share)}", (share, place), va="center", size=9)
    axes.set_yticks(middles, list(LABELS))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlim=(0, 118), xticks=range(0, 101, 25), xlabel="structures with the label (%)")
    axes.set_title("Labels present", loc="left")


def _percent(share: float) -> str:
    """Format a percentage; only exact 0 and 100 are shown as such."""
    if share in (0, 100):
        return f"{share:.0f} %"
    return f"{min(max(share, 0.1), 99.9):.1f} %"


def _legend(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."
