"""Errors per element with and without importance weights, at equal steps, over seeds.

    python benchmarks/reweighting.py DATA OUT NAME [--steps 2500] [--seeds 0 1 2]

DATA is a converted set. Runs that OUT has already are not run again. Writes
results/reweighting_NAME.json and .png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from evenfield import model_zoo
from evenfield.core.figures.periodic_table import PANEL_SIZE, colour_norm, draw_periodic_table
from evenfield.data_pipelines.store.blocks import iter_structures
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo.evaluation.evaluation import predict, with_a_head
from evenfield.model_zoo.evaluation.summary import ErrorSummary, summarise


MODES = {"uniform": [], "static": ["stream.weights.beta=0.5"], "adaptive": ["adaptive.rate=0.5"]}
FIGURES = {
    "force MAE, worst tenth of elements (eV/A)": "worst_decile_force_mae",
    "force MAE, mean over elements (eV/A)": "mean_over_elements_force_mae",
    "force MAE, all components (eV/A)": "force_mae",
    "energy MAE (eV/atom)": "energy_mae_per_atom",
}
# eV/A, force RMS of a structure; a few such test structures can make up half of all errors
EXTREME = 10.0
RESULTS = Path(__file__).parent / "results"


def train(data: Path, out: Path, mode: str, seed: int, steps: int) -> Path:
    """Folder of one run, which is finished."""
    folder = out / f"{mode}-{seed}"
    if not (folder / "model" / "manifest.json").is_file():
        words = [
            f"data={data}",
            f"out={folder}",
            f"max_steps={steps}",
            f"seed={seed}",
            f"stream.seed={seed}",
        ]
        words += [
            "evaluate_every=150",
            "evaluate_structures=600",
            "checkpoints.every=500",
            *MODES[mode],
        ]
        subprocess.run([sys.executable, "-m", "evenfield.cli", "pretrain", *words], check=True)
    return folder


def moderate(folder: Path, data: Path) -> ErrorSummary:
    """Errors of a run on the test structures whose forces are not extreme."""
    potential = model_zoo.load(str(folder / "model")).potential
    structures = with_a_head(potential, iter_structures(data, "test"))
    return summarise(predict(potential, (s for s in structures if not is_extreme(s))), "test")


def is_extreme(structure: Structure) -> bool:
    """Is the RMS of its force components above EXTREME?"""
    return structure.forces is not None and float(np.sqrt((structure.forces**2).mean())) > EXTREME


def per_element(evaluations: list[ErrorSummary]) -> dict[str, float]:
    """Force MAE of each element, the mean over seeds."""
    seeds = [evaluation.force_mae_of_elements() for evaluation in evaluations]
    return {
        symbol: float(np.mean([errors[symbol] for errors in seeds]))
        for symbol in seeds[0]
        if all(symbol in errors for errors in seeds)
    }


def table(evaluations: dict[str, list[ErrorSummary]]) -> dict[str, Any]:
    """Figures of each mode and seed, and the change of each against uniform at the same seed."""
    rows: dict[str, Any] = {}
    for label, key in FIGURES.items():
        values = {
            mode: np.array([getattr(e, key) for e in own]) for mode, own in evaluations.items()
        }
        rows[label] = {
            mode: {
                "by_seed": own.tolist(),
                "change_by_seed": (own / values["uniform"] - 1).tolist(),
            }
            for mode, own in values.items()
        }
    return rows


def print_table(rows: dict[str, Any]) -> None:
    """Each figure, each mode: the seeds, their change against uniform, and its median."""
    for label, modes in rows.items():
        print(label)
        for mode, row in modes.items():
            seeds = "  ".join(
                f"{v:.3f} ({c:+.1%})"
                for v, c in zip(row["by_seed"], row["change_by_seed"], strict=True)
            )
            print(f"  {mode:9s} {seeds}   median change {np.median(row['change_by_seed']):+.1%}")


def error_goes_with(evaluation: ErrorSummary) -> dict[str, float]:
    """Spearman correlations of the force MAE over elements, and its mean over two quarters."""
    rows = [row for row in evaluation.per_element.values() if row.force_mae is not None]
    rows.sort(key=lambda row: row.num_train_structures)
    errors = [row.force_mae for row in rows]
    quarter = len(rows) // 4
    return {
        "spearman_with_force_rms": float(spearmanr(errors, [row.force_rms for row in rows])[0]),
        "spearman_with_train_structures": float(
            spearmanr(errors, [row["num_train_structures"] for row in rows])[0]
        ),
        "mean_of_rarest_quarter": float(np.mean(errors[:quarter])),
        "mean_of_commonest_quarter": float(np.mean(errors[-quarter:])),
    }


def draw(evaluations: dict[str, list[dict[str, Any]]], path: Path, name: str) -> None:
    """Periodic tables of the force MAE without weights, and of the ratio to it with them."""
    errors = {mode: per_element(own) for mode, own in evaluations.items()}
    ratios = {
        mode: {s: errors[mode][s] / errors["uniform"][s] for s in errors["uniform"]}
        for mode in errors
    }
    figure = Figure(figsize=(PANEL_SIZE[0], PANEL_SIZE[1] * len(errors)), layout="constrained")
    panels = figure.subplots(len(errors))
    norm = colour_norm(
        [], log=True, limits=(0.01, max(errors["uniform"].values()))
    )  # some are zero by symmetry
    title = f"{name}: force MAE without weights, mean of {len(evaluations['uniform'])} seeds"
    draw_periodic_table(panels[0], errors["uniform"], title=title, unit="eV/A", norm=norm)
    norm = colour_norm([], log=True, limits=(0.5, 2.0))
    for panel, mode in zip(panels[1:], [mode for mode in errors if mode != "uniform"], strict=True):
        title = f"{name}: {mode} weights"
        unit = "force MAE with weights / without"
        draw_periodic_table(
            panel, ratios[mode], title=title, unit=unit, norm=norm, colour_map="RdBu_r"
        )
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("name")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    folders = {
        mode: [
            train(options.data, options.out, mode, seed, options.steps) for seed in options.seeds
        ]
        for mode in MODES
    }
    evaluations = {
        mode: [ErrorSummary.read(folder / "evaluation.json") for folder in own]
        for mode, own in folders.items()
    }
    rows = table(evaluations)
    print_table(rows)
    extreme = sum(map(is_extreme, iter_structures(options.data, "test")))
    print(f"without the {extreme} test structures whose force RMS is above {EXTREME:g} eV/A:")
    calm = table(
        {mode: [moderate(folder, options.data) for folder in own] for mode, own in folders.items()}
    )
    print_table(calm)
    draw(evaluations, RESULTS / f"reweighting_{options.name}.png", options.name)
    content = {
        "command": f"python benchmarks/reweighting.py DATA OUT {options.name} "
        f"--steps {options.steps}",
        "modes": MODES,
        "seeds": options.seeds,
        "figures": rows,
        "uniform_force_mae_goes_with": [
            error_goes_with(evaluation) for evaluation in evaluations["uniform"]
        ],
        "without_extreme_structures": {"left_out": extreme, "figures": calm},
        "force_mae_per_element": {mode: per_element(own) for mode, own in evaluations.items()},
    }
    (RESULTS / f"reweighting_{options.name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
