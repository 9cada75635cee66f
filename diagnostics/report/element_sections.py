"""Sections of the report on the periodic table: before and after reweighting, errors per element."""

from __future__ import annotations

from pathlib import Path

from .element_plots import element_errors, element_ratio, error_and_rarity, reweighting_heat_maps
from .page import Block, Section, Table, Text, cell, draw, file_stem
from .plot_style import FORCE_UNIT
from .run_files import ElementErrors, Evaluation, Run


def reweighting_section(pair: tuple[Run, Run] | None, out_dir: Path) -> Section:
    """The proof of reweighting: the same table and the same maps before and after."""
    heading = "Before and after reweighting"
    if pair is None:
        text = "Left out: it needs two runs, one without and one with importance weights."
        return Section(heading, [Text(text)])
    before, after = pair
    blocks: list[Block] = [*_doubts(before, after), _summary(before, after)]
    if element_ratio(before.evaluation, after.evaluation):
        figure = reweighting_heat_maps(
            before.evaluation, after.evaluation, (before.name, after.name)
        )
        alt = "Periodic tables of the force MAE per element before and after reweighting, and of their ratio"
        blocks.append(draw(figure, out_dir, "reweighting", alt))
    else:
        blocks.append(Text("The maps are left out: no element has force errors in both runs."))
    return Section(heading, blocks)


def _doubts(before: Run, after: Run) -> list[Block]:
    """What makes the comparison unfair, as warnings."""
    old, new = before.evaluation, after.evaluation
    doubts = []
    test_sets = [
        (e.split, e.num_structures, e.num_atoms, sorted(e.per_element)) for e in (old, new)
    ]
    if test_sets[0] != test_sets[1] or cell(old.force_rms) != cell(new.force_rms):
        doubts.append(
            "The two runs were evaluated on different structures, so their errors do not compare."
        )
    steps = [run.metrics.last_step for run in (before, after)]
    if steps[0] != steps[1]:
        doubts.append(
            f"The runs have {steps[0]:,} and {steps[1]:,} steps: this is not equal compute."
        )
    return [Text(doubt, warning=True) for doubt in doubts]


def _summary(before: Run, after: Run) -> Table:
    old, new = before.evaluation, after.evaluation
    rows = [
        _change(
            f"mean over elements ({FORCE_UNIT})",
            old.mean_over_elements_force_mae,
            new.mean_over_elements_force_mae,
        ),
        _change(
            f"worst element ({FORCE_UNIT})",
            old.worst_element_force_mae,
            new.worst_element_force_mae,
            notes=(old.worst_element, new.worst_element),
        ),
        _change(
            f"worst decile of elements ({FORCE_UNIT})",
            old.worst_decile_force_mae,
            new.worst_decile_force_mae,
        ),
        _change(f"all atoms ({FORCE_UNIT})", old.force_mae, new.force_mae),
        _change(
            "energy MAE (meV/atom)",
            _milli(old.energy_mae_per_atom),
            _milli(new.energy_mae_per_atom),
        ),
    ]
    ratio = element_ratio(old, new)
    if ratio:
        better = sum(value < 1 for value in ratio.values())
        rows.append(["elements with a smaller force MAE", "", f"{better} of {len(ratio)}", ""])
    cost = [run.metrics for run in (before, after)]
    rows.append(["cost: optimizer steps", *(f"{m.last_step:,}" for m in cost), ""])
    rows.append(_change("cost: structures seen", cost[0].structures_seen, cost[1].structures_seen))
    rows.append(_change("cost: time in steps (s)", cost[0].seconds, cost[1].seconds))
    return Table(
        f"Force MAE on the {new.split} split, and what it cost",
        ["", before.name, after.name, "after / before"],
        rows,
    )


def _change(
    label: str,
    old: float | None,
    new: float | None,
    notes: tuple[str | None, str | None] = (None, None),
) -> list[str]:
    cells = [
        cell(value) + (f" ({note})" if note else "")
        for value, note in zip((old, new), notes, strict=True)
    ]
    return [label, *cells, f"{new / old:.2f}" if old and new is not None else "-"]


def _milli(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def element_section(runs: list[Run], out_dir: Path, *, with_absolute: bool) -> Section:
    """Relative maps, error against rarity and the numbers; absolute maps unless another section has them."""
    blocks: list[Block] = []
    evaluations = {run.name: run.evaluation for run in runs}
    for kind in ("absolute", "relative") if with_absolute else ("relative",):
        for name, figure in element_errors(evaluations, relative=kind == "relative").items():
            alt = f"Periodic table of the {kind} force MAE of {name}"
            blocks.append(draw(figure, out_dir, f"elements-{kind}-{file_stem(name)}", alt))
    errors = [e for run in runs for e in run.evaluation.per_element.values()]
    if any(e.num_train_structures and e.force_mae for e in errors):
        figure = error_and_rarity(evaluations)
        alt = "Force MAE of each element against the number of training structures that contain it"
        blocks.append(draw(figure, out_dir, "error-and-rarity", alt))
    else:
        blocks.append(
            Text(
                "No element has both force errors and training structures: the picture of rarity is left out."
            )
        )
    blocks.append(_element_table(runs))
    return Section("Errors per element", blocks)


def _element_table(runs: list[Run]) -> Table:
    header = [
        "element",
        "training structures",
        "test structures",
        "test atoms",
        f"force RMS ({FORCE_UNIT})",
    ]
    for run in runs:
        header += [f"{run.name}: MAE ({FORCE_UNIT})", "MAE / RMS (%)", "energy MAE (meV/atom)"]
    rows = _element_rows([run.evaluation for run in runs])
    return Table("Numbers per element, rarest in training first", header, rows, folded=True)


def _element_rows(evaluations: list[Evaluation]) -> list[list[str]]:
    """Counts and RMS come from the first run that has the element."""
    first: dict[str, ElementErrors] = {}
    for evaluation in reversed(evaluations):
        first |= evaluation.per_element
    rows = []
    for symbol, errors in sorted(first.items(), key=lambda item: item[1].num_train_structures):
        counts = (errors.num_train_structures, errors.num_structures, errors.num_atoms)
        row = [symbol, *(f"{count:,}" for count in counts), cell(errors.force_rms)]
        for evaluation in evaluations:
            own = evaluation.per_element.get(symbol)
            row += (
                [
                    cell(own.force_mae),
                    cell(own.relative_force_mae, 100),
                    cell(own.energy_mae_per_atom, 1000),
                ]
                if own
                else ["-"] * 3
            )
        rows.append(row)
    return rows
