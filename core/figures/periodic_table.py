"""Heat maps of one value per element, in the shape of the periodic table.

The layout has 18 columns, with La-Yb and Ac-No in two rows below, and Lu and Lr in group 3.
`periodic_table_heat_map` makes a figure with a single table. `draw_periodic_table` draws into given
axes, with a colour scale from `colour_norm` that several tables can share.
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

from ..numbers import short_number


MAX_ATOMIC_NUMBER = 118
# largest ratio between the ends of a logarithmic colour scale; smaller values are clipped
MOST_CONTRAST = 1e4
SYMBOLS = tuple(chemical_symbols[1 : MAX_ATOMIC_NUMBER + 1])
# 2, 8, 8, 18, 18, 32, 32: the shells in the order in which they fill
PERIOD_LENGTHS = tuple(2 * (period // 2 + 1) ** 2 for period in range(1, 8))
NOBLE_GASES = tuple(accumulate(PERIOD_LENGTHS))
# rows between a period and its f block: one empty row and some space
F_BLOCK_OFFSET = 2.35
MISSING_COLOUR = "#ececec"
MISSING_INK = "#8a8a8a"
FRAME_INK = "#777777"
# inches; on a page of 1100 pixels width, the numbers in the cells are 11 pixels high
PANEL_SIZE = (12.0, 6.2)


@cache
def table_position(atomic_number: int) -> tuple[float, int]:
    """Row (1 to 7; the f block at 8.35 and 9.35) and column (1 to 18) of an element."""
    assert 1 <= atomic_number <= MAX_ATOMIC_NUMBER, f"no element {atomic_number}"
    period = 1
    while NOBLE_GASES[period - 1] < atomic_number:
        period += 1
    to_noble_gas = NOBLE_GASES[period - 1] - atomic_number
    place = PERIOD_LENGTHS[period - 1] - to_noble_gas

    # the s block without helium, which is drawn above the other noble gases
    if place <= 2 and to_noble_gas > 0:
        return period, place
    # the d and p blocks end in column 18
    if to_noble_gas < 16:
        return period, 18 - to_noble_gas
    return period + F_BLOCK_OFFSET, place


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
    """A figure with one value per element, as a coloured periodic table with all 118 cells.

    values: symbol -> value in `unit`. Elements without a finite value are grey; with `log`, so are
        values that are not positive.
    unit: label of the colour bar.
    log: use a logarithmic colour scale.
    limits: range of the colours, by default the range of the values.
    number: formats the value in its cell.
    """
    figure = Figure(figsize=PANEL_SIZE, layout="constrained")
    draw_periodic_table(
        figure.subplots(),
        values,
        title=title,
        unit=unit,
        norm=colour_norm([values], log=log, limits=limits),
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
    """A common colour scale for several tables, so that they can be compared by eye.

    tables, log, limits: as `values`, `log` and `limits` of `periodic_table_heat_map`.
    """
    shown = []
    for values in tables:
        for value in values.values():
            if _can_be_shown(value, log):
                shown.append(value)

    if limits is not None:
        low, high = limits
    elif shown:
        low = min(shown)
        high = max(shown)
        if log:
            # force errors of 1e-8, where forces vanish by symmetry, would use up the colour scale
            low = max(low, high / MOST_CONTRAST)
    else:
        # there is nothing to show, but matplotlib still needs a range
        low = 1.0
        high = 10.0

    # a single value needs a range around it
    if low == high and log:
        low = low / 2
        high = high * 2
    elif low == high:
        low = low - 0.5
        high = high + 0.5
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
    """Draw a periodic table and its colour bar into axes; see `periodic_table_heat_map`."""
    unknown = sorted(set(values) - set(SYMBOLS))
    assert not unknown, f"not symbols of elements: {unknown}"
    log = isinstance(norm, LogNorm)
    colours = ScalarMappable(norm, colour_map)

    cells = []
    faces = []
    for atomic_number, symbol in enumerate(SYMBOLS, start=1):
        row, column = table_position(atomic_number)
        value = values.get(symbol)
        face = to_rgba(MISSING_COLOUR)
        ink = MISSING_INK
        if _can_be_shown(value, log):
            face = colours.cmap(float(norm(value)))
            ink = _readable_ink(face)
            _centred_text(axes, column, row + 0.25, number(value), size=9, color=ink)
        _centred_text(axes, column, row - 0.14, symbol, size=12.5, weight="bold", color=ink)
        faces.append(face)
        cells.append(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94))
    # one collection, because 118 separate patches take four times as long to draw
    axes.add_collection(PatchCollection(cells, facecolors=faces, edgecolors="none"))

    _draw_frame(axes, title)
    if any(_can_be_shown(value, log) for value in values.values()):
        _draw_colour_bar(axes, colours, norm, unit)


def _centred_text(axes: Axes, column: float, row: float, text: str, **look: object) -> None:
    written = axes.text(column, row, text, ha="center", va="center", **look)  # type: ignore[arg-type]
    # The texts are inside the frame, so the layout can ignore them. Otherwise it would measure each
    # of about two hundred texts several times.
    written.set_in_layout(False)


def _draw_frame(axes: Axes, title: str) -> None:
    """Set the limits and the title, and draw the numbers of the periods."""
    axes.set(xlim=(0.05, 18.55), ylim=(7 + F_BLOCK_OFFSET + 0.55, 0.15), aspect=0.93)
    axes.set_axis_off()
    axes.set_title(title, loc="left", size=15, pad=8)
    for period, length in enumerate(PERIOD_LENGTHS, start=1):
        places = [(0.3, float(period))]
        if length == 32:
            places.append((2.3, period + F_BLOCK_OFFSET))
        # annotations and not texts, because the axes' texts are those of the cells
        for place in places:
            axes.annotate(str(period), place, ha="center", va="center", size=9, color=FRAME_INK)


def _draw_colour_bar(axes: Axes, colours: ScalarMappable, norm: Normalize, unit: str) -> None:
    """Draw the colour bar in the empty space above the d block."""
    inset = axes.inset_axes((3.0, 1.75, 7.3, 0.42), transform=axes.transData)
    bar = axes.figure.colorbar(colours, cax=inset, orientation="horizontal")
    ticks = _bar_ticks(norm)
    labels = [f"{tick:g}" if tick < 1000 else short_number(tick) for tick in ticks]
    bar.set_ticks(ticks, labels=labels, minor=False)
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=10)
    bar.ax.set_title(unit, size=11)
    bar.outline.set_visible(False)
    axes.add_patch(Rectangle((10.9, 1.75), 0.42, 0.42, color=MISSING_COLOUR))
    axes.annotate("no data", (11.45, 1.97), va="center", size=10)


def _bar_ticks(norm: Normalize) -> list[float]:
    low = norm.vmin
    high = norm.vmax
    assert low is not None and high is not None
    if not isinstance(norm, LogNorm):
        # the locator also returns round numbers just outside
        candidates = MaxNLocator(6).tick_values(low, high)
        return [tick for tick in candidates if low <= tick <= high]

    # with many decades, labels between powers of ten would overlap
    multiples = (1, 2, 5) if high / low < 1000 else (1,)
    first_decade = int(np.floor(log10(low)))
    last_decade = int(np.ceil(log10(high)))
    ticks = []
    for decade in range(first_decade, last_decade + 1):
        for multiple in multiples:
            tick = multiple * 10.0**decade
            # the highest value is often a round number, and must not be lost to rounding
            if low <= tick <= high * (1 + 1e-9):
                ticks.append(tick)
    if len(ticks) >= 3:
        return ticks

    # the range is too narrow for round numbers
    even = np.geomspace(low, high, 5)
    return [float(f"{tick:.2g}") for tick in even]


def _can_be_shown(value: float | None, log: bool) -> TypeGuard[float]:
    if value is None or not isfinite(value):
        return False
    # zero and below have no logarithm
    return value > 0 or not log


def _readable_ink(face: tuple[float, float, float, float]) -> str:
    """Black or white text, whichever has more contrast (relative luminance, WCAG 2.2)."""
    red, green, blue = (_linear_light(channel) for channel in face[:3])
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue

    # contrast is (lighter + 0.05) / (darker + 0.05); both inks are equal at 0.179
    return "black" if luminance > 0.179 else "white"


def _linear_light(channel: float) -> float:
    """Convert an sRGB channel to linear light."""
    if channel <= 0.04045:
        return channel / 12.92
    return float(((channel + 0.055) / 1.055) ** 2.4)
