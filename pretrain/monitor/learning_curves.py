"""The figure with learning curves of one or several runs, for the watch page and the report."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...core.figures.style import STYLE, log_if_positive, looks
from ...core.numbers import FORCE_UNIT
from ...model_zoo.evaluation.evenness import error_of_third
from ...model_zoo.evaluation.summary import ErrorSummary
from .run_metrics import RunMetrics, ValidationFigure


# more points than pixels would cost time and change nothing
MOST_POINTS = 600


@rc_context(STYLE)
def draw_learning_curves(runs: Mapping[str, RunMetrics], last_step: int | None = None) -> Figure:
    """Draw loss, validation errors, evenness, gradient norm, learning rate and speed over steps.

    runs: name -> metrics; several runs share the panels.
    last_step: end of the axes, so that the figure of a growing run keeps its scale.
    """
    figure = Figure(figsize=(16.5, 7.2), layout="constrained")
    panels = figure.subplots(2, 4)
    (loss, force, energy, thirds), (gradient, rate, speed, wait) = panels

    for (name, metrics), (colour, marker) in zip(runs.items(), looks(), strict=False):
        prefix = f"{name}: " if len(runs) > 1 else ""
        _draw_steps(loss, metrics, "loss", colour, name)
        _draw_steps(gradient, metrics, "gradient_norm", colour, name)
        _draw_steps(rate, metrics, "learning_rate", colour, name)
        _draw_steps(speed, metrics, "structures_per_s", colour, name)
        _draw_steps(wait, metrics, "data_wait_share", colour, name, factor=100.0)
        _draw_validations(force, metrics, _force_mae, colour, marker, name)
        _draw_validations(energy, metrics, _energy_mae, colour, marker, name)
        _draw_validations(thirds, metrics, _rare, colour, marker, f"{prefix}rare third")
        # dotted and hollow, because the colours distinguish the runs
        _draw_validations(
            thirds, metrics, _common, colour, marker, f"{prefix}common third", hollow=True
        )

    titles = {
        loss: ("Training loss", "loss"),
        force: ("Validation force MAE", f"force MAE ({FORCE_UNIT})"),
        energy: ("Validation energy MAE", "energy MAE (meV/atom)"),
        thirds: ("Rare and common elements", "force MAE / RMS of the labels (%)"),
        gradient: ("Gradient norm before the clip", "gradient norm"),
        rate: ("Learning rate", "learning rate"),
        speed: ("Speed", "structures/s"),
        wait: ("Waiting for data", "share of the step (%)"),
    }
    for axes, (title, label) in titles.items():
        axes.set_title(title)
        axes.set(xlabel="optimizer step", ylabel=label)
        if last_step is not None:
            axes.set_xlim(0, last_step)
    for axes in (loss, force, energy, thirds, gradient):
        log_if_positive(axes)
    # from zero, so that half the speed looks like half
    speed.set_ylim(bottom=0.0)
    wait.set_ylim(bottom=0.0)
    if len(runs) > 1 and loss.lines:
        loss.legend(fontsize=10)
    if thirds.lines:
        thirds.legend(fontsize=9)
    return figure


def _force_mae(errors: ErrorSummary) -> float | None:
    return errors.force_mae


def _energy_mae(errors: ErrorSummary) -> float | None:
    """In meV/atom."""
    mae = errors.energy_mae_per_atom
    return None if mae is None else 1000 * mae


def _rare(errors: ErrorSummary) -> float | None:
    return _relative_error_of("rare", errors)


def _common(errors: ErrorSummary) -> float | None:
    return _relative_error_of("common", errors)


def _relative_error_of(group: str, errors: ErrorSummary) -> float | None:
    """In percent; None if too few elements of the validation structures can be judged."""
    error = error_of_third(errors, group)
    return None if error is None else 100 * error


def _draw_steps(
    axes: Axes, metrics: RunMetrics, name: str, colour: str, label: str, factor: float = 1.0
) -> None:
    """Draw a quantity of all steps: its spread as a band, and its running median as a line."""
    values = factor * metrics.column(name)
    steps = np.array([row["step"] for row in metrics.steps], dtype=float)
    known = np.isfinite(values)
    if not known.any():
        return

    # bins with equal numbers of steps
    num_bins = min(MOST_POINTS, int(known.sum()))
    bins_of_steps = np.array_split(steps[known], num_bins)
    bins_of_values = np.array_split(values[known], num_bins)
    centres = []
    quantiles = []
    for bin_steps, bin_values in zip(bins_of_steps, bins_of_values, strict=True):
        centres.append(bin_steps[len(bin_steps) // 2])
        quantiles.append(np.quantile(bin_values, (0.1, 0.5, 0.9)))
    low, middle, high = np.array(quantiles).T

    axes.fill_between(centres, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(centres, middle, color=colour, linewidth=0.8, alpha=0.35)
    axes.plot(centres, running_median(middle), color=colour, linewidth=2, label=label)


def running_median(values: np.ndarray) -> np.ndarray:
    """Running median over a twentieth of the values, and over fewer at both ends.

    It removes spikes of single batches.
    """
    half = max(1, len(values) // 40)
    medians = []
    for index in range(len(values)):
        # a negative start would count from the end
        start = max(0, index - half)
        medians.append(np.median(values[start : index + half + 1]))
    return np.array(medians)


def _draw_validations(
    axes: Axes,
    metrics: RunMetrics,
    figure: ValidationFigure,
    colour: str,
    marker: str,
    label: str,
    hollow: bool = False,
) -> None:
    steps, values = metrics.validated(figure)
    # without values, there must be no entry in the legend
    if not len(steps):
        return
    axes.plot(
        steps,
        values,
        linestyle=":" if hollow else "-",
        color=colour,
        markerfacecolor="white" if hollow else colour,
        marker=marker,
        markersize=4,
        linewidth=1.8,
        label=label,
    )
