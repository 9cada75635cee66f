"""The histograms of an inspection as one picture."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...core.figures.style import COLOURS, STYLE
from ...core.numbers import short_number
from .inspection import Histogram, Inspection
from .inspection_measures import CUTOFF
from .outliers import MIN_BOND_SHARE


DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), "-")  # say the same as the colours
MAX_LEVELS = len(COLOURS)  # more are drawn together
MAX_NAME = 28  # characters of a level of theory in the legend
SETTINGS: Any = {
    **STYLE,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.constrained_layout.w_pad": 0.12,  # inches
    "figure.constrained_layout.h_pad": 0.1,
}
PANELS = {  # title, x label, logarithmic x
    "energy": ("Energy per atom after E0", "energy after E0 (eV/atom)", False),
    "force": ("Forces", "force norm of an atom (eV/\u00c5); first bin: 0.0001 and less", True),
    "neighbours": ("Neighbours", f"neighbours of an atom within {CUTOFF:g} \u00c5", False),
    "distance": ("Shortest distances", "smallest distance / sum of covalent radii", False),
    "size": ("Sizes", "atoms in a structure", True),
}
COUNTED = {
    "energy": "structures",
    "force": "atoms",
    "neighbours": "atoms",
    "distance": "structures",
}


def draw_inspection(inspection: Inspection) -> bytes:
    """Five histograms per level of theory and the share of labels present, as a PNG."""
    levels = shown_levels(inspection)
    sampled = inspection.num_sampled < inspection.num_structures
    with rc_context(SETTINGS):
        figure = Figure(figsize=(15, 9), layout="constrained")
        panels = figure.subplots(2, 3).ravel()
        for axes, (name, (title, label, log)) in zip(panels, PANELS.items(), strict=False):
            part = (
                f" ({inspection.num_sampled:,} sampled)"
                if sampled and name in ("neighbours", "distance")
                else ""
            )
            axes.set_title(title + part, loc="left")
            axes.set(xlabel=label, ylabel=COUNTED.get(name, "structures"))
            _stairs(axes, inspection.histograms[name], levels, log)
        _mark_suspects(panels[3])
        _label_shares(panels[5], inspection, levels)
        handles, names = panels[4].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)))
        figure.suptitle(
            f"{inspection.folder.name}: {inspection.num_structures:,} structures",
            x=0.01,
            ha="left",
            size=15,
        )
        png = BytesIO()
        figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def shown_levels(inspection: Inspection) -> dict[str, list[str]]:
    """Name in the legend -> levels of theory behind it, the largest first."""
    ordered = sorted(
        inspection.structures, key=lambda level: -sum(inspection.structures[level].values())
    )
    alone = ordered if len(ordered) <= MAX_LEVELS else ordered[: MAX_LEVELS - 1]
    shown = {level: [level] for level in alone}
    return shown | (
        {f"{len(ordered) - len(alone)} others": ordered[len(alone) :]}
        if len(alone) < len(ordered)
        else {}
    )


def _stairs(axes: Axes, histogram: Histogram, levels: dict[str, list[str]], log: bool) -> None:
    """Outlines on logarithmic counts; empty bins at both ends are left out."""
    none = np.zeros(len(histogram.edges) - 1)
    rows = [
        sum((histogram.counts.get(level, none) for level in group), none)
        for group in levels.values()
    ]
    filled = np.flatnonzero(sum(rows, none))
    if not len(filled):
        axes.annotate(
            "no values", (0.5, 0.5), xycoords="axes fraction", ha="center", color="#555555"
        )
        axes.set(xticks=[], yticks=[])
    first, last = (filled[0], filled[-1] + 1) if len(filled) else (0, len(none))
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
    if not len(filled):
        return
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _mark_suspects(axes: Axes) -> None:
    """A line where distances become suspicious."""
    axes.axvline(MIN_BOND_SHARE, color="#777777", linewidth=1)
    axes.set_xlim(left=min(axes.get_xlim()[0], MIN_BOND_SHARE - 0.1))
    place = (MIN_BOND_SHARE, 0.98)
    text: Any = {"ha": "right", "va": "top", "rotation": 90, "size": 10, "color": "#555555"}
    axes.annotate("suspects", place, (-2, 0), ("data", "axes fraction"), "offset points", **text)


def _label_shares(axes: Axes, inspection: Inspection, levels: dict[str, list[str]]) -> None:
    """Bars of the share of structures that have a label."""
    height = 0.8 / len(levels)
    names = ("energy", "forces", "stress")
    for k, (group, colour) in enumerate(zip(levels.values(), COLOURS, strict=False)):
        total = sum(sum(inspection.structures[level].values()) for level in group)
        shares = [
            100 * sum(inspection.labels[level][name] for level in group) / total for name in names
        ]
        places = np.arange(3) - 0.4 + (k + 0.5) * height
        axes.barh(places, shares, 0.9 * height, color=colour, alpha=0.8)
        for place, share in zip(places, shares, strict=True):
            axes.annotate(f" {_percent(share)}", (share, place), va="center", size=9)
    axes.set_yticks(range(3), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlim=(0, 118), xticks=range(0, 101, 25), xlabel="structures with the label (%)")
    axes.set_title("Labels present", loc="left")


def _percent(share: float) -> str:
    """Never rounded to all or none."""
    return f"{share:.0f} %" if share in (0, 100) else f"{min(max(share, 0.1), 99.9):.1f} %"


def _legend(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."
