"""Draw the picture of the README: force error over processor seconds, next to two peers.

    python docs/draw_pictures.py

The points are those of docs/accuracy.md, read from benchmarks/results/equal_seconds_soap_*.json.
Colours and style are those of every figure of the package (core/figures/style.py).
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from evenfield.core.figures.style import COLOURS, STYLE


ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "pictures" / "error_over_time.png"
PANELS = {
    "85 elements, DFT": "equal_seconds_soap_longtail.json",
    "Si and Mo, DFT": "equal_seconds_soap_SiMo.json",
}
MODELS = ("evenfield", "NequIP", "MACE")
MARKERS = ("o", "s", "^")


def points(name: str) -> dict[str, list[tuple[float, float]]]:
    """Processor seconds and force MAE (eV/A) of every run of a benchmark, by model."""
    rows = json.loads((ROOT / "benchmarks" / "results" / name).read_text())["rows"]
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        found[row["model"]].append((row["seconds"], row["force_mae"]))
    return {model: sorted(pairs) for model, pairs in found.items()}


def draw_panel(axes: Axes, title: str, name: str) -> None:
    """One data set: a line for each model."""
    found = points(name)
    for model, colour, marker in zip(MODELS, COLOURS, MARKERS, strict=False):
        seconds = [pair[0] for pair in found[model]]
        errors = [pair[1] for pair in found[model]]
        axes.plot(seconds, errors, marker=marker, color=colour, label=model)

    axes.set_title(title, fontsize=10)
    axes.set_xlabel("training, processor seconds")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([120, 300, 600, 1800])

    # Plain numbers read faster than powers of ten over so short a range.
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    lowest = min(error for pairs in found.values() for _, error in pairs)
    highest = max(error for pairs in found.values() for _, error in pairs)
    ticks = [
        tick for tick in (0.05, 0.1, 0.2, 0.3, 0.5, 0.8) if 0.7 * lowest < tick < 1.3 * highest
    ]
    axes.set_yticks(ticks)


def main() -> None:
    """Draw both panels into one file."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2)
        for axes, (title, name) in zip(panels, PANELS.items(), strict=True):
            draw_panel(axes, title, name)
        panels[0].set_ylabel("force MAE, eV/A")
        panels[1].legend(loc="upper right")
        PICTURE.parent.mkdir(exist_ok=True)
        figure.savefig(PICTURE, dpi=110)
    print(PICTURE)


if __name__ == "__main__":
    main()
