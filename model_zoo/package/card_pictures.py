"""The pictures of a model card, as PNG bytes that depend on nothing but the figures."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...core.figures.periodic_table import periodic_table_heat_map
from ...core.figures.style import COLOURS, STYLE


RESOLUTION = 80  # dots per inch: a card is read on a screen, and travels with every download
MAX_POINTS = 20_000
LOOK: Any = STYLE  # matplotlib's own type wants every key spelt out


def coverage(train_counts: dict[str, int]) -> bytes | None:
    """Training structures that contain each element."""
    if not train_counts:
        return None
    title = f"Training structures per element ({len(train_counts)} elements)"
    return _png(
        periodic_table_heat_map(
            train_counts, title, "structures that contain the element", log=True
        )
    )


def element_errors(evaluation: dict[str, Any]) -> bytes | None:
    """Force error of each element on the held-out split."""
    errors = {
        symbol: row.get("force_mae") for symbol, row in evaluation.get("per_element", {}).items()
    }
    if not any(value is not None for value in errors.values()):
        return None
    title = f"Force MAE per element, {evaluation.get('split')} split"
    return _png(periodic_table_heat_map(errors, title, "force MAE (eV/\u00c5)", log=True))


@rc_context(LOOK)
def parity(predictions: Any) -> bytes:
    """Predicted against reference: energies per atom less E0, and force components, coloured by level of theory."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    level_of_atom = predictions.level_index[predictions.structure_index]
    energies = predictions.energy / predictions.num_atoms[:, None]  # (S, 2)
    for index, name in enumerate(predictions.level_names):
        colour = COLOURS[index % len(COLOURS)]
        _points(left, energies[predictions.level_index == index], name, colour)
        _points(right, predictions.forces[level_of_atom == index].reshape(-1, 2), name, colour)
    _finish(left, "Energy per atom, less E0", "eV/atom")
    _finish(right, "Force components", "eV/\u00c5")
    return _png(figure)


def _points(axes: Axes, pairs: np.ndarray, name: str, colour: str) -> None:
    """pairs (M, 2): reference, predicted; evenly thinned where there are very many."""
    pairs = pairs[np.isfinite(pairs).all(1)]
    if not len(pairs):
        return
    error = np.abs(pairs[:, 1] - pairs[:, 0]).mean()
    shown = pairs[:: -(-len(pairs) // MAX_POINTS)]
    axes.plot(
        *shown.T,
        ".",
        ms=4,
        mew=0,
        alpha=0.5,
        color=colour,
        label=f"{name}: MAE {error:.3g}",
        rasterized=True,
    )


def _finish(axes: Axes, title: str, unit: str) -> None:
    if axes.lines:
        values = np.concatenate([np.concatenate(line.get_data()) for line in axes.lines])
        low, high = np.percentile(values, [0.05, 99.95])
        margin = 0.05 * (high - low) or 1.0
        limits = (low - margin, high + margin)
        axes.plot(limits, limits, color="#555555", lw=1, zorder=3)
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.legend(loc="upper left", markerscale=3)
    axes.set(title=title, xlabel=f"reference ({unit})", ylabel=f"predicted ({unit})")


def _png(figure: Figure) -> bytes:
    data = BytesIO()
    figure.savefig(data, format="png", dpi=RESOLUTION, metadata={"Software": None})
    return data.getvalue()
