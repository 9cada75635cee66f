"""The few-shot curve as a picture: force and energy error over the number of structures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ...core.figures.style import COLOURS, STYLE


FLAT = ("pretrained",)  # does not depend on the number of structures


@rc_context(STYLE)  # type: ignore[arg-type]
def plot_curve(content: dict[str, Any], path: Path) -> Path:
    """Write the picture of a fewshot.json."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    force, energy = figure.subplots(1, 2)
    rows = content["rows"]
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    for axes, field, factor in ((force, "force_mae", 1.0), (energy, "energy_mae_per_atom", 1000.0)):
        for name, colour in zip(names, COLOURS * 2, strict=False):
            values = [
                (r["num_structures"], factor * r[field])
                for r in rows
                if r["strategy"] == name and r[field]
            ]
            if values:
                _draw(axes, name, values, colour)
        sizes = sorted({row["num_structures"] for row in rows})
        axes.set(xscale="log", yscale="log", xlabel="structures used")
        axes.set_xticks(sizes, labels=[str(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
    force.set(title=f"{content['target']}: forces", ylabel="test force MAE (eV/A)")
    energy.set(title=f"{content['target']}: energies", ylabel="test energy MAE (meV/atom)")
    figure.legend(*force.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _draw(axes: Axes, name: str, values: list[tuple[int, float]], colour: str) -> None:
    sizes = sorted({size for size, _ in values})
    errors = [[error for size, error in values if size == wanted] for wanted in sizes]
    middle = [float(np.median(e)) for e in errors]
    if name in FLAT:
        axes.axhline(float(np.median(middle)), color=colour, ls="--", label=name)
        return
    axes.fill_between(
        sizes, [min(e) for e in errors], [max(e) for e in errors], color=colour, alpha=0.15, lw=0
    )
    axes.plot(sizes, middle, marker="o", ms=5, lw=2, color=colour, label=name)
