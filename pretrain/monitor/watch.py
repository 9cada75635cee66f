"""`evenfield pretrain watch RUN`: a page in the run folder that follows the training and loads nothing from anywhere.

It is drawn by a process of its own, so that looking on costs the training nothing.
"""

from __future__ import annotations

import time
from base64 import b64encode
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from rich.console import Console

from ...core.figures.periodic_table import periodic_table_heat_map
from ...core.figures.style import COLOURS, STYLE
from ...core.files import write_atomically
from ...core.settings import Settings
from .run_view import RunView


MOST_POINTS = 600  # of a curve
TEMPLATES = Path(__file__).parent / "templates"


class WatchConfig(Settings):
    """How a run is followed."""

    every: float = Field(default=10.0, gt=0, description="seconds between drawings")


def watch(folder: Path, config: WatchConfig, console: Console) -> Path:
    """Write RUN/watch.html again and again until the run has ended; Ctrl-C leaves the last one."""
    while True:
        view = RunView.read(folder)
        page = write_page(view, config.every)
        console.print(
            f"step {view.step} of {view.max_steps}, {view.state}: {page}",
            markup=False,
            highlight=False,
        )
        if view.ended:
            return page
        time.sleep(config.every)


def write_page(view: RunView, every: float) -> Path:
    """Draw the page once; it reloads itself while the run goes on."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    newest = view.evaluations[-1] if view.evaluations else None
    text = environment.get_template("watch.html.j2").render(
        name=view.folder.resolve().name,
        state=view.state,
        going="" if view.ended else f"{every:g}",
        share=f"{100 * min(1.0, view.step / view.max_steps):.1f}",
        figures=_figures(view),
        curves=_png(_curves(view)) if view.steps else "",
        elements=_png(_element_map(newest)) if newest and _element_errors(newest) else "",
        evaluated_at=newest["step"] if newest else None,
        table=_element_table(newest) if newest else [],
        notes=_notes(view),
        drawn=time.strftime("%Y-%m-%d %H:%M:%S"),
    )
    path = view.folder / "watch.html"
    write_atomically(path, text)
    return path


def _figures(view: RunView) -> list[tuple[str, str]]:
    """What stands at the top, in the order of interest."""
    shown = [("step", f"{view.step:,} of {view.max_steps:,}")]
    if not view.steps:
        return shown
    shown.append(("loss, median of 100 steps", f"{view.typical('loss'):.4g}"))
    if not view.ended and view.step < view.max_steps:
        shown.append(("time left", clock(view.seconds_left)))
    shown += [
        ("structures/s", f"{view.typical('structures_per_s'):,.0f}"),
        ("edges/s", f"{view.typical('edges_per_s'):,.0f}"),
        ("waiting for data", f"{view.typical('data_wait_share'):.1%}"),
        ("memory of rank 0", f"{view.steps[-1].get('memory_gib', np.nan):.2f} GiB"),
        ("epoch", f"{view.steps[-1]['epoch'] + 1}"),
        ("last step", f"{clock(view.seconds_since)} ago"),
    ]
    return shown


def clock(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 10 min, 2 d 3 h."""
    if not np.isfinite(seconds):
        return "?"
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    whole = int(seconds)
    for (size, name), (part, small) in pairwise(units):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {small}"
    return f"{whole} s"


def _curves(view: RunView) -> Figure:
    style: Any = STYLE  # matplotlib's stubs list every key
    with rc_context(style):
        figure = Figure(figsize=(12.0, 6.6), layout="constrained")
        axes = figure.subplots(2, 3)
        _curve(
            axes[0, 0], view, "loss", "loss", log=not (view.column("loss") <= 0).any()
        )  # learned noise: < 0
        _evaluations(
            axes[0, 1],
            view,
            {"force_mae": "all", "worst_decile_force_mae": "worst tenth of elements"},
        )
        axes[0, 1].set_title("validation: force MAE, eV/\u00c5", loc="left", fontsize=11)
        _evaluations(axes[0, 2], view, {"energy_mae_per_atom": "all"}, scale=1000.0)
        axes[0, 2].set_title("validation: energy MAE, meV/atom", loc="left", fontsize=11)
        _curve(axes[1, 0], view, "gradient_norm", "gradient norm before the clip", log=True)
        _curve(axes[1, 1], view, "structures_per_s", "structures/s")
        _curve(axes[1, 2], view, "data_wait_share", "share of a step spent waiting for data")
        axes[1, 2].set_ylim(bottom=0.0)
        for ax in axes.flat:
            ax.set_xlim(0, max(view.max_steps, view.step))
    return figure


def _curve(axes: Axes, view: RunView, name: str, title: str, log: bool = False) -> None:
    """A figure of every step: range of each bin of steps as a band, its median as a line."""
    values, steps = view.column(name), np.array([row["step"] for row in view.steps])
    known = np.isfinite(values) & ((values > 0) | (not log))
    axes.set_title(title, loc="left", fontsize=11)
    if not known.any():
        return
    number = min(MOST_POINTS, int(known.sum()))
    bins = zip(
        np.array_split(steps[known], number), np.array_split(values[known], number), strict=True
    )
    parts = [(int(s[len(s) // 2]), *np.quantile(v, (0.1, 0.5, 0.9))) for s, v in bins]
    x, low, middle, high = np.array(parts).T
    axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.25, linewidth=0)
    axes.plot(x, middle, color=COLOURS[0], linewidth=0.8, alpha=0.6)
    window = max(1, len(middle) // 30)
    smooth = [np.median(middle[max(0, k - window) : k + 1]) for k in range(len(middle))]
    axes.plot(x, smooth, color=COLOURS[0], linewidth=1.8)
    if log:
        axes.set_yscale("log")


def _evaluations(axes: Axes, view: RunView, names: dict[str, str], scale: float = 1.0) -> None:
    for colour, (name, label) in zip(COLOURS, names.items(), strict=False):
        steps, values = view.evaluated(name)
        if len(steps):
            axes.plot(steps, scale * values, marker="o", markersize=3, color=colour, label=label)
    if axes.lines and len(names) > 1:
        axes.legend(fontsize=9)


def _element_errors(evaluation: dict[str, Any]) -> dict[str, float]:
    return {
        s: row["force_mae"]
        for s, row in evaluation["per_element"].items()
        if row["force_mae"] is not None
    }


def _element_map(evaluation: dict[str, Any]) -> Figure:
    title = f"Force MAE by element at step {evaluation['step']:,}, validation split"
    return periodic_table_heat_map(_element_errors(evaluation), title, "eV/\u00c5", log=True)


def _element_table(evaluation: dict[str, Any]) -> list[list[str]]:
    """Symbol, structures, atoms, force MAE, RMS of the labels, energy MAE; the largest force error first."""

    def error(item: tuple[str, dict[str, Any]]) -> float:
        return -1.0 if item[1]["force_mae"] is None else item[1]["force_mae"]

    def number(value: float | None, scale: float = 1.0) -> str:
        return "" if value is None else f"{scale * value:.3g}"

    return [
        [
            symbol,
            str(row["num_structures"]),
            str(row["num_atoms"]),
            number(row["force_mae"]),
            number(row["force_rms"]),
            number(row["energy_mae_per_atom"], 1000.0),
        ]
        for symbol, row in sorted(evaluation["per_element"].items(), key=error, reverse=True)
    ]


def _notes(view: RunView) -> list[str]:
    """Steps that were left out or that a callback remarked on, newest first."""
    notes = []
    for row in reversed(view.steps):
        if row.get("bad_structures"):
            names = ", ".join(row["bad_structures"][:5])
            notes.append(
                f"step {row['step']}: loss or gradient not finite, left out; structures: {names}"
            )
        if row.get("note"):
            notes.append(f"step {row['step']}: {row['note']}")
    return notes[:20]


def _png(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return b64encode(buffer.getvalue()).decode()
