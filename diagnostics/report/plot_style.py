"""What all pictures share: colours safe for the colour-blind, fonts, plain log axes, writing to disk."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ...core.figures import style as picture_style
from ...core.figures.periodic_table import short_number
from ...core.figures.style import COLOURS


ANGSTROM = "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}"
FORCE_UNIT = f"eV/{ANGSTROM}"
MARKERS = "osD^vP*"  # shapes say the same as the colours
STYLE: Any = {**picture_style.STYLE, "font.size": 12, "axes.titlesize": 13}


def looks() -> Iterator[tuple[str, str]]:
    """Colour and marker for one series after the other, without end."""
    return zip(cycle(COLOURS), cycle(MARKERS), strict=False)


def save_picture(figure: Figure, folder: Path, name: str) -> bytes:
    """Write name.png and name.svg into folder; returns the PNG.

    The files hold no date and no random ids, so that the same inputs give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    png = BytesIO()
    figure.savefig(png, format="png", dpi=130)
    (folder / f"{name}.png").write_bytes(png.getvalue())
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return png.getvalue()


def log_if_positive(axes: Axes) -> None:
    """Log scale, except for a loss that can be negative (learned task weights)."""
    values = np.concatenate([line.get_ydata() for line in axes.lines] or [[]])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0:
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis)


def plain_log_ticks(axis: Axis, limits: tuple[float, float] | None = None) -> None:
    """0.02 0.05 0.1 in place of powers of ten; more of them on a short axis."""
    low, high = limits or axis.get_view_interval()
    few = high / low < 12
    axis.set_major_locator(
        LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if few else (1, 2, 5) if high / low < 3e3 else (1,))
    )
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if value < 1e4 else short_number(value))
    )
    axis.set_minor_formatter(NullFormatter())
