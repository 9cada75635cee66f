"""The pictures of a model card, as PNG bytes. Equal figures give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from ...core.figures.periodic_table import periodic_table_heat_map
from ...core.figures.style import figure_png
from ...core.numbers import FORCE_UNIT
from ..evaluation.parity import draw_parity
from ..evaluation.predictions import Predictions
from ..evaluation.summary import ErrorSummary


# enough for a screen; the pictures are part of every download
DOTS_PER_INCH = 80


def coverage(train_counts: Mapping[str, int]) -> bytes | None:
    """Periodic table of the training structures per element; None without counts."""
    if not train_counts:
        return None
    title = f"Training structures per element ({len(train_counts)} elements)"
    # counts span orders of magnitude, so on a linear scale all rare elements would look alike
    unit = "structures that contain the element"
    return _png(periodic_table_heat_map(train_counts, title, unit, log=True))


def element_errors(summary: ErrorSummary) -> bytes | None:
    """Periodic table of the force errors on the held-out split; None without force labels."""
    errors = summary.force_mae_of_elements()
    if not errors:
        return None
    title = f"Force MAE per element, {summary.split} split"
    return _png(periodic_table_heat_map(errors, title, f"force MAE ({FORCE_UNIT})", log=True))


def parity(predictions: Predictions, summary: ErrorSummary) -> bytes:
    """Parity plot: predicted against reference labels."""
    return _png(draw_parity(predictions.parity(), summary, f"{summary.split} split"))


def _png(figure: Figure) -> bytes:
    return figure_png(figure, dots_per_inch=DOTS_PER_INCH)
