"""Section of the report about few-shot fine-tuning: curve, structures saved, and tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...core.numbers import FORCE_UNIT, table_cell
from ...core.pages.page import Block, Section, Table, Text
from ...finetune.few_shot.curve_plot import draw_few_shot_curve
from ...finetune.few_shot.results import BASELINE, STRATEGY_LABELS, UNCHANGED, FewShotCurve
from .pictures import PictureFolder


def few_shot_section(path: Path | None, pictures: PictureFolder) -> Section:
    """Error against the number of structures of a new chemistry.

    path: fewshot.json. If None, the section says that the file was not given.
    """
    heading = "Few-shot fine-tuning"
    if path is None:
        return Section(heading, [Text("Left out: no fewshot.json was given.")])

    curve = FewShotCurve.read(path)
    figure = draw_few_shot_curve(curve)
    alt = f"Test errors on {curve.target} against the number of structures used, by strategy"
    blocks: list[Block] = [pictures.save(figure, "few-shot", alt)]

    # the baseline cannot be compared with itself, and the unchanged model learns nothing
    for strategy in curve.strategies:
        if strategy not in (BASELINE, UNCHANGED):
            blocks += _saving(curve, strategy)

    header, rows = curve.table("force_mae")
    caption = f"Force MAE on {curve.target} ({FORCE_UNIT}): median (range over the seeds)"
    blocks.append(Table(caption, header, rows))
    blocks.append(_all_errors(curve))
    return Section(heading, blocks)


def _saving(curve: FewShotCurve, strategy: str) -> list[Text]:
    """One sentence: how many times fewer structures a strategy needs than training from scratch."""
    baseline = curve.medians(BASELINE, "force_mae")
    if not baseline:
        return []

    # the goal is the error that training from scratch reaches with the most structures
    most = max(baseline)
    goal = (
        f"the force MAE of training from scratch on {most} structures "
        f"({table_cell(baseline[most])} {FORCE_UNIT})"
    )
    label = STRATEGY_LABELS.get(strategy, strategy)
    needed = curve.structures_needed(strategy, baseline[most], "force_mae")
    times = curve.times_fewer(strategy)

    if needed is None:
        return [Text(f"{label}: does not reach {goal}.")]
    if times is None:
        return [Text(f"{label}: reaches {goal} without any structure.")]
    return [Text(f"{label}: reaches {goal} with {needed:.3g} structures, {times:.3g} times fewer.")]


def _all_errors(curve: FewShotCurve) -> Table:
    """Medians over the seeds of all errors and of the training time."""
    rows = []
    for strategy in curve.strategies:
        force = curve.medians(strategy, "force_mae")
        energy = curve.medians(strategy, "energy_mae_per_atom")
        for size in curve.sizes:
            own = []
            for row in curve.rows:
                if row.strategy == strategy and row.num_structures == size:
                    own.append(row)
            # an unfinished curve lacks cells
            if not own:
                continue

            share = None
            if curve.force_rms and size in force:
                share = force[size] / curve.force_rms

            # rows without training have no time
            seconds = None
            times = [row.seconds for row in own if row.seconds is not None]
            if times:
                seconds = float(np.median(times))

            rows.append(
                [
                    STRATEGY_LABELS.get(strategy, strategy),
                    f"{size:,}",
                    str(len(own)),
                    table_cell(share, 100),
                    table_cell(energy.get(size), 1000),
                    table_cell(seconds),
                ]
            )
    header = [
        "strategy",
        "structures",
        "seeds",
        "MAE / RMS (%)",
        "energy MAE (meV/atom)",
        "time (s)",
    ]
    return Table("Relative errors, energies and times: medians", header, rows, folded=True)
