"""Numbers per element as a heat map in the shape of the periodic table; imports no other part of evenfield.

The layout is the 18-column one, with La-Yb and Ac-No below and Lu, Lr in group 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from math import isfinite, log10
from typing import TypeGuard

import numpy as np
from ase.data import chemical_symbols
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Colormap, LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator


MAX_ATOMIC_NUMBER = 118
SYMBOLS = tuple(chemical_symbols[1 : MAX_ATOMIC_NUMBER + 1])
PERIOD_LENGTHS = tuple(2 * (period // 2 + 1) ** 2 for period in range(1, 8))  # 2 8 8 18 18 32 32
NOBLE_GASES = tuple(accumulate(PERIOD_LENGTHS))
F_BLOCK_OFFSET = 2.35  # rows between a period and its f block: one empty row and a little air
MISSING_COLOUR = "#ececec"
PANEL_SIZE = (
    12.0,
    6.2,
)  # inches; on a page 1100 pixels wide the numbers in the cells are 11 pixels high


@cache
def table_position(atomic_number: int) -> tuple[float, int]:
    """Row (1..7, the f block at 8.35 and 9.35) and column (1..18) of an element, from its shells.

    Raises: ValueError outside 1..118.
    """
    if not 1 <= atomic_number <= MAX_ATOMIC_NUMBER:
        raise ValueError(f"atomic number {atomic_number} is outside 1..{MAX_ATOMIC_NUMBER}")
    period = next(p for p, noble in enumerate(NOBLE_GASES, start=1) if atomic_number <= noble)
    to_noble_gas = NOBLE_GASES[period - 1] - atomic_number
    place = PERIOD_LENGTHS[period - 1] - to_noble_gas
    if place <= 2 and to_noble_gas > 0:  # s block, except He
        return period, place
    if to_noble_gas < 16:  # p and d blocks end in column 18
        return period, 18 - to_noble_gas
    return period + F_BLOCK_OFFSET, place


def short_number(value: float) -> str:
    """Three significant digits in at most six characters: 0.0123, 1.23, 123, 12.3k, 4.56M, 1.2e-05."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:.3g}{letter}"
    if float(value).is_integer():
        return str(int(value))
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.1e}"


def periodic_table_heat_map(
    values: Mapping[str, float | None],
    title: str,
    unit: str,
    *,
    log: bool = False,
    colour_map: str | Colormap = "viridis",
    limits: tuple[float, float] | None = None,
    number: Callable[[float], str] = short_number,
) -> Figure:
    """One value per element as a coloured periodic table with all 118 cells.

    values: symbol -> value in `unit`; absent, None and NaN are grey, with log also what is not positive.
    unit: label of the colour bar.  limits: range of the colours, by default that of the values.
    number: how a value is written in its cell.
    Raises: ValueError for a key that is not the symbol of an element.
    """
    figure = Figure(figsize=PANEL_SIZE, layout="constrained")
    norm = colour_norm([values], log=log, limits=limits)
    draw_periodic_table(
        figure.subplots(),
        values,
        title=title,
        unit=unit,
        norm=norm,
        colour_map=colour_map,
        number=number,
    )
    return figure


def colour_norm(
    tables: Sequence[Mapping[str, float | None]],
    *,
    log: bool,
    limits: tuple[float, float] | None = None,
) -> Normalize:
    """One colour scale over several tables, so that they can be compared by eye."""
    shown = [v for values in tables for v in values.values() if _can_be_shown(v, log)]
    low, high = limits or ((min(shown), max(shown)) if shown else (1.0, 10.0))
    if low == high:  # a single value still needs a scale around it
        low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
    return LogNorm(low, high) if log else Normalize(low, high)


def draw_periodic_table(
    axes: Axes,
    values: Mapping[str, float | None],
    *,
    title: str,
    unit: str,
    norm: Normalize,
    colour_map: str | Colormap = "viridis",
    number: Callable[[float], str] = short_number,
) -> None:
    """Draw a periodic table with its colour bar into axes; arguments as in periodic_table_heat_map."""
    unknown = sorted(set(values) - set(SYMBOLS))
    if unknown:
        raise ValueError(f"not symbols of elements: {', '.join(map(repr, unknown))}")
    colours = ScalarMappable(norm, colour_map)
    cells, faces = [], []
    for atomic_number, symbol in enumerate(SYMBOLS, start=1):
        row, column = table_position(atomic_number)
        value = values.get(symbol)
        face, ink = to_rgba(MISSING_COLOUR), "#8a8a8a"
        if _can_be_shown(value, isinstance(norm, LogNorm)):
            face = colours.cmap(float(norm(value)))
            ink = _ink(face)
            axes.text(
                column, row + 0.25, number(value), ha="center", va="center", size=9, color=ink
            )
        faces.append(face)
        cells.append(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94))
        axes.text(
            column,
            row - 0.14,
            symbol,
            ha="center",
            va="center",
            size=12.5,
            weight="bold",
            color=ink,
        )
    axes.add_collection(PatchCollection(cells, facecolors=faces, edgecolors="none"))
    _frame(axes, title)
    if any(_can_be_shown(v, isinstance(norm, LogNorm)) for v in values.values()):
        _colour_bar(axes, colours, norm, unit)


def _frame(axes: Axes, title: str) -> None:
    axes.set(xlim=(0.05, 18.55), ylim=(7 + F_BLOCK_OFFSET + 0.55, 0.15), aspect=0.93)
    axes.set_axis_off()
    axes.set_title(title, loc="left", size=15, pad=8)
    for period in range(1, 8):
        axes.annotate(str(period), (0.3, period), ha="center", va="center", size=9, color="#777777")
        if PERIOD_LENGTHS[period - 1] == 32:
            row = period + F_BLOCK_OFFSET
            axes.annotate(
                str(period), (2.3, row), ha="center", va="center", size=9, color="#777777"
            )


def _colour_bar(axes: Axes, colours: ScalarMappable, norm: Normalize, unit: str) -> None:
    """In the empty place above the d block, where it costs no room."""
    inset = axes.inset_axes((3.0, 1.75, 7.3, 0.42), transform=axes.transData)
    bar = axes.figure.colorbar(colours, cax=inset, orientation="horizontal")
    ticks = _ticks(norm)
    bar.set_ticks(
        ticks, labels=[f"{t:g}" if t < 1000 else short_number(t) for t in ticks], minor=False
    )
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=10)
    bar.ax.set_title(unit, size=11)
    bar.outline.set_visible(False)
    axes.add_patch(Rectangle((10.9, 1.75), 0.42, 0.42, color=MISSING_COLOUR))
    axes.annotate("no data", (11.45, 1.97), va="center", size=10)


def _ticks(norm: Normalize) -> list[float]:
    low, high = norm.vmin, norm.vmax
    assert low is not None and high is not None
    if not isinstance(norm, LogNorm):
        return [t for t in MaxNLocator(6).tick_values(low, high) if low <= t <= high]
    decades = range(int(np.floor(log10(low))), int(np.ceil(log10(high))) + 1)
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    round_ticks = [
        s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high * (1 + 1e-9)
    ]
    return (
        round_ticks
        if len(round_ticks) >= 3
        else [float(f"{t:.2g}") for t in np.geomspace(low, high, 5)]
    )


def _can_be_shown(value: float | None, log: bool) -> TypeGuard[float]:
    return value is not None and isfinite(value) and (value > 0 or not log)


def _ink(face: tuple[float, float, float, float]) -> str:
    """Black or white, whichever has more contrast on this colour (relative luminance, WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in face[:3]]
    return (
        "black" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "white"
    )
