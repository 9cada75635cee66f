"""What a step of SOAP or AdamW costs compared with the gradients of a batch.

    python benchmarks/optimizer_cost.py [--rounds 9]

128 copper atoms, plain (not compiled) training at 32, 64 and 128 channels, one thread. Writes
results/optimizer_cost.json: seconds, and the share of a whole training step, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from benchmark_structures import copper
from evenfield_worker import forward_of, make_batch, own_optimizer
from worker_protocol import Labels, keep_freed_memory, seconds_of

from evenfield.model_zoo import Potential, PotentialConfig


RESULT = Path(__file__).resolve().parent / "results" / "optimizer_cost.json"
CHANNELS = (32, 64, 128)
STEPS = 20  # of an optimizer in its turn: two looks at the eigenvectors


def measure(channels: int, rounds: int) -> dict[str, float]:
    """Seconds of gradients and of each optimizer's step, and its share."""
    structures = copper(1)
    batch = make_batch(structures, 5.0)
    labels = Labels(structures)
    torch.manual_seed(0)
    potential = Potential(
        PotentialConfig(channels=channels, num_neighbours=batch.num_edges / batch.num_atoms)
    ).train()
    forward = forward_of(potential, batch)
    optimizers = {name: own_optimizer(potential, optimizer=name) for name in ("soap", "adamw")}
    spent: dict[str, list[float]] = {name: [] for name in ("gradients", *optimizers)}
    for _ in range(rounds):
        potential.zero_grad()
        spent["gradients"].append(seconds_of(lambda: labels.loss(*forward()).backward()))
        for name, optimizer in optimizers.items():
            spent[name].append(seconds_of(optimizer.step, STEPS))
    medians = {name: statistics.median(values) for name, values in spent.items()}
    shares = {
        f"{name}_share": medians[name] / (medians[name] + medians["gradients"])
        for name in optimizers
    }
    return medians | shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    result = {f"{channels} channels": measure(channels, options.rounds) for channels in CHANNELS}
    print(json.dumps(result, indent=1))
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
