"""The look that all pictures share, and the two ways in which they leave memory.

Draw inside `rc_context(STYLE)`, take a colour and a marker for each series from `looks()`, and end
with `figure_png` (bytes) or `save_picture` (a PNG and an SVG on disk). Figures are made with
`matplotlib.figure.Figure` and never with pyplot, which keeps global state.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis, Tick
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..destination import check_destination, png_kind
from ..files import file_errors, write_atomically
from ..numbers import short_number
from ..terminal import printable


# the palette of Okabe and Ito: readers with any colour vision can distinguish its colours
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# shapes repeat what the colours say, for prints in black and white
MARKERS = "osD^vP*"
QUIET_INK = "#555555"

# `Any`, because matplotlib's own type of the keys is a literal of several hundred names
STYLE: Any = {
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 13,
    "font.size": 12,
    "legend.frameon": False,
}

# Texts that are made while a figure is drawn. Ticks have plain numbers, so none needs a formula.
NO_MATHEMATICS: Any = {"text.parse_math": False}


def looks() -> Iterator[tuple[str, str]]:
    """Colour and marker of one series after the other, without end."""
    return zip(cycle(COLOURS), cycle(MARKERS), strict=False)


def figure_png(figure: Figure, dots_per_inch: int = 110, kind: str | None = None) -> bytes:
    """The figure as a PNG that names no program and no date: equal figures give equal bytes.

    kind: what the figure is, kept inside the file for `destination.png_kind`.
    """
    data = BytesIO()
    metadata: dict[str, str | None] = {"Software": None}
    if kind is not None:
        metadata["Title"] = kind
    _show_texts_as_written(figure)
    with rc_context(NO_MATHEMATICS):
        figure.savefig(data, format="png", dpi=dots_per_inch, metadata=metadata)
    return data.getvalue()


def check_drawing(path: Path, kind: str) -> str:
    """Refuse a file of the user's where a command draws under a fixed name; returns `kind`.

    An earlier picture of this kind is drawn again. Raises DestinationError; call it before any
    work.
    """
    check_destination(
        path,
        overwrite=True,
        file_kind=png_kind(kind),
        elsewhere="rename that file, since this command draws under its name",
    )
    return kind


def save_picture(figure: Figure, folder: Path, name: str) -> bytes:
    """Write NAME.png and NAME.svg into a folder, and return the PNG.

    Raises FileError where the folder cannot be written.
    """
    with file_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        png = figure_png(figure, dots_per_inch=130)
        write_atomically(folder / f"{name}.png", png)

        # without a salt, matplotlib draws the ids inside an SVG at random
        svg = BytesIO()
        with rc_context({"svg.hashsalt": name, **NO_MATHEMATICS}):
            figure.savefig(svg, format="svg", metadata={"Date": None})
        write_atomically(folder / f"{name}.svg", svg.getvalue())
    return png


def _show_texts_as_written(figure: Figure) -> None:
    """Names come from other people: a dollar sign starts no formula, and no character is hidden.

    Here and not where a name is drawn, so that no name is forgotten.
    """
    tick_labels = set()
    for tick in figure.findobj(Tick):
        tick_labels |= {tick.label1, tick.label2}
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        # matplotlib writes the labels of ticks anew in every drawing; ours are numbers
        if text not in tick_labels:
            text.set_text(printable(text.get_text()))


def log_if_positive(axes: Axes) -> None:
    """A logarithmic y axis, unless a line has values below zero (a loss with learned noise can)."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    values = np.concatenate(lines) if lines else np.empty(0)
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0:
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis)


def plain_log_ticks(axis: Axis, limits: tuple[float, float] | None = None) -> None:
    """Ticks such as 0.02 0.05 0.1 instead of powers of ten, and more of them on a short axis.

    `limits` replaces the axis's own range, which a secondary axis does not know before drawing.
    """
    low, high = limits or axis.get_view_interval()
    span = high / low
    if span < 12:
        multiples: tuple[float, ...] = (1, 1.5, 2, 3, 5, 7)
    elif span < 3e3:
        multiples = (1, 2, 5)
    else:
        multiples = (1,)
    axis.set_major_locator(LogLocator(subs=multiples))
    axis.set_major_formatter(FuncFormatter(_plain_tick))
    axis.set_minor_formatter(NullFormatter())


def _plain_tick(value: float, _: int) -> str:
    return f"{value:g}" if value < 1e4 else short_number(value)
