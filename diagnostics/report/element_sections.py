"""Sections of the report on elements: rare ones before and after, and errors by element."""

from __future__ import annotations

from ...core.numbers import FORCE_UNIT, interval_cell, table_cell
from ...core.pages.page import Block, Section, Table, Text, file_stem
from ...model_zoo.evaluation.evenness import evenness, evenness_change
from ...model_zoo.evaluation.summary import ElementErrors, ErrorSummary
from .element_plots import element_maps, element_ratio, error_and_rarity, reweighting_maps
from .pictures import PictureFolder
from .run_files import Run


def reweighting_section(pair: tuple[Run, Run] | None, pictures: PictureFolder) -> Section:
    """What was done for rare elements: the same table and the same maps before and after."""
    heading = "Rare elements, before and after"
    if pair is None:
        text = "Left out: it needs two runs, one without and one with help for rare elements."
        return Section(heading, [Text(text)])

    before, after = pair
    blocks: list[Block] = [*_doubts(before, after), _comparison(before, after)]
    # runs on different elements leave nothing to draw
    if element_ratio(before.evaluation, after.evaluation):
        figure = reweighting_maps(before.evaluation, after.evaluation, (before.name, after.name))
        alt = (
            "Periodic tables of the force MAE of each element before and after, and of their ratio"
        )
        blocks.append(pictures.save(figure, "reweighting", alt))
    else:
        blocks.append(Text("The maps are left out: no element has force errors in both runs."))
    return Section(heading, blocks)


def _doubts(before: Run, after: Run) -> list[Block]:
    """What makes the comparison unfair, as warnings."""
    doubts = []
    if _test_set(before.evaluation) != _test_set(after.evaluation):
        doubts.append(
            "The two runs were evaluated on different structures, so their errors do not compare."
        )

    # help for rare elements must not win by training longer
    old_steps = before.metrics.last_step
    new_steps = after.metrics.last_step
    if old_steps != new_steps:
        doubts.append(
            f"The runs have {old_steps:,} and {new_steps:,} steps: this is not equal compute."
        )
    return [Text(doubt, style="warning") for doubt in doubts]


def _test_set(evaluation: ErrorSummary) -> tuple[object, ...]:
    """What equal test structures have in common, as far as a summary shows it."""
    return (
        evaluation.split,
        evaluation.num_structures,
        evaluation.num_atoms,
        sorted(evaluation.per_element),
        # as text: the last digits depend on the order of summation
        table_cell(evaluation.force_rms),
    )


def _comparison(before: Run, after: Run) -> Table:
    old = before.evaluation
    new = after.evaluation
    worst_ratio = _ratio(old.worst_element_force_mae, new.worst_element_force_mae)
    rows = [
        *_evenness_rows(old, new),
        _change(
            f"mean over elements ({FORCE_UNIT})",
            old.mean_over_elements_force_mae,
            new.mean_over_elements_force_mae,
        ),
        [f"worst element ({FORCE_UNIT})", _worst_element(old), _worst_element(new), worst_ratio],
        _change(f"all atoms ({FORCE_UNIT})", old.force_mae, new.force_mae),
        _change(
            "energy MAE (meV/atom)", old.energy_mae_per_atom, new.energy_mae_per_atom, factor=1000
        ),
    ]

    ratio = element_ratio(old, new)
    if ratio:
        better = sum(value < 1 for value in ratio.values())
        rows.append(["elements with a smaller force MAE", "", f"{better} of {len(ratio)}", ""])

    # a better model that cost more would be no success of the method
    old_cost = before.metrics
    new_cost = after.metrics
    steps = [f"{old_cost.last_step:,}", f"{new_cost.last_step:,}"]
    rows.append(["cost: optimizer steps", *steps, ""])
    rows.append(
        _change("cost: structures seen", old_cost.structures_seen, new_cost.structures_seen)
    )
    rows.append(_change("cost: time in steps (s)", old_cost.seconds, new_cost.seconds))
    return Table(
        f"Errors on the {new.split} split, and what they cost",
        ["", before.name, after.name, "after / before [90 % interval]"],
        rows,
    )


def _evenness_rows(old: ErrorSummary, new: ErrorSummary) -> list[list[str]]:
    """Rare, middle and common elements: relative errors, and the change element by element."""
    groups_before = evenness(old).groups
    groups_after = evenness(new).groups
    changes = evenness_change(old, new).groups
    rows = []
    for name, group in groups_before.items():
        low, high = group.num_train_structures
        title = f"{name} third, {low:,} to {high:,} training structures: force MAE / RMS (%)"
        after = groups_after.get(name)
        rows.append(
            [
                title,
                table_cell(group.relative_force_mae.value, 100),
                table_cell(after.relative_force_mae.value, 100) if after else "-",
                str(changes[name]) if name in changes else "-",
            ]
        )
    return rows


def _worst_element(evaluation: ErrorSummary) -> str:
    error = table_cell(evaluation.worst_element_force_mae)
    if not evaluation.worst_element:
        return error
    return f"{error} ({evaluation.worst_element})"


def _change(label: str, old: float | None, new: float | None, factor: float = 1.0) -> list[str]:
    return [label, table_cell(old, factor), table_cell(new, factor), _ratio(old, new)]


def _ratio(old: float | None, new: float | None) -> str:
    # also without a number where the old error is exactly zero
    if not old or new is None:
        return "-"
    return f"{new / old:.2f}"


def element_section(runs: list[Run], pictures: PictureFolder, *, with_absolute: bool) -> Section:
    """Relative maps, error against rarity, and the numbers.

    with_absolute: also maps in eV/A, unless another section has them.
    """
    blocks: list[Block] = []
    evaluations = {run.name: run.evaluation for run in runs}
    kinds = ["absolute", "relative"] if with_absolute else ["relative"]
    for kind in kinds:
        figures = element_maps(evaluations, relative=kind == "relative")
        for name, figure in figures.items():
            alt = f"Periodic table of the {kind} force MAE of {name}"
            file_name = f"elements-{kind}-{file_stem(name)}"
            blocks.append(pictures.save(figure, file_name, alt))

    if any(_has_rarity(evaluation) for evaluation in evaluations.values()):
        alt = "Force MAE of each element against the number of training structures with it"
        figure = error_and_rarity(evaluations)
        blocks.append(pictures.save(figure, "error-and-rarity", alt))
    else:
        blocks.append(
            Text(
                "The picture of rarity is left out: no element has both force errors and training "
                "structures."
            )
        )
    blocks.append(_element_table(runs))
    return Section("Errors by element", blocks)


def _has_rarity(evaluation: ErrorSummary) -> bool:
    for errors in evaluation.per_element.values():
        if errors.num_train_structures and errors.force_mae:
            return True
    return False


def _element_table(runs: list[Run]) -> Table:
    header = [
        "element",
        "training structures",
        "test structures",
        "test atoms",
        f"force RMS ({FORCE_UNIT})",
    ]
    for run in runs:
        header += [
            f"{run.name}: MAE ({FORCE_UNIT})",
            "MAE / RMS (%)",
            "90 % interval",
            "energy MAE (meV/atom)",
        ]
    rows = _element_rows([run.evaluation for run in runs])
    return Table("Numbers by element, the rarest in training first", header, rows, folded=True)


def _element_rows(evaluations: list[ErrorSummary]) -> list[list[str]]:
    # counts and RMS are properties of the test set, so they come from the first run that has the
    # element
    first: dict[str, ElementErrors] = {}
    for evaluation in reversed(evaluations):
        first |= evaluation.per_element
    rarest_first = sorted(first, key=lambda name: first[name].num_train_structures)

    rows = []
    for symbol in rarest_first:
        errors = first[symbol]
        row = [
            symbol,
            f"{errors.num_train_structures:,}",
            f"{errors.num_structures:,}",
            f"{errors.num_atoms:,}",
            table_cell(errors.force_rms),
        ]
        for evaluation in evaluations:
            row += _element_cells(evaluation.per_element.get(symbol))
        rows.append(row)
    return rows


def _element_cells(errors: ElementErrors | None) -> list[str]:
    # a run may lack an element that another was tested on
    if errors is None:
        return ["-", "-", "-", "-"]
    return [
        table_cell(errors.force_mae),
        table_cell(errors.relative_force_mae, 100),
        interval_cell(errors.relative_force_interval, 100),
        table_cell(errors.energy_mae_per_atom, 1000),
    ]
