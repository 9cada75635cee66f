"""The one kind of picture that most physical checks draw: curves, optionally with a limit.

All checks use this function, so that their pictures look alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...core.figures.style import STYLE, figure_png, looks, plain_log_ticks


# With more curves than this there is no legend, because nobody could tell them apart.
MAX_NAMED = 12


def curves_png(
    title: str,
    x_label: str,
    y_label: str,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    limit: float | None = None,
    y_range: tuple[float, float] | None = None,
    logarithmic: bool = False,
    doubling: bool = False,
    markers: bool = True,
    legend: bool = True,
) -> bytes:
    """Draw curves as a PNG.

    curves: name -> x and y.
    limit: y of a dashed horizontal line.
    logarithmic: use a logarithmic y axis.
    doubling: use a logarithmic x axis of base 2.
    legend: show the names, if there are at most MAX_NAMED curves.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Drawing

    with rc_context(STYLE):
        drawing = Drawing(figsize=(7, 4.5), layout="constrained")
        axes = drawing.add_subplot()
        for (name, (x, y)), (colour, marker) in zip(curves.items(), looks(), strict=False):
            shape = marker if markers else None
            axes.plot(x, y, color=colour, marker=shape, markersize=5, linewidth=1.4, label=name)
        if limit is not None:
            axes.axhline(limit, color="black", linestyle="--", linewidth=1)
        if logarithmic:
            axes.set_yscale("log")
            plain_log_ticks(axes.yaxis)
        if doubling:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        if y_range is not None:
            axes.set_ylim(*y_range)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if legend and 0 < len(curves) <= MAX_NAMED:
            axes.legend(fontsize=9)
        return figure_png(drawing)
