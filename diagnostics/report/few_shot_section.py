"""Section of the report on few-shot fine-tuning: curve, tables, structures saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .page import Block, Section, Table, Text, cell, draw
from .plot_style import FORCE_UNIT
from .plots import STRATEGY_LABELS, few_shot_curve
from .run_files import FewShot, FewShotRow, read_few_shot


BASELINE = "scratch"


def few_shot_section(path: Path | None, out_dir: Path) -> Section:
    """Error against the number of structures of a new chemistry, if there is a fewshot.json."""
    heading = "Few-shot fine-tuning"
    if path is None:
        return Section(heading, [Text("Left out: no fewshot.json was given.")])
    few_shot = read_few_shot(Path(path))
    alt = f"Test errors on {few_shot.target} against the number of structures used, by strategy"
    blocks: list[Block] = [draw(few_shot_curve(few_shot), out_dir, "few-shot", alt)]
    blocks += [Text(text) for s in few_shot.strategies if (text := _saving(few_shot, s))]
    header = ["structures", *(STRATEGY_LABELS.get(s, s) for s in few_shot.strategies)]
    caption = (
        f"Force MAE on {few_shot.target} ({FORCE_UNIT}): median (smallest to largest over seeds)"
    )
    blocks.append(Table(caption, header, _force_rows(few_shot)))
    header = [
        "strategy",
        "structures",
        "seeds",
        "MAE / RMS (%)",
        "energy MAE (meV/atom)",
        "time (s)",
    ]
    caption = "Relative errors, energies and times: medians"
    return Section(heading, [*blocks, Table(caption, header, _all_rows(few_shot), folded=True)])


def structures_needed(few_shot: FewShot, strategy: str, force_mae: float) -> int | None:
    """Smallest number of structures at which the median force MAE (eV/A) is not above force_mae, or None."""
    medians = _medians(few_shot, strategy)
    return next((count for count, error in sorted(medians.items()) if error <= force_mae), None)


def _saving(few_shot: FewShot, strategy: str) -> str | None:
    """How many structures a strategy needs for the error that training from scratch reaches with the most."""
    baseline = _medians(few_shot, BASELINE)
    if strategy in (BASELINE, "pretrained") or not baseline:
        return None
    most = max(baseline)
    label = STRATEGY_LABELS.get(strategy, strategy)
    goal = f"the force MAE of training from scratch on {most} structures ({cell(baseline[most])} {FORCE_UNIT})"
    needed = structures_needed(few_shot, strategy, baseline[most])
    if needed is None:
        return f"{label}: does not reach {goal}."
    return f"{label}: reaches {goal} with {needed}" + (
        f", {most / needed:.3g} times fewer." if needed else "."
    )


def _medians(few_shot: FewShot, strategy: str) -> dict[int, float]:
    cells = _cells(few_shot)
    return {
        count: _median(rows, "force_mae")
        for (name, count), rows in cells.items()
        if name == strategy
    }


def _cells(few_shot: FewShot) -> dict[tuple[str, int], list[FewShotRow]]:
    """The seeds of each strategy and number of structures."""
    cells: dict[tuple[str, int], list[FewShotRow]] = {}
    for row in few_shot.rows:
        cells.setdefault((row.strategy, row.num_structures), []).append(row)
    return cells


def _median(rows: list[FewShotRow], field: str) -> float:
    return float(np.median([getattr(row, field) for row in rows]))


def _force_rows(few_shot: FewShot) -> list[list[str]]:
    cells = _cells(few_shot)
    rows = []
    for count in sorted({row.num_structures for row in few_shot.rows}):
        row = [f"{count:,}"]
        for strategy in few_shot.strategies:
            errors = [r.force_mae for r in cells.get((strategy, count), [])]
            spread = f" ({cell(min(errors))} to {cell(max(errors))})" if len(errors) > 1 else ""
            row.append(cell(float(np.median(errors))) + spread if errors else "-")
        rows.append(row)
    return rows


def _all_rows(few_shot: FewShot) -> list[list[str]]:
    return [
        [
            STRATEGY_LABELS.get(strategy, strategy),
            f"{count:,}",
            str(len(rows)),
            cell(_median(rows, "force_mae") / few_shot.force_rms, 100)
            if few_shot.force_rms
            else "-",
            cell(_median(rows, "energy_mae_per_atom"), 1000),
            cell(_median(rows, "seconds")),
        ]
        for (strategy, count), rows in _cells(few_shot).items()
    ]
