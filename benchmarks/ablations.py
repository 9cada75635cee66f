"""What each part of the backbone gives and costs: training runs with one part changed.

    python benchmarks/ablations.py OUT DATA [--steps 600] [--seeds 0] [--only NAME ...]

DATA is a converted set with a test split. Every run is the default recipe on one thread; its errors
on the test split are at equal steps, next to the processor time of a step, so that a part can be
weighed. Writes OUT.json, which is taken up when it is there, and OUT.png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from equal_seconds import taken_up
from evenfield_trainer import train
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from evenfield.core.figures.style import STYLE
from evenfield.core.settings import load_settings
from evenfield.data_pipelines.stream.config import StreamConfig
from evenfield.model_zoo.network.gaunt import layer
from evenfield.model_zoo.network.gaunt.config import GauntConfig
from evenfield.pretrain.config import PretrainConfig


VARIATIONS = [
    "default",
    *(f"channels={n}" for n in (16, 64)),
    *(f"l_max={n}" for n in (1, 2, 4)),
    *(f"l_hidden={n}" for n in (0, 2)),
    *(f"num_layers={n}" for n in (1, 3)),
    *(f"correlation={n}" for n in (1, 2, 4)),
    *(f"radial_hidden={n}" for n in (16, 64)),
    *(f"num_basis={n}" for n in (5, 12)),
    *(f"readout_size={n}" for n in (16, 256)),
    *(f"cutoff={n}" for n in (4.0, 6.0)),
    "repulsion=false",
    "angular_factors=true",
    *(f"optimizer.learning_rate={rate}" for rate in (0.002, 0.008)),
    *(f"optimizer.name=adamw optimizer.learning_rate={rate}" for rate in (0.002, 0.004)),
    "no bound on the message",
]


@contextmanager
def varied(name: str) -> Iterator[list[str]]:
    """The settings of a variation; what is no setting is taken out of the code for the while."""
    if name == "no bound on the message":
        with patch.object(layer, "soft_norm", lambda x: x):
            yield []
    elif name.startswith("cutoff="):
        edges = (
            StreamConfig().edge_budget
            * (float(name.removeprefix("cutoff=")) / GauntConfig().cutoff) ** 3
        )
        yield [f"model.{name}", f"stream.edge_budget={round(edges)}"]  # as many structures a step
    elif name.startswith("optimizer."):
        yield name.split()
    else:
        yield [] if name == "default" else [f"model.{name}"]


def run(name: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Errors of one training and the processor seconds of a step."""
    with varied(name) as words:
        fixed = [f"data={options.data}", "out=none", f"seed={seed}"]
        config = load_settings(PretrainConfig, overrides=[*fixed, *words]).model_dump(mode="json")
        row = train({"config": config}, steps=options.steps)
    return {key: row[key] for key in ("force_mae", "energy_mae_per_atom")} | {
        "seconds_per_step": row["seconds"] / row["steps"]
    }


@rc_context(STYLE)
def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Error of forces and cost of a step, medians over seeds, the smallest error on top."""
    columns = {"force_mae": "force MAE (eV/A)", "seconds_per_step": "processor seconds a step"}
    medians = {
        name: [statistics.median(r[key] for r in rows if r["variation"] == name) for key in columns]
        for name in {r["variation"]: None for r in rows}
    }
    names = sorted(medians, key=medians.__getitem__, reverse=True)
    figure = Figure(figsize=(9, 1.5 + 0.28 * len(names)), layout="constrained")
    for number, (axes, label) in enumerate(
        zip(figure.subplots(1, 2, sharey=True), columns.values(), strict=True)
    ):
        for row, name in enumerate(names):
            value = medians[name][number]
            colour = "tab:red" if name == "default" else "tab:blue"
            axes.plot(value, row, "o", color=colour)
        axes.set(xlabel=label, yticks=range(len(names)), yticklabels=names)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=VARIATIONS, choices=VARIATIONS, metavar="NAME")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    console = Console(file=os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # DeepSpeed prints
    torch.set_num_threads(1)
    path = Path(f"{options.out}.json")
    settings = {"data": options.data.name, "steps": options.steps}
    rows = taken_up(path, settings)
    done = {(r["variation"], r["seed"]) for r in rows}
    todo = [
        (name, seed) for seed in options.seeds for name in options.only if (name, seed) not in done
    ]
    for name, seed in track(todo, "trainings", console=console):
        rows.append({"variation": name, "seed": seed} | run(name, options, seed))
        console.print(rows[-1])
        content = {"settings": settings, "units": "eV/A, eV/atom, s", "rows": rows}
        path.write_text(json.dumps(content, indent=1) + "\n")
    draw(rows, f"{options.data.name}, {options.steps} steps", Path(f"{options.out}.png"))


if __name__ == "__main__":
    sys.exit(main())
