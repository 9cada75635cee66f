"""The page of a loop: labels spent, errors on new labels before they were learned, radii."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...core.figures.style import COLOURS, STYLE, figure_png, log_if_positive, looks
from ...core.numbers import FORCE_UNIT, table_cell
from ...core.pages.page import Block, Bullets, Figures, Picture, Section, Table, Text, write_page
from .config import LearnConfig
from .pictures import Surprise, pictures


def write_report(
    path: Path,
    name: str,
    state: str,
    rounds: Sequence[dict[str, Any]],
    config: LearnConfig,
    surprises: Sequence[Surprise] = (),
    lost_heads: Sequence[str] = (),
) -> Path:
    """Write the page from the contents of round.json, and return its path.

    surprises: the labelled structures that had an error before they were learned. lost_heads: heads
    of other properties that the newest model lacks.
    """
    asked = rounds[-1]["labels"] if rounds else 0
    failed = sum(len(one["failures"]) for one in rounds)
    blocks: list[Block] = [
        Figures(
            [
                ("labels asked for", f"{asked} of {config.labels}"),
                ("of these failed", str(failed)),
                ("rounds", str(len(rounds))),
                ("simulated", f"{rounds[-1]['picoseconds']:.3g} ps" if rounds else "-"),
                ("from trigger to going on", _typical_wait(rounds)),
                ("ended", state),
            ]
        )
    ]
    sections = [
        Section("", blocks),
        Section("Errors before learning", _errors(rounds)),
        Section("The largest surprises", pictures(surprises)),
        Section("Radii over time", _radii(rounds, config)),
        Section("Rounds", [_rounds_table(rounds), *_strategies(rounds), *_heads_block(lost_heads)]),
    ]
    simulations = _simulations(rounds)
    if simulations:
        sections.append(Section("Simulations", [simulations]))
    reasons = _failures(rounds)
    if reasons:
        sections.append(Section("Labels that failed", [reasons]))
    return write_page(path, f"Learning on the way: {name}", sections, state=state)


def _errors(rounds: Sequence[dict[str, Any]]) -> list[Block]:
    """A picture of the errors of the forces on new labels, over the number of labels."""
    judged = [one for one in rounds if one["before"] is not None]
    if not judged:
        return [Text("No label has been judged yet: the first ones have nothing before them.")]
    labels = [one["labels"] for one in judged]
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for (key, words), (colour, marker) in zip(
            (
                ("force_rmse", "error of the forces, RMS"),
                ("label_rms", "the forces themselves, RMS"),
            ),
            looks(),
            strict=False,
        ):
            values = [one["before"][key] for one in judged]
            axes.plot(labels, values, color=colour, marker=marker, label=words)
        log_if_positive(axes)
        axes.set_xlabel("labels asked for")
        # one round alone would get ticks between two labels
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(f"component of a force ({FORCE_UNIT})")
        axes.legend()
        png = figure_png(figure)
    last = judged[-1]["before"]
    return [
        Text(
            "Each point is the error on the labels of a round by the model before it. They were "
            "chosen because they are new, so that errors elsewhere are smaller."
        ),
        Picture(
            f"error of the forces on new labels over {len(judged)} rounds; in the last "
            f"{last['force_rmse']:.3f} eV/A",
            png,
        ),
    ]


def _radii(rounds: Sequence[dict[str, Any]], config: LearnConfig) -> list[Block]:
    """A picture of the largest radius along each simulation."""
    explored = [one for one in rounds if one["radii"]]
    if not explored:
        return [Text("No simulation has run yet.")]
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for place, one in enumerate(explored):
            # early rounds are pale
            shade = 0.25 + 0.75 * (place + 1) / len(explored)
            for number, walk in enumerate(one["radii"]):
                radius = [np.nan if value is None else value for value in walk["radius"]]
                axes.plot(
                    walk["ps"],
                    radius,
                    color=COLOURS[place % len(COLOURS)],
                    alpha=shade,
                    marker="." if len(radius) == 1 else None,
                    label=f"round {one['round']}" if number == 0 else None,
                )
        if config.guard.force_radius is not None:
            axes.axhline(config.guard.force_radius, color="black", linestyle="--", linewidth=1)
        log_if_positive(axes)
        axes.set_xlabel("time of the simulation (ps)")
        axes.set_ylabel(f"largest radius of a force ({FORCE_UNIT})")
        if len(explored) <= len(COLOURS):
            axes.legend(fontsize=9, ncols=2)
        png = figure_png(figure)
    coverage = f"{config.guard.coverage:.0%}"
    return [
        Text(
            f"The largest {coverage} radius of a structure, along each simulation. It goes on in "
            "the next round where it was stopped, with the next model. The dashed line is the "
            "limit of the guard. Radii are those of structures left out of the refit: what they "
            "promise, they promise for structures like the labelled ones."
        ),
        Picture(f"largest radius along the simulations of {len(explored)} rounds", png),
    ]


def _rounds_table(rounds: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for one in rounds:
        before = one["before"] or {}
        stopped = f"{len(one['stopped'])} of {one['walks']}" if one["explored"] else "-"
        rows.append(
            [
                str(one["round"]),
                stopped,
                f"{one['picoseconds']:.3g}",
                str(one["asked"]),
                str(len(one["failures"])),
                table_cell(before.get("force_rmse")),
                table_cell(before.get("energy_mae_per_atom"), 1000),
                table_cell(before.get("covered"), 100),
                one["learned"]["strategy"] if one["learned"] is not None else "-",
                _seconds(one),
                _wait(one),
            ]
        )
    header = [
        "round",
        "simulations stopped",
        "simulated so far (ps)",
        "labels",
        "failed",
        f"force RMSE before ({FORCE_UNIT})",
        "energy MAE before (meV/atom)",
        "forces within their radius (%)",
        "learned by",
        "exploring, choosing, labelling, learning (s)",
        "from trigger to going on (s)",
    ]
    return Table("What each round did, and the errors on its labels before it", header, rows)


def _seconds(one: Mapping[str, Any]) -> str:
    """How long the steps of a round took."""
    steps = ("exploring", "choosing", "labelling", "learning")
    return ", ".join(f"{one[f'seconds_{step}']:.3g}" for step in steps)


def _wait(one: Mapping[str, Any]) -> str:
    """From the end of exploring to the next model; a dash where there is none."""
    seconds = one["seconds_to_next_model"]
    if seconds is None:
        return "-"
    # times are those since it went on: nobody knows how long the computer was off
    return f"{seconds:.3g}{', after an interruption' if one['interrupted'] else ''}"


def _typical_wait(rounds: Sequence[Mapping[str, Any]]) -> str:
    """The median over the rounds that began with a trigger and were not interrupted."""
    waits = [
        one["seconds_to_next_model"]
        for one in rounds
        if one["explored"] and one["seconds_to_next_model"] is not None and not one["interrupted"]
    ]
    return f"{np.median(waits):.3g} s (median)" if waits else "-"


def strategy_in_words(learned: Mapping[str, Any]) -> str:
    """Which strategy a round has learned by, and why; `learned` is the content of learned.json."""
    strategy = learned["strategy"]
    if learned["why"] is None:
        return f"learned by {strategy}"
    compared = learned["compared"]
    if compared is None:
        return f"learned by {strategy}, since the labels are too few for a training"
    parts = [f"learned by {strategy}, after a comparison because {learned['why']}"]
    errors = [
        f"{name} {1000 * own['force_mae']:.0f} meV/A and "
        f"{1000 * own['energy_mae_per_atom']:.1f} meV/atom"
        for name, own in compared.get("errors", {}).items()
    ]
    if errors:
        parts.append(f"on {compared['parts']} parts left out, {', '.join(errors)}")
    if "failed" in compared:
        parts.append(compared["failed"])
    return ": ".join(parts)


def _strategies(rounds: Sequence[dict[str, Any]]) -> list[Block]:
    """A line for each round whose strategy was a question."""
    texts = [
        f"Round {one['round']}: {strategy_in_words(one['learned'])}."
        for one in rounds
        if one["learned"] is not None and one["learned"]["why"] is not None
    ]
    if not texts:
        return []
    return [Text("The refit had stalled, and was compared with a training:"), Bullets(texts)]


def heads_in_words(lost: Sequence[str]) -> str:
    """Which heads the model has lost, and why."""
    return (
        f"without the heads {', '.join(lost)}: the network was trained, and with it the features "
        "that they read have changed; fit them again with `evenfield finetune head`"
    )


def _heads_block(lost: Sequence[str]) -> list[Block]:
    return [Text(f"The model is {heads_in_words(lost)}.")] if lost else []


def _simulations(rounds: Sequence[dict[str, Any]]) -> Table | None:
    """Where each simulation is after the last round; None before the first exploration."""
    explored = [one for one in rounds if one["explored"]]
    if not explored:
        return None
    rows = []
    for number, one in enumerate(explored[-1]["simulations"]):
        rows.append(
            [
                str(number),
                f"{one['structure']} ({one['formula']})",
                one["conditions"],
                f"{one['picoseconds']:.3g}",
                table_cell(one["volume_per_atom"]),
                one["stopped"] or "-",
            ]
        )
    header = [
        "simulation",
        "structure",
        "at",
        "simulated (ps)",
        "volume now (A^3/atom)",
        "stopped in the last round, because",
    ]
    caption = "Where each simulation is; without a pressure the cell is constant"
    return Table(caption, header, rows, words=True)


def _failures(rounds: Sequence[dict[str, Any]]) -> Table | None:
    """The labels that failed, with their reasons; None without any."""
    rows = [
        [name, reason, one["details"].get(name, "")]
        for one in rounds
        for name, reason in one["failures"].items()
    ]
    if not rows:
        return None
    return Table("None of them was learned from", ["label", "reason", "detail"], rows, words=True)
