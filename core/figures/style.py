"""The common style of all pictures, and functions to export them.

Draw inside `rc_context(STYLE)`, take a colour and a marker for each series from `looks()`, and
export with `figure_png` (bytes) or `save_picture` (a PNG and an SVG on disk). Create figures with
`matplotlib.figure.Figure`, not with pyplot, which keeps global state.
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


# the palette of Okabe and Ito, which readers with colour vision deficiency can distinguish
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# one marker per colour, for printing in black and white
MARKERS = "osD^vP*"
QUIET_INK = "#555555"

# `Any`, because matplotlib types the keys as a literal of several hundred names
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

# for texts that are created while a figure is drawn; tick labels are plain numbers, not formulas
NO_MATHEMATICS: Any = {"text.parse_math": False}


def looks() -> Iterator[tuple[str, str]]:
    """Yield the colours and markers of successive series, without end."""
    return zip(cycle(COLOURS), cycle(MARKERS), strict=False)


def figure_png(figure: Figure, dots_per_inch: int = 110, kind: str | None = None) -> bytes:
    """The figure as PNG bytes, without program name or date, so equal figures give equal bytes.

    kind: kind of the figure, stored in the file so that `destination.png_kind` can recognise it.
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
    """Check a path with a fixed name to which a command will draw a picture; returns `kind`.

    Raises DestinationError if the path holds anything but an earlier picture of this kind. Call
    this before any work.
    """
    check_destination(
        path,
        overwrite=True,
        file_kind=png_kind(kind),
        elsewhere="rename that file, since this command draws under its name",
    )
    return kind


def save_picture(figure: Figure, folder: Path, name: str) -> bytes:
    """Write NAME.png and NAME.svg to a folder, and return the bytes of the PNG.

    Raises FileError if the folder cannot be written.
    """
    with file_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        png = figure_png(figure, dots_per_inch=130)
        write_atomically(folder / f"{name}.png", png)

        # without a salt, matplotlib uses random ids in an SVG
        svg = BytesIO()
        with rc_context({"svg.hashsalt": name, **NO_MATHEMATICS}):
            figure.savefig(svg, format="svg", metadata={"Date": None})
        write_atomically(folder / f"{name}.svg", svg.getvalue())
    return png


def _show_texts_as_written(figure: Figure) -> None:
    """Show all texts literally: dollar signs start no formula, and hidden characters are escaped.

    Names may come from untrusted sources. This is done for the whole figure, so that none is
    missed.
    """
    tick_labels = set()
    for tick in figure.findobj(Tick):
        tick_labels |= {tick.label1, tick.label2}
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        # matplotlib rewrites tick labels whenever it draws, and they are only numbers
        if text not in tick_labels:
            text.set_text(printable(text.get_text()))


def log_if_positive(axes: Axes) -> None:
    """Make the y axis logarithmic if all line values are positive.

    A loss with learned noise, for example, can be negative.
    """
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    values = np.concatenate(lines) if lines else np.empty(0)
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0:
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis)


def plain_log_ticks(axis: Axis, limits: tuple[float, float] | None = None) -> None:
    """Use plain ticks such as 0.02 0.05 0.1 on a log axis, with more of them on a short axis.

    limits: range of the axis. Needed for a secondary axis, which does not know its range before it
        is drawn.
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
