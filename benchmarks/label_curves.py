"""Errors against labels: how many labels do several ways to choose them need for the same error?

A row is one run: its way, its seed, and its curve. A curve is a list of points, each with a number
of labels and the errors of the model that has learned them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from evenfield.core.figures.style import STYLE, figure_png, log_if_positive, looks
from evenfield.data_pipelines.structure import Structure
from evenfield.finetune.safety.uncertainty import observe
from evenfield.model_zoo.hub.load import LoadedModel


# The errors that are compared, as points name them.
FORCE = "force_rmse"
ENERGY = "energy_mae_per_atom"
NAMES = {FORCE: "force RMSE (eV/A)", ENERGY: "energy MAE (meV/atom)"}
FACTORS = {FORCE: 1.0, ENERGY: 1000.0}


def errors(model: LoadedModel, level: str, judged: list[Structure]) -> dict[str, float]:
    """Errors of one model on the structures that judge, and the share of forces within radii.

    Forces in eV/A, energies in eV/atom.
    """
    uncertainty = model.uncertainties[level]
    seen = observe(model.potential, uncertainty, judged)
    num_atoms = np.array([len(one) for one in judged])
    quantile = uncertainty.force_quantiles(0.9)[uncertainty.group_of(seen.numbers)]
    radius = quantile * uncertainty.spread(seen.ingredients, seen.numbers)
    return {
        FORCE: float(np.sqrt(np.square(seen.force_error).mean())),
        "force_mae": float(np.abs(seen.force_error).mean()),
        ENERGY: float((np.abs(seen.energy_error) / num_atoms).mean()),
        "covered_by_90": float((seen.error <= radius).mean()),
    }


def labels_to_reach(curve: Sequence[dict[str, float]], key: str, error: float) -> float | None:
    """Labels with which a curve first is at `error` or below; None if it never is.

    key: the name of the error. Between two points, a straight line joins the logarithms of errors
    and labels.
    """
    for place, point in enumerate(curve):
        if point[key] > error:
            continue
        if place == 0:
            return float(point["labels"])
        before = curve[place - 1]
        span = np.log(before[key] / point[key])
        share = np.log(before[key] / error) / span if span > 0 else 1.0
        ratio = point["labels"] / before["labels"]
        return float(before["labels"] * ratio ** min(share, 1.0))
    return None


def beside(rows: Sequence[dict[str, Any]], other: str, key: str) -> dict[str, Any]:
    """The labels that each way needs for the lowest error of `other`, over those of `other`.

    The lowest error and not the last, because curves also go up. There is one ratio for each seed,
    None if the way never comes to that error. That counts as infinite in the median.
    """
    of_seed = {row["seed"]: row["curve"] for row in rows if row["way"] == other}
    found: dict[str, Any] = {}
    for way in dict.fromkeys(row["way"] for row in rows):
        ratios: list[float | None] = []
        for row in rows:
            if row["way"] != way or way == other or row["seed"] not in of_seed:
                continue
            best = min(of_seed[row["seed"]], key=lambda point: (point[key], point["labels"]))
            own = labels_to_reach(row["curve"], key, best[key])
            ratios.append(None if own is None else own / best["labels"])
        if ratios:
            middle = statistics.median(np.inf if one is None else one for one in ratios)
            found[way] = {
                "ratios": ratios,
                "median": middle if np.isfinite(middle) else None,
            }
    return found


def medians(rows: Sequence[dict[str, Any]], way: str, key: str) -> list[list[float]]:
    """[labels, median, least, largest] over seeds, for labels at which every seed has a point."""
    curves = [row["curve"] for row in rows if row["way"] == way]
    errors_of_seeds = [{point["labels"]: point[key] for point in curve} for curve in curves]
    common = sorted(set.intersection(*(set(of_seed) for of_seed in errors_of_seeds)))
    found = []
    for labels in common:
        values = [of_seed[labels] for of_seed in errors_of_seeds]
        found.append([labels, statistics.median(values), min(values), max(values)])
    return found


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The medians of each way, and the labels that each way needs, over those of each other way."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    return {
        "points": "[labels, median, least, largest over seeds]",
        "medians": {way: {key: medians(rows, way, key) for key in NAMES} for way in ways},
        "labels over those of": {
            other: {key: beside(rows, other, key) for key in NAMES} for other in ways
        },
    }


def summarised(
    about: dict[str, Any], rows: Sequence[dict[str, Any]], out: Path | None
) -> dict[str, Any]:
    """`about` with the summary and the rows of the runs so far.

    out: JSON file to write it to, with a picture next to it; None writes nothing.
    """
    result = {**about, **summary(rows), "rows": rows}
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
        draw(rows, out.with_suffix(".png"))
    return result


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Medians as lines and the range over seeds as bands, one panel for forces and energies."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        for axes, (key, name) in zip(figure.subplots(1, 2), NAMES.items(), strict=True):
            for way, (colour, marker) in zip(ways, looks(), strict=False):
                found = np.array(medians(rows, way, key))
                labels = found[:, 0]
                middle, low, high = found[:, 1:].T * FACTORS[key]
                axes.plot(labels, middle, color=colour, marker=marker, label=way)
                axes.fill_between(labels, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.set_xscale("log")
            # the numbers of labels that were judged, instead of powers of ten
            axes.set_xticks(labels, [f"{number:g}" for number in labels])
            axes.minorticks_off()
            log_if_positive(axes)
            axes.set_xlabel("labels")
            axes.set_ylabel(name)
        handles = axes.get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=len(ways))
        path.write_bytes(figure_png(figure))
