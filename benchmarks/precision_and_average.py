"""Errors of float32 and bfloat16 training at equal steps, and of averaged weights.

    python benchmarks/precision_and_average.py DATA [--steps 300] [--seeds 0 1 2]
        [--precisions float32 bfloat16]

DATA is a converted set. Every run is the default model on one thread with the default schedule;
errors are on the whole validation split at half of the steps and at the end, in float32 for all. Of
bfloat16 it gives the error over that of float32 at the same seed. Writes
results/precision_and_average_STEPS.json; runs that it holds are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from evenfield.data_pipelines.stream.collection import Collection
from evenfield.model_zoo.evaluation.evaluation import evaluate, with_a_head
from evenfield.pretrain.callbacks.average import AverageConfig, WeightAverage
from evenfield.pretrain.callbacks.callback import Callback, Loop, StepReport
from evenfield.pretrain.checkpoints.checkpoints import seed_everything
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.initial_potential import build_potential
from evenfield.pretrain.loop.engine import DeepSpeedEngine
from evenfield.pretrain.loop.schedule import Schedule
from evenfield.pretrain.loop.train_module import TrainModule
from evenfield.pretrain.loop.trainer import Trainer


DECAYS = (0.99,)  # larger ones gave the same figures: their warm-up had not ended by then
FIGURES = ("force_mae", "energy_mae_per_atom", "worst_decile_force_mae")
RESULTS = Path(__file__).resolve().parent / "results"


class Errors(Callback):
    """Validates the trained weights and each average at some steps."""

    def __init__(
        self, data: Collection, averages: list[WeightAverage], steps: tuple[int, ...]
    ) -> None:
        self.data = data
        self.averages = averages
        self.steps = steps
        self.rows: dict[str, dict[str, Any]] = {}

    def on_evaluate(self, loop: Loop, report: StepReport) -> None:
        if report.step not in self.steps:
            return
        rows = {"trained": self.errors(loop)}
        for average in self.averages:
            with average.evaluated_weights():
                rows[f"averaged {average.decay}"] = self.errors(loop)
        loop.engine.train_module.potential.train()
        self.rows[f"step {report.step}"] = rows

    def errors(self, loop: Loop) -> dict[str, float]:
        potential = loop.engine.train_module.potential
        summary = evaluate(
            potential, with_a_head(potential, self.data.structures("valid")), "valid"
        )
        return {name: round(getattr(summary, name), 5) for name in FIGURES}


def run(folder: str, precision: str, seed: int, steps: int) -> dict[str, Any]:
    """One training; its errors and the seconds that it took, validations left out."""
    config = PretrainConfig(
        data=folder, out="none", seed=seed, max_steps=steps, compute={"precision": precision}
    )
    data = config.open_data()
    seed_everything(seed)
    potential = build_potential(config, data)
    train_module = TrainModule(potential, config.loss, precision)
    engine = DeepSpeedEngine(train_module, config.optimizer)
    levels = potential.config.levels_of_theory
    stream_config = config.stream.model_copy(update={"seed": seed})
    stream = data.stream(
        stream_config,
        config.mixing,
        cutoff=config.model.cutoff,
        levels_of_theory=levels,
        rank=0,
        world_size=1,
    )
    averages = [WeightAverage(potential, AverageConfig(decay=decay)) for decay in DECAYS]
    errors = Errors(data, averages, (steps // 2, steps))
    clock = Clock()
    schedule = Schedule(config.optimizer.learning_rate, config.schedule)
    Trainer(engine, stream, schedule, steps, [clock, *averages, errors]).fit()
    return {"seconds_of_steps": round(clock.seconds, 1), **errors.rows}


class Clock(Callback):
    def __init__(self) -> None:
        self.seconds = 0.0

    def on_step(self, loop: Loop, report: StepReport) -> None:
        self.seconds += report.seconds


def penalties(runs: dict[str, Any], seeds: list[int], steps: int) -> dict[str, list[float]]:
    """Final error of bfloat16 relative to float32, in percent: median and every seed."""
    last = f"step {steps}"
    pairs = [(runs[f"bfloat16, seed {seed}"], runs[f"float32, seed {seed}"]) for seed in seeds]
    rows = {}
    for name in FIGURES:
        shares = [
            100 * (low[last]["trained"][name] / full[last]["trained"][name] - 1)
            for low, full in pairs
        ]
        rows[name] = [round(value, 2) for value in (statistics.median(shares), *shares)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / f"precision_and_average_{arguments.steps}.json"
    runs = json.loads(path.read_text())["runs"] if path.is_file() else {}
    result: dict[str, Any] = {
        "command": f"python benchmarks/precision_and_average.py DATA --steps {arguments.steps}",
        "date": time.strftime("%Y-%m-%d"),
        "units": "eV/A, eV/atom",
        "runs": runs,
    }
    for seed in arguments.seeds:
        for precision in arguments.precisions:
            if f"{precision}, seed {seed}" not in runs:
                runs[f"{precision}, seed {seed}"] = run(
                    arguments.data, precision, seed, arguments.steps
                )
            path.write_text(json.dumps(result, indent=1) + "\n")
    if all(
        f"{precision}, seed {seed}" in runs
        for precision in ("float32", "bfloat16")
        for seed in arguments.seeds
    ):
        result["bfloat16 over float32 - 1, %: median, seeds"] = penalties(
            runs, arguments.seeds, arguments.steps
        )
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
