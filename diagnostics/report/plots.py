"""Pictures of learning, parity and few-shot fine-tuning as matplotlib figures, without pyplot's global state.

Every function takes what diagnostics/report/run_files.py reads and returns a Figure; plot_style writes it to disk.
"""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ...core.figures.periodic_table import short_number
from .plot_style import (
    COLOURS,
    FORCE_UNIT,
    STYLE,
    log_if_positive,
    looks,
    plain_log_ticks,
)
from .run_files import Errors, Evaluation, FewShot, Metrics, Predictions


STRATEGY_LABELS = {
    "pretrained": "pretrained, unchanged",
    "step0": "E0 refit only (step 0)",
    "refit": "closed-form refit",
    "scratch": "trained from scratch",
}
MANY_POINTS = 6000  # more than this and dots hide each other: show their density


@rc_context(STYLE)
def learning_curves(runs: dict[str, Metrics]) -> Figure:
    """Training loss and validation errors over steps, runs overlaid."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    loss, force, energy = figure.subplots(1, 3)
    for (name, metrics), (colour, marker) in zip(runs.items(), looks(), strict=False):
        steps, values = metrics.steps["step"], metrics.steps["loss"]
        loss.plot(steps, values, color=colour, alpha=0.22, lw=0.8)
        loss.plot(steps, _running_median(values), color=colour, lw=2, label=name)
        for axes, field, factor in ((force, "force_mae", 1), (energy, "energy_mae_per_atom", 1000)):
            if field in metrics.evaluations:
                at, error = metrics.evaluations["step"], factor * metrics.evaluations[field]
                axes.plot(at, error, color=colour, marker=marker, ms=4.5, lw=2, label=name)
    loss.set(title="Training loss (running median)", xlabel="optimizer step", ylabel="loss")
    force.set(
        title="Validation force MAE", xlabel="optimizer step", ylabel=f"force MAE ({FORCE_UNIT})"
    )
    energy.set(
        title="Validation energy MAE", xlabel="optimizer step", ylabel="energy MAE (meV/atom)"
    )
    for axes in (loss, force, energy):
        log_if_positive(axes)
    loss.legend()
    return figure


def _running_median(values: np.ndarray) -> np.ndarray:
    """Over a twentieth of the run, shorter at its ends; a median, as a spike of one batch is no trend."""
    half = max(1, len(values) // 40)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return np.array(
        [np.median(w[np.isfinite(w)]) if np.isfinite(w).any() else np.nan for w in windows]
    )


@rc_context(STYLE)
def parity(predictions: Predictions, evaluation: Evaluation, name: str) -> Figure:
    """Predicted against reference energies by level of theory, and force components as a density.

    Forces carry no level in predictions.npz, so their errors per level stand in the legend of the energies.
    """
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    energy, force = figure.subplots(1, 2)
    _energy_parity(energy, predictions, evaluation)
    _force_parity(force, predictions)
    figure.suptitle(f"{name}, {evaluation.split} split", x=0.01, ha="left", size=15)
    if evaluation.energy_mae_per_atom is not None:
        energy.set_title(
            f"Energy: MAE {short_number(1000 * evaluation.energy_mae_per_atom)} meV/atom"
        )
    if evaluation.force_mae is not None:
        force.set_title(f"Force components: MAE {short_number(evaluation.force_mae)} {FORCE_UNIT}")
    return figure


def _energy_parity(axes: Axes, predictions: Predictions, evaluation: Evaluation) -> None:
    reference, predicted = (
        predictions.reference_energy_per_atom,
        predictions.predicted_energy_per_atom,
    )
    shown = np.flatnonzero(np.isfinite(reference) & np.isfinite(predicted))
    shown = np.random.default_rng(0).permutation(
        shown
    )  # mixed, so that no level is drawn over the others
    colours = np.array(COLOURS)[predictions.level_index[shown] % len(COLOURS)]
    size = float(np.clip(3e4 / max(len(shown), 1), 3, 28))
    axes.scatter(
        reference[shown], predicted[shown], s=size, c=colours, alpha=0.55, lw=0, rasterized=True
    )
    for index, level in enumerate(predictions.level_names):
        errors = evaluation.levels.get(level)
        label = f"{level}\n{_level_errors(errors)}" if errors else level
        axes.scatter([], [], s=45, color=COLOURS[index % len(COLOURS)], label=label)
    axes.legend(loc="upper left", fontsize=10, handletextpad=0.2)
    _diagonal(axes, reference[shown], predicted[shown])
    axes.set(xlabel="reference energy - E0 (eV/atom)", ylabel="predicted energy - E0 (eV/atom)")


def _level_errors(errors: Errors) -> str:
    parts = []
    if errors.energy_mae_per_atom is not None:
        parts.append(f"{short_number(1000 * errors.energy_mae_per_atom)} meV/atom")
    if errors.force_mae is not None:
        parts.append(f"{short_number(errors.force_mae)} {FORCE_UNIT}")
    return ", ".join(parts)


def _force_parity(axes: Axes, predictions: Predictions) -> None:
    reference, predicted = (
        predictions.reference_forces.ravel(),
        predictions.predicted_forces.ravel(),
    )
    shown = np.isfinite(reference) & np.isfinite(predicted)
    reference, predicted = reference[shown], predicted[shown]
    if len(reference) > MANY_POINTS:
        low, high = _range(reference, predicted)
        density = axes.hexbin(
            reference,
            predicted,
            gridsize=90,
            extent=(low, high, low, high),
            bins="log",
            mincnt=1,
            lw=0.1,
            rasterized=True,
        )
        axes.figure.colorbar(
            density, ax=axes, label="force components per cell", pad=0.02, shrink=0.9
        )
    else:
        axes.scatter(reference, predicted, s=8, color=COLOURS[0], alpha=0.5, lw=0, rasterized=True)
    _diagonal(axes, reference, predicted)
    axes.set(xlabel=f"reference force ({FORCE_UNIT})", ylabel=f"predicted force ({FORCE_UNIT})")


def _diagonal(axes: Axes, reference: np.ndarray, predicted: np.ndarray) -> None:
    low, high = _range(reference, predicted)
    axes.plot([low, high], [low, high], color="#444444", lw=1, ls="--", zorder=0.5)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def _range(*values: np.ndarray) -> tuple[float, float]:
    """A little more than the values span."""
    joined = np.concatenate(values)
    low, high = (joined.min(), joined.max()) if len(joined) else (-1.0, 1.0)
    margin = 0.04 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


@rc_context(STYLE)
def few_shot_curve(few_shot: FewShot) -> Figure:
    """Test error against the number of target structures: median and range over seeds, log axes."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    force, energy = figure.subplots(1, 2)
    names = dict.fromkeys(
        [*STRATEGY_LABELS, *few_shot.strategies]
    )  # a strategy looks the same in every report
    styles = dict(zip(names, looks(), strict=False))
    for axes, field, factor in ((force, "force_mae", 1.0), (energy, "energy_mae_per_atom", 1000.0)):
        for strategy in few_shot.strategies:
            _strategy_curve(axes, few_shot, strategy, field, factor, *styles[strategy])
        _few_shot_axes(axes, few_shot)
    force.set(title=f"{few_shot.target}: forces", ylabel=f"test force MAE ({FORCE_UNIT})")
    energy.set(title=f"{few_shot.target}: energies", ylabel="test energy MAE (meV/atom)")
    percent = force.secondary_yaxis(
        "right",
        functions=(lambda m: 100 * m / few_shot.force_rms, lambda p: p * few_shot.force_rms / 100),
    )
    percent.set_ylabel("% of force RMS")
    plain_log_ticks(percent.yaxis, force.get_ylim())
    figure.legend(*force.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _strategy_curve(
    axes: Axes,
    few_shot: FewShot,
    strategy: str,
    field: str,
    factor: float,
    colour: str,
    marker: str,
) -> None:
    rows = [row for row in few_shot.rows if row.strategy == strategy]
    label = STRATEGY_LABELS.get(strategy, strategy)
    if strategy == "pretrained":  # does not depend on the number of structures
        axes.axhline(
            factor * np.median([getattr(r, field) for r in rows]),
            color=colour,
            ls="--",
            lw=2,
            label=label,
        )
        return
    counts = sorted({row.num_structures for row in rows})
    errors = [[factor * getattr(r, field) for r in rows if r.num_structures == n] for n in counts]
    low, middle, high = (np.array([f(e) for e in errors]) for f in (np.min, np.median, np.max))
    axes.fill_between(counts, low, high, color=colour, alpha=0.18, lw=0)
    axes.plot(counts, middle, color=colour, marker=marker, ms=6, lw=2, label=label)


def _few_shot_axes(axes: Axes, few_shot: FewShot) -> None:
    counts = sorted({r.num_structures for r in few_shot.rows if r.strategy != "pretrained"})
    axes.set(xscale="log", yscale="log", xlabel="structures of the target used")
    axes.set_xticks(counts, labels=[str(n) for n in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    plain_log_ticks(axes.yaxis)
