"""Are the stated uncertainties true? Compares radii and spreads with errors on labelled structures.

A 90 % radius must cover 90 % of the errors, in every group of elements. A spread is useful if large
errors have large spreads (rank correlation), if it identifies the worst atoms (AUROC), and if the
radii are small (sharpness). Coverage is not guaranteed for a chemistry that the level of theory was
not trained on. `--outside` measures how well data of such a chemistry can be recognised.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer
from ase.data import chemical_symbols

from ..check import CheckedModel, CheckError, CheckResult, Figure


if TYPE_CHECKING:
    from ...data_pipelines.structure import Structure
    from ...finetune.safety.uncertainty import Observed
    from ...model_zoo.uncertainty.coverage import CoverageRow
    from ...model_zoo.uncertainty.record import LevelUncertainty


COVERAGES = (0.9, 0.99)
# Coverages of the reliability diagram.
CURVE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
# Groups of elements with fewer labelled atoms are shown but not judged.
ENOUGH_ATOMS = 500
# Allowed difference between measured and stated coverage: TOLERANCE, or DEVIATIONS standard errors
# if these are larger. Standard errors count groups of structures as independent, because the atoms
# of one structure are not. Three of them are allowed, because many groups of elements are judged
# and some of them deviate by chance.
TOLERANCE = 0.01
DEVIATIONS = 3.0
RANK_CORRELATION = 0.6
# Share of atoms with the largest errors that count as the worst atoms.
WORST = 0.1
AUROC = 0.9
# Edges of the ranges of label size for which coverage is shown, eV/A.
SIZES = (0.0, 0.1, 0.5, 2.0, np.inf)
# Most points in the picture of errors against spreads.
MOST_POINTS = 6000


def check(
    model: CheckedModel,
    data: Annotated[Path, typer.Argument(help="folder of a converted data set with labels")],
    split: Annotated[
        Literal["train", "valid", "test"], typer.Option(help="which of its structures")
    ] = "test",
    outside: Annotated[
        list[Path] | None,
        typer.Option(help="data of another chemistry, which must be told from those of DATA"),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="folder for trust-reliability.png and trust-spread.png")
    ] = None,
    attach: Annotated[
        bool,
        typer.Option("--attach", help="put what was counted into the model's folder and its card"),
    ] = False,
) -> CheckResult:
    """Do radii cover the stated share of errors, and do spreads follow the errors?

    Judged on labelled structures that were used neither for training nor for calibration.

    Example: evenfield check trust runs/mine/model runs/data --pictures runs/trust
    """
    from ...data_pipelines.physics.residual import as_learned
    from ...finetune.safety.uncertainty import observe
    from ...model_zoo.uncertainty.record import REMEDY

    level = model.level
    own = model.loaded.uncertainties.get(level)
    if own is None:
        raise CheckError(
            f"{model.name} has no record of the uncertainty of {level} with these weights",
            remedy=REMEDY,
        )
    if own.calibrated_on == split:
        raise CheckError(
            f"the radii of {level} were calibrated on the {split} split",
            remedy="judge them on another split with --split",
        )
    if attach:
        _check_attachable(model, split)
    potential = model.loaded.potential
    physics = potential.config.physics
    structures, left_out = answerable(data, split, model)
    seen = observe(potential, own, list(as_learned(structures, data, physics)))
    figures, lines = judged(own, seen)
    lines = [*left_out, *lines]
    if attach:
        _attach(model, own, seen, data, left_out)
        lines.append(f"attached to {model.folder}")
    for folder in outside or []:
        foreign, left_out = _of_learned_elements(all_as_level(folder, level), model, folder)
        others = observe(potential, own, list(as_learned(foreign, folder, physics)))
        more_figures, more_lines = told_apart(own, seen, others, folder.name)
        figures += more_figures
        lines += [*(f"{folder.name}: {line}" for line in left_out), *more_lines]

    drawn = {
        "trust-reliability.png": _reliability(own, seen),
        "trust-spread.png": _errors_and_spreads(own, seen),
    }
    result = CheckResult(figures, lines, pictures=drawn)
    if pictures is not None:
        result.write_pictures(pictures)
    return result


def judged(own: LevelUncertainty, seen: Observed) -> tuple[list[Figure], list[str]]:
    """Figures and lines on coverage, sharpness and rank correlation.

    own: the record of uncertainty of the level of theory. seen: predictions and errors of labelled
    structures. Raises CheckError if no structure has forces.
    """
    from scipy.stats import spearmanr

    from ...model_zoo.uncertainty.coverage import UNITS

    labelled = np.isfinite(seen.error)
    if not labelled.any():
        raise CheckError("no structure has forces", remedy="name data with forces")
    error = seen.error[labelled]
    names = seen.atom_groups[labelled]
    inside = seen.inside[labelled]

    rows = coverage_rows(own, seen)
    lines = [
        f"{len(error)} atoms of {len(np.unique(names))} groups of structures; radii calibrated on "
        f"the {own.calibrated_on} split; {100 * inside.mean():.1f} % of the atoms are inside"
    ]
    figures = [Figure("atoms", len(error), "", at_least=1)]
    for index, coverage in enumerate(COVERAGES):
        more_figures, more_lines = _of_coverage(own, rows, index, coverage)
        figures += more_figures
        lines += more_lines

    is_worst = error >= np.quantile(error, 1 - WORST)
    for name, values in measures(own, seen, labelled).items():
        correlation = float(spearmanr(values, error).statistic)
        of_inside = float(spearmanr(values[inside], error[inside]).statistic)
        auroc = area_under_curve(values, is_worst)
        lines.append(
            f"{name}: rank correlation {correlation:.3f} with the error, {of_inside:.3f} inside; "
            f"AUROC {auroc:.3f} for the worst {100 * WORST:g} % of the atoms"
        )
        limit = RANK_CORRELATION if name == "spread" else None
        figures += [
            Figure(f"rank correlation of {name}, inside", of_inside, "", at_least=limit),
            Figure(f"AUROC of {name} for the worst {100 * WORST:g} %", auroc, ""),
        ]

    for row in rows:
        if row.what == "forces":
            continue
        for ball in row.balls:
            if ball.share is None or ball.median_radius is None:
                continue
            unit = UNITS[row.what]
            lines.append(
                f"{100 * ball.coverage:g} % of {row.what}: covers {100 * ball.share:.1f} % of "
                f"{ball.number} structures, median radius {ball.median_radius:.4g} {unit}"
            )
            name = f"coverage of {100 * ball.coverage:g} % of {row.what}"
            figures.append(Figure(name, 100 * ball.share, "%"))
    more_figures, more_lines = _order_of_stress(own, seen)
    return figures + more_figures, lines + more_lines


def _order_of_stress(own: LevelUncertainty, seen: Observed) -> tuple[list[Figure], list[str]]:
    """Rank correlations of the stress error with its spread and the ingredients of the spread."""
    from scipy.stats import spearmanr

    from ...model_zoo.uncertainty.record import STRESS_INGREDIENTS

    if own.stress is None:
        return [], []
    spread = own.stress.spread(seen.stress_ingredients)
    labelled = np.isfinite(seen.stress_error) & np.isfinite(spread)
    if labelled.sum() < 2:
        return [], []
    found = {"spread": spread[labelled]}
    found |= dict(zip(STRESS_INGREDIENTS, seen.stress_ingredients[:, labelled], strict=True))
    error = seen.stress_error[labelled]
    order = {name: float(spearmanr(values, error).statistic) for name, values in found.items()}
    figures = [
        Figure(f"rank correlation of {name}, stress", value, "") for name, value in order.items()
    ]
    listed = ", ".join(f"{name} {value:.3f}" for name, value in order.items())
    return figures, [f"rank correlations with the error of the stress: {listed}"]


def _of_coverage(
    own: LevelUncertainty, rows: list[CoverageRow], index: int, coverage: float
) -> tuple[list[Figure], list[str]]:
    """Figures and lines about force radii with one coverage; `index` is its place in COVERAGES."""
    figures = []
    lines = []
    percent = f"{100 * coverage:g} %"
    places = {name: place for place, name in enumerate(_names(own))}
    worst = 0.0
    of_forces = [row for row in rows if row.what == "forces"]
    for row in of_forces:
        ball = row.balls[index]
        if ball.share is None or ball.median_radius is None:
            lines.append(f"{percent} ball, {row.name}: too few scores for a radius")
        elif row.by == "element":
            deviation = np.nan if ball.deviation is None else ball.deviation
            # widened, because the radii were also calibrated on a finite number of structures
            calibrated_on = own.force_scores[places[row.name]].structures
            deviation *= (1 + row.groups / max(calibrated_on, 1)) ** 0.5
            lines.append(
                f"{percent} ball, {row.name}: covers {100 * ball.share:.2f} +- "
                f"{100 * deviation:.2f} % of {ball.number} atoms, median radius "
                f"{ball.median_radius:.3f} eV/A"
            )
            if ball.number >= ENOUGH_ATOMS:
                excess = abs(ball.share - coverage) - max(TOLERANCE, DEVIATIONS * deviation)
                worst = max(worst, excess)
                figures.append(Figure(f"coverage of {percent}, {row.name}", 100 * ball.share, "%"))
        elif row.by == "size":
            lines.append(
                f"{percent} ball, labels of {row.name} eV/A: covers {100 * ball.share:.2f} % of "
                f"{ball.number} atoms"
            )
        else:
            figures += [
                Figure(f"coverage of {percent}, all atoms", 100 * ball.share, "%"),
                Figure(f"median radius of {percent}", ball.median_radius, "eV/A"),
            ]
    figures.append(
        Figure(
            f"coverage of {percent} further from it than tolerance, worst group",
            100 * worst,
            "%",
            limit=0.0,
        )
    )
    return figures, lines


def coverage_rows(own: LevelUncertainty, seen: Observed) -> list[CoverageRow]:
    """Counts of covered errors: forces by element group and by label size, energies, stress."""
    labelled = np.isfinite(seen.error)
    error = seen.error[labelled]
    names = seen.atom_groups[labelled]
    numbers = seen.numbers[labelled]
    sizes = seen.label_size[labelled]
    place = own.group_of(numbers)
    spread = own.spread(seen.ingredients[:, labelled], numbers)
    radii = [own.force_quantiles(coverage)[place] * spread for coverage in COVERAGES]

    chosen: list[tuple[Literal["all", "element", "size"], str, np.ndarray]] = [
        ("all", "all atoms", np.ones(len(error), bool))
    ]
    for index, name in enumerate(_names(own)):
        chosen.append(("element", name, place == index))
    for low, high in pairwise(SIZES):
        chosen.append(("size", f"{low:g} to {high:g}", (sizes >= low) & (sizes < high)))
    rows = [
        _row("forces", by, name, error[which], [radius[which] for radius in radii], names[which])
        for by, name, which in chosen
        if which.any()
    ]

    # per atom, like all energy errors
    per_atom = np.bincount(seen.structure_index, minlength=len(seen.groups))
    of_structures: list[tuple[Literal["energies", "stress"], np.ndarray, list[np.ndarray]]] = [
        (
            "energies",
            np.abs(seen.energy_error) / per_atom,
            [
                own.energy_scores.quantile(coverage) * seen.energy_deviation / per_atom
                for coverage in COVERAGES
            ],
        )
    ]
    if own.stress is not None:
        size = own.stress.spread(seen.stress_ingredients)
        quantiles = [own.stress.scores.quantile(coverage) for coverage in COVERAGES]
        of_structures.append(("stress", seen.stress_error, [one * size for one in quantiles]))
    for what, errors, radii in of_structures:
        which = np.isfinite(errors)
        if which.any():
            own_radii = [radius[which] for radius in radii]
            name = "all structures"
            rows.append(_row(what, "all", name, errors[which], own_radii, seen.groups[which]))
    return rows


def _row(
    what: Literal["forces", "energies", "stress"],
    by: Literal["all", "element", "size"],
    name: str,
    error: np.ndarray,
    radii: list[np.ndarray],
    names: np.ndarray,
) -> CoverageRow:
    """Count how many errors (n,) are within the radii (n,) of each of COVERAGES.

    names: (n,) the group of structures of each error.
    """
    from ...model_zoo.uncertainty.coverage import BallCounts, CoverageRow

    balls = []
    for coverage, radius in zip(COVERAGES, radii, strict=True):
        # leave out infinite radii, which cover every error and say nothing
        finite = np.isfinite(radius)
        covered = error[finite] <= radius[finite]
        deviation = _standard_error(covered, names[finite]) if finite.any() else np.nan
        balls.append(
            BallCounts(
                coverage=coverage,
                number=int(finite.sum()),
                covered=int(covered.sum()),
                deviation=deviation if np.isfinite(deviation) else None,
                median_radius=float(np.median(radius[finite])) if finite.any() else None,
            )
        )
    return CoverageRow(
        what=what,
        by=by,
        name=name,
        number=len(error),
        groups=len(np.unique(names)),
        balls=balls,
    )


def _check_attachable(model: CheckedModel, split: str) -> None:
    """Raise CheckError unless the split is `test` and the model is in a local folder."""
    from ...model_zoo.package.folder import refuse_files_of_others
    from ...model_zoo.uncertainty.coverage import TRUST

    if model.folder is None:
        raise CheckError(
            f"--attach: {model.name} is not a model folder",
            remedy="name the folder of the model, or leave out --attach",
        )
    if split != "test":
        raise CheckError(
            f"--attach: the {split} split is not apart from the training",
            remedy="judge the test split, or leave out --attach",
        )
    refuse_files_of_others(model.folder, [TRUST])


def _attach(
    model: CheckedModel, own: LevelUncertainty, seen: Observed, data: Path, left_out: list[str]
) -> None:
    """Put the counts into the folder of the model."""
    from ...data_pipelines.store.shards import read_info
    from ...model_zoo.package.folder import attach, read_model_folder
    from ...model_zoo.uncertainty.coverage import LevelCoverage, with_coverage
    from ...model_zoo.uncertainty.record import level_digest

    assert model.folder is not None
    source = read_info(data)["source"]
    counted = LevelCoverage(
        radii=level_digest(own),
        data=source["file"],
        sha256=source["sha256"],
        split="test",
        calibrated_on=own.calibrated_on,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        left_out=left_out,
        rows=coverage_rows(own, seen),
    )
    # the counts belong to the weights that were checked; the folder may hold others by now
    folder = read_model_folder(model.folder)
    attach(model.folder, with_coverage(model.loaded.potential, folder.attachments, own, counted))


def measures(own: LevelUncertainty, seen: Observed, chosen: np.ndarray) -> Mapping[str, np.ndarray]:
    """Name of each measure -> its values for the chosen atoms; larger values mean larger errors."""
    ingredients = seen.ingredients[:, chosen]
    return {
        "spread": own.spread(ingredients, seen.numbers[chosen]),
        "force": ingredients[0],
        "committee": seen.disagreement[chosen],
        "energy deviation of the atom": ingredients[2],
        "distance": ingredients[3],
    }


def told_apart(
    own: LevelUncertainty, seen: Observed, others: Observed, name: str
) -> tuple[list[Figure], list[str]]:
    """Figures and lines on how well each measure tells atoms of another chemistry from `seen`.

    others: predictions for the other chemistry. name: of these data, for texts.
    """
    figures = []
    lines = [
        f"{name}: {100 * others.inside.mean():.1f} % of {len(others.numbers)} atoms are inside, "
        f"{100 * seen.inside.mean():.1f} % of the others"
    ]
    everything = np.ones(len(seen.numbers), bool), np.ones(len(others.numbers), bool)
    of_seen = measures(own, seen, everything[0])
    for measure, values in measures(own, others, everything[1]).items():
        both = np.concatenate([of_seen[measure], values])
        is_other = np.arange(len(both)) >= len(of_seen[measure])
        auroc = area_under_curve(both, is_other)
        lines.append(f"{name}: AUROC {auroc:.3f} of {measure}")
        limit = AUROC if measure == "distance" else None
        figures.append(Figure(f"AUROC of {measure}, {name}", auroc, "", at_least=limit))
    error = others.error
    labelled = np.isfinite(error)
    if labelled.any():
        spread = own.spread(others.ingredients, others.numbers)
        for coverage in COVERAGES:
            radius = own.force_quantiles(coverage)[own.group_of(others.numbers)] * spread
            covered = (error <= radius)[labelled].mean()
            lines.append(f"{name}: the {100 * coverage:g} % ball covers {100 * covered:.1f} %")
            figures.append(Figure(f"coverage of {100 * coverage:g} %, {name}", 100 * covered, "%"))
    return figures, lines


def area_under_curve(values: np.ndarray, positive: np.ndarray) -> float:
    """AUROC: the probability that a positive has a larger value than a negative; ties count half.

    NaN if there are no positives or no negatives.
    """
    from scipy.stats import mannwhitneyu

    if positive.all() or not positive.any():
        return float("nan")
    pairs = positive.sum() * (~positive).sum()
    return float(mannwhitneyu(values[positive], values[~positive]).statistic / pairs)


def _standard_error(covered: np.ndarray, names: np.ndarray) -> float:
    """Standard error of a coverage over groups of structures, by the delta method for a ratio."""
    _, place = np.unique(names, return_inverse=True)
    residuals = np.bincount(place, covered - covered.mean())
    number = len(residuals)
    if number < 2:
        return float("nan")
    return float(np.sqrt(number / (number - 1) * np.square(residuals).sum()) / len(covered))


def _names(own: LevelUncertainty) -> list[str]:
    """The name of each group of elements."""
    symbols = [" ".join(chemical_symbols[z] for z in elements) for elements in own.groups[:-1]]
    return [*symbols, "all others" if symbols else "all elements"]


def structures_of(data: Path, split: str, level: str) -> list[Structure]:
    """All structures of a split at a level of theory. Raises CheckError if there are none."""
    from ...data_pipelines.store.blocks import iter_structures

    chosen = [one for one in iter_structures(data, split) if one.level_of_theory == level]
    if not chosen:
        levels = sorted({one.level_of_theory for one in iter_structures(data, split)})
        there = f", only at {', '.join(levels)}" if levels else ""
        raise CheckError(
            f"has no structure of the {split} split at {level}{there}",
            file=data,
            remedy="name other data, or another split with --split",
        )
    return chosen


def answerable(data: Path, split: str, model: CheckedModel) -> tuple[list[Structure], list[str]]:
    """Structures of a split with known elements only, and lines about the structures left out.

    Raises CheckError if no structure is left.
    """
    return _of_learned_elements(structures_of(data, split, model.level), model, data)


def _of_learned_elements(
    structures: list[Structure], model: CheckedModel, data: Path
) -> tuple[list[Structure], list[str]]:
    """Structures whose elements the level of theory has learned, and lines about the others.

    Other elements would prove nothing: their radii are infinite and cover every error, and they are
    trivially recognised. Raises CheckError if no structure is left.
    """
    from ...model_zoo.evaluation.coverage import Coverage

    coverage = Coverage({model.level: model.symbols})
    found = list(coverage.answerable(structures))
    if not found:
        raise CheckError(
            f"has no structure that the model answers for ({'; '.join(coverage.left_out)})",
            file=data,
            remedy="name data of the elements that the level of theory has learned",
        )
    return found, [f"left out: {sentence}" for sentence in coverage.left_out]


def all_as_level(data: Path, level: str) -> list[Structure]:
    """All structures of a data set, assigned to one level of theory.

    Structures of another level lose their labels, which have another zero of energy and other
    forces.
    """
    from dataclasses import replace

    from ...data_pipelines.store.blocks import iter_structures
    from ...data_pipelines.store.shards import read_info
    from ...data_pipelines.structure import SPLITS

    counts = read_info(data)["num_structures"]
    structures = []
    for split in SPLITS:
        if not counts[split]:
            continue
        for structure in iter_structures(data, split):
            if structure.level_of_theory != level:
                structure = replace(structure, level_of_theory=level, labels={})
            structures.append(structure)
    return structures


def _reliability(own: LevelUncertainty, seen: Observed) -> bytes:
    """PNG of measured against stated coverage, for each group of elements with enough atoms."""
    from ..sanity.plots import curves_png

    labelled = np.isfinite(seen.error)
    numbers = seen.numbers[labelled]
    score = seen.error[labelled] / own.spread(seen.ingredients[:, labelled], numbers)
    place = own.group_of(numbers)
    stated = 100 * np.array(CURVE)
    curves = {"stated": (stated, stated)}
    for index, name in enumerate(_names(own)):
        chosen = place == index
        if chosen.sum() < ENOUGH_ATOMS:
            continue
        quantiles = [own.force_scores[index].quantile(coverage) for coverage in CURVE]
        covered = [100 * (score[chosen] <= quantile).mean() for quantile in quantiles]
        curves[name] = (stated, np.array(covered))
    return curves_png(f"Radii of forces, {own.level}", "stated coverage (%)", "covered (%)", curves)


def _errors_and_spreads(own: LevelUncertainty, seen: Observed) -> bytes:
    """PNG of errors against spreads, with one point for each atom."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Drawing

    from ...core.figures.style import COLOURS, STYLE, figure_png, plain_log_ticks

    labelled = np.isfinite(seen.error)
    error = seen.error[labelled]
    spread = own.spread(seen.ingredients[:, labelled], seen.numbers[labelled])
    inside = seen.inside[labelled]
    shown = np.random.default_rng(0).permutation(len(error))[:MOST_POINTS]
    order = np.argsort(spread)
    with rc_context(STYLE):
        drawing = Drawing(figsize=(7, 5), layout="constrained")
        axes = drawing.add_subplot()
        for name, colour, chosen in (
            ("inside", COLOURS[0], shown[inside[shown]]),
            ("outside", COLOURS[1], shown[~inside[shown]]),
        ):
            axes.scatter(
                spread[chosen], error[chosen], s=5, color=colour, alpha=0.35, label=name, lw=0
            )
        # twenty bins with the same number of atoms each
        bins = np.array_split(order, 20)
        middle = [np.median(spread[chosen]) for chosen in bins if len(chosen)]
        typical = [np.quantile(error[chosen], 0.683) for chosen in bins if len(chosen)]
        axes.plot(middle, typical, color="black", marker="o", label="covers 68 % of a bin")
        ends = np.array([spread.min(), spread.max()])
        axes.plot(ends, 1.084 * ends, color="black", linestyle="--", label="if the spread is right")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(float(np.quantile(error, 0.005)), 1e-4))
        plain_log_ticks(axes.xaxis)
        plain_log_ticks(axes.yaxis)
        axes.set_xlabel("predicted spread (eV/A)")
        axes.set_ylabel("error of the force (eV/A)")
        axes.set_title(f"Errors and spreads, {own.level}")
        axes.legend(fontsize=9)
        return figure_png(drawing)
