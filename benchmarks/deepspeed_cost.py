"""What DeepSpeed costs on one process: an optimizer step by its engine and by plain PyTorch.

    python benchmarks/deepspeed_cost.py DATA [--steps 40]

DATA is a converted set; default model and batches, one thread. Every batch is taken by each side in
turn, in changing order: ZeRO 0, ZeRO 1, and a plain loop of forward, loss, backward, clip and
AdamW. Ratios are of the processor seconds of one batch; given are median and quartiles of them.
Writes results/deepspeed_cost.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.model_zoo.potential.potential import Potential
from evenfield.pretrain.checkpoints.checkpoints import seed_everything
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.initial_potential import build_potential
from evenfield.pretrain.loop.engine import DeepSpeedEngine, EngineConfig
from evenfield.pretrain.loop.loss import LossConfig, label_counts, weighted_loss
from evenfield.pretrain.loop.optimizer import OptimizerConfig, parameter_groups
from evenfield.pretrain.loop.train_module import TrainModule


WARM_UP = 5
RATE = 1e-4
RESULT = Path(__file__).resolve().parent / "results" / "deepspeed_cost.json"
Step = Callable[[Batch], None]


def by_engine(potential: Potential, zero_stage: int) -> Step:
    """A step as the training loop takes it, without the loop's own checks."""
    optimizer = OptimizerConfig(name="adamw")
    config = EngineConfig(zero_stage=zero_stage)
    engine = DeepSpeedEngine(TrainModule(potential), optimizer, config)

    def step(batch: Batch) -> None:
        engine.backward(engine.forward(batch, lambda: label_counts(batch)))
        engine.step(RATE)

    return step


def plain(potential: Potential) -> Step:
    """The same in PyTorch alone."""
    config = OptimizerConfig()
    optimizer = torch.optim.AdamW(parameter_groups(potential, config), lr=RATE)
    potential.train()

    def step(batch: Batch) -> None:
        weighted_loss(potential(batch), batch, label_counts(batch), LossConfig()).backward()
        torch.nn.utils.clip_grad_norm_(potential.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = PretrainConfig(data=arguments.data, out="none")
    data = Collection([arguments.data])

    def potential() -> Potential:
        seed_everything(0)
        return build_potential(config, data)

    sides = {
        "ZeRO 0": by_engine(potential(), 0),
        "ZeRO 1": by_engine(potential(), 1),
        "plain PyTorch": plain(potential()),
    }
    levels = potential().config.levels_of_theory
    stream = data.stream(
        config.stream,
        config.mixing,
        cutoff=config.model.cutoff,
        levels_of_theory=levels,
        rank=0,
        world_size=1,
    )
    source = stream.batches()
    batches = list(itertools.islice(source, WARM_UP + arguments.steps))
    source.close()  # its thread would count
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number, batch in enumerate(batches):
        order = list(sides)[number % 3 :] + list(sides)[: number % 3]
        for name in order:
            started = time.process_time()
            sides[name](batch)
            seconds[name].append(time.process_time() - started)
    result = {
        "command": f"python benchmarks/deepspeed_cost.py DATA --steps {arguments.steps}",
        "date": time.strftime("%Y-%m-%d"),
        "load of the machine at the end": os.getloadavg()[0],
        "plain PyTorch, s a step": round(statistics.median(seconds["plain PyTorch"][WARM_UP:]), 4),
    }
    for name in ("ZeRO 0", "ZeRO 1"):
        pairs = zip(seconds[name][WARM_UP:], seconds["plain PyTorch"][WARM_UP:], strict=True)
        quartiles = statistics.quantiles([100 * (own / other - 1) for own, other in pairs])
        result[f"{name} over plain, %: quartiles"] = [round(value, 1) for value in quartiles]
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
