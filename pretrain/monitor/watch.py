"""`evenfield pretrain watch RUN`: a page in the run folder that shows the progress of training.

A separate process draws the page, so watching does not slow down the training.
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydantic import Field

from ...core.destination import PAGES, check_destination
from ...core.figures.periodic_table import periodic_table_heat_map
from ...core.figures.style import figure_png
from ...core.numbers import FORCE_UNIT, short_number
from ...core.pages.page import (
    Block,
    Bullets,
    Figures,
    Picture,
    Progress,
    Section,
    Table,
    Text,
    write_page,
)
from ...core.rich_console import Console
from ...core.settings import Settings
from .learning_curves import draw_learning_curves
from .run_metrics import Validation
from .run_view import RECENT_STEPS, WATCH_PAGE, RunView


MOST_REMARKS = 20


class WatchConfig(Settings):
    """How often the page of a run is drawn."""

    every: float = Field(default=10.0, gt=0, le=1e6, description="seconds between drawings")


def watch(folder: Path, config: WatchConfig, console: Console) -> Path:
    """Write RUN/watch.html repeatedly until the run has ended, and return its path.

    Ctrl-C stops earlier and leaves the last page. Raises NoRunError for a folder without a run, and
    DestinationError if a page of this name belongs to the user.
    """
    while True:
        view = RunView.read(folder)
        check_destination(
            folder / WATCH_PAGE,
            overwrite=True,
            file_kind=PAGES,
            elsewhere="rename that file, since this command writes under its name",
        )
        page = write_watch_page(view, config.every)
        console.print(f"step {view.step} of {view.max_steps}, {view.state}: {page}")
        if view.ended:
            return page
        time.sleep(config.every)


def write_watch_page(view: RunView, every: float) -> Path:
    """Write RUN/watch.html once. The browser reloads the page until the run has ended.

    `every` is the reload interval in seconds.
    """
    share = min(1.0, view.step / view.max_steps)
    head: list[Block] = [Progress(share), Figures(_key_figures(view))]
    sections = [Section("", head)]

    remarks = view.metrics.remarks()[:MOST_REMARKS]
    if remarks:
        sections.append(Section("Remarks", [Bullets(remarks)]))
    if view.metrics.steps:
        sections.append(_curve_section(view))
    if view.metrics.validations:
        sections.append(_validation_section(view.metrics.validations[-1]))

    drawn = f"Drawn {time.strftime('%Y-%m-%d %H:%M:%S')}"
    if not view.ended:
        drawn += f", read again every {every:g} s"
    sections.append(Section("", [Text(f"{drawn}.", style="remark")]))

    # resolved, because the folder may be given as "."
    name = view.folder.resolve().name
    return write_page(
        view.folder / WATCH_PAGE,
        name,
        sections,
        state=view.state,
        # the progress comes first, because a tab shows only the start of its title
        browser_title=f"{100 * share:.1f} % {name}",
        reload_seconds=None if view.ended else every,
    )


def _key_figures(view: RunView) -> list[tuple[str, str]]:
    """Names and values for the head of the page, the most important first."""
    shown = [("step", f"{view.step:,} of {view.max_steps:,}")]
    if not view.metrics.steps:
        return shown
    shown.append((f"loss, median of {RECENT_STEPS} steps", f"{view.typical('loss'):.4g}"))
    # shown for a stopped run too, because it may be resumed
    if not view.ended and view.step < view.max_steps:
        shown.append(("time left", clock(view.seconds_left)))
    last = view.metrics.steps[-1]
    shown += [
        ("structures/s", short_number(view.typical("structures_per_s"))),
        ("edges/s", short_number(view.typical("edges_per_s"))),
        ("waiting for data", f"{view.typical('data_wait_share'):.1%}"),
        ("memory of rank 0", f"{last.get('memory_gib', np.nan):.2f} GiB"),
        ("epoch", f"{last['epoch'] + 1}"),
        ("last step", f"{clock(view.seconds_since)} ago"),
    ]
    return shown


def clock(seconds: float) -> str:
    """Format a time with at most two units: 12 s, 3 min 20 s, 5 h 10 min, 2 d 3 h."""
    if not np.isfinite(seconds):
        return "?"
    whole = int(seconds)
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    for (size, name), (smaller_size, smaller_name) in pairwise(units):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {name} {rest} {smaller_name}"
    return f"{whole} s"


def _curve_section(view: RunView) -> Section:
    figure = draw_learning_curves({"all": view.metrics}, max(view.max_steps, view.step))
    alt = "Loss, validation errors, gradient norm, speed and waiting time over the steps"
    explanation = (
        "Bands reach from the 10 % to the 90 % quantile of neighbouring steps. "
        "The thick line is their running median."
    )
    return Section(
        "Learning curves", [Picture(alt, figure_png(figure)), Text(explanation, style="remark")]
    )


def _validation_section(validation: Validation) -> Section:
    """The section with errors by element, as a periodic table and as numbers."""
    blocks: list[Block] = []
    errors = validation.errors.force_mae_of_elements()
    if errors:
        title = f"Force MAE by element at step {validation.step:,}, validation split"
        figure = periodic_table_heat_map(errors, title, FORCE_UNIT, log=True)
        alt = "Force error of every element in the periodic table"
        blocks.append(Picture(alt, figure_png(figure)))
    header = [
        "element",
        "structures",
        "atoms",
        f"force MAE ({FORCE_UNIT})",
        f"force RMS of the labels ({FORCE_UNIT})",
        "energy MAE (meV/atom)",
    ]
    blocks.append(Table("Errors by element, the largest first", header, _element_rows(validation)))
    return Section(f"Validation at step {validation.step:,}", blocks)


def _element_rows(validation: Validation) -> list[list[str]]:
    per_element = validation.errors.per_element
    # elements without force labels come last
    force_mae = validation.errors.force_mae_of_elements()
    order = sorted(per_element, key=lambda symbol: force_mae.get(symbol, -1.0), reverse=True)
    rows = []
    for symbol in order:
        errors = per_element[symbol]
        row = [
            symbol,
            str(errors.num_structures),
            str(errors.num_atoms),
            _short(errors.force_mae),
            _short(errors.force_rms),
            _short(errors.energy_mae_per_atom, factor=1000.0),  # eV to meV
        ]
        rows.append(row)
    return rows


def _short(value: float | None, factor: float = 1.0) -> str:
    return "-" if value is None else short_number(factor * value)
