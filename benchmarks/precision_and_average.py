"""Validation errors of float32 and bfloat16 training at equal steps, and of averaged weights beside the trained ones.

    python benchmarks/precision_and_average.py DATA [--steps 600] [--seeds 0 1]

DATA is a converted set. Every run is the default model on one thread with the default schedule; errors are on the whole
validation split at half of the steps and at the end, in float32 for all. Writes results/precision_and_average.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from evenfield.data_pipelines.collection import Collection
from evenfield.pretrain.average import AverageConfig, WeightAverage
from evenfield.pretrain.callbacks import Callback
from evenfield.pretrain.checkpoints import seed_everything
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.engine import DeepSpeedEngine
from evenfield.pretrain.evaluation import evaluate, with_a_head
from evenfield.pretrain.start import build_potential
from evenfield.pretrain.train import StepReport, Trainer


DECAYS = (0.99, 0.995, 0.999)
FIGURES = ("force_mae", "energy_mae_per_atom", "worst_decile_force_mae")
RESULT = Path(__file__).resolve().parent / "results" / "precision_and_average.json"


class Errors(Callback):
    """Validates the trained weights and each average at some steps."""

    def __init__(self, data: Collection, averages: list[WeightAverage], steps: tuple[int, ...]) -> None:
        self.data, self.averages, self.steps = data, averages, steps
        self.rows: dict[str, dict[str, Any]] = {}

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.step not in self.steps:
            return
        rows = {"trained": self.errors(trainer)}
        for average in self.averages:
            with average.applied():
                rows[f"averaged {average.decay}"] = self.errors(trainer)
        trainer.engine.potential.train()
        self.rows[f"step {report.step}"] = rows

    def errors(self, trainer: Trainer) -> dict[str, float]:
        potential = trainer.engine.potential
        summary = evaluate(potential, with_a_head(potential, self.data.structures("valid")), "valid")
        return {name: round(summary[name], 5) for name in FIGURES}


def run(folder: str, precision: str, seed: int, steps: int) -> dict[str, Any]:
    """One training; its errors and the seconds that it took, validations left out."""
    config = PretrainConfig(data=folder, out="none", seed=seed, max_steps=steps, engine={"precision": precision})
    data = config.open_data()
    seed_everything(seed)
    potential = build_potential(config, data)
    engine = DeepSpeedEngine(potential, config.engine)
    levels = potential.config.levels_of_theory
    stream_config = config.stream.model_copy(update={"seed": seed})
    stream = data.stream(
        stream_config, config.mixing, cutoff=config.model.cutoff, levels_of_theory=levels, rank=0, world_size=1
    )
    averages = [WeightAverage(potential, AverageConfig(decay=decay)) for decay in DECAYS]
    errors, clock = Errors(data, averages, (steps // 2, steps)), Clock()
    Trainer(engine, stream, config.loss, config.engine, steps, [clock, *averages, errors]).fit()
    return {"seconds_of_steps": round(clock.seconds, 1), **errors.rows}


class Clock(Callback):
    def __init__(self) -> None:
        self.seconds = 0.0

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        self.seconds += report.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "command": f"python benchmarks/precision_and_average.py DATA --steps {arguments.steps}",
        "date": time.strftime("%Y-%m-%d"),
        "units": "eV/A, eV/atom",
        "runs": {},
    }
    for seed in arguments.seeds:
        for precision in ("float32", "bfloat16"):
            result["runs"][f"{precision}, seed {seed}"] = run(arguments.data, precision, seed, arguments.steps)
            RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
