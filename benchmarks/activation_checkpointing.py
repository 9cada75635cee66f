"""Does recomputing activations pay when forces are differentiated again?

    python benchmarks/activation_checkpointing.py [--rounds 7]

A step is energy and forces of rattled copper, the default loss and backward, one thread; each way
takes its turn in every round. Memory is the most bytes of tensors that live at once, counted
operator by operator. The ways:

  plain          as trained
  layers         every layer under torch.utils.checkpoint, not reentrant; the reentrant kind,
                 which DeepSpeed uses too, cuts the graph that the forces need
  half batches   the same structures in two batches whose gradients are summed (accumulation)

Writes results/activation_checkpointing.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ase.build import bulk
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo.cost.cost import CostCounter
from evenfield.model_zoo.potential.config import PotentialConfig
from evenfield.model_zoo.potential.potential import Potential
from evenfield.pretrain.loop.loss import LossConfig, label_counts, weighted_loss


RESULT = Path(__file__).resolve().parent / "results" / "activation_checkpointing.json"
LEVEL = "default"


class Recomputed(nn.Module):
    """A layer that keeps its inputs only and is run again when its activations are asked for."""

    def __init__(self, layer: nn.Module, reentrant: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.reentrant = reentrant

    def forward(self, *inputs: Any) -> Tensor:
        return checkpoint(self.layer, *inputs, use_reentrant=self.reentrant)


def structures() -> list[Structure]:
    """Four of 32 atoms, 5,700 edges together."""
    found = []
    for number in range(4):
        atoms = bulk("Cu", cubic=True).repeat(2)
        atoms.rattle(0.1, seed=number)
        found.append(
            Structure.from_atoms(
                atoms, LEVEL, str(number), str(number), energy=0.0, forces=atoms.positions * 0.1
            )
        )
    return found


def gradients(potential: Potential, batches: list[Batch]) -> list[Tensor]:
    """Of the loss of all batches, as a step sums them."""
    counts = sum((label_counts(batch) for batch in batches), torch.zeros(3, dtype=torch.float64))
    potential.zero_grad(set_to_none=True)
    for batch in batches:
        weighted_loss(potential(batch), batch, counts, LossConfig()).backward()
    return [p.grad for p in potential.parameters() if p.grad is not None]


def ways(num_layers: int) -> dict[str, Callable[[], list[Tensor]]]:
    """The step in each way, on potentials of the same weights."""
    potentials = {}
    for name in ("plain", "layers", "reentrant"):
        torch.manual_seed(0)
        potential = Potential(
            PotentialConfig(num_layers=num_layers, levels_of_theory=[LEVEL])
        ).train()
        if name != "plain":
            layers = [Recomputed(layer, name == "reentrant") for layer in potential.backbone.layers]
            potential.backbone.layers = nn.ModuleList(layers)
        potentials[name] = potential
    graphs = [
        Batch.from_structure(s, potentials["plain"].config.cutoff, [LEVEL]) for s in structures()
    ]
    whole = [Batch.join(graphs)]
    halves = [Batch.join(graphs[:2]), Batch.join(graphs[2:])]
    return {
        "plain": partial(gradients, potentials["plain"], whole),
        "layers": partial(gradients, potentials["layers"], whole),
        "half batches": partial(gradients, potentials["plain"], halves),
        "reentrant": partial(gradients, potentials["reentrant"], whole),
    }


def deviation(one: list[Tensor], other: list[Tensor]) -> float:
    """|difference| / |other|, all parameters as one vector."""
    difference = torch.cat([(a - b).flatten() for a, b in zip(one, other, strict=True)])
    return float(difference.norm() / torch.cat([b.flatten() for b in other]).norm())


def measure(num_layers: int, rounds: int) -> dict[str, Any]:
    """Figures of all ways for a model of so many layers."""
    steps = ways(num_layers)
    reference = [g.clone() for g in steps["plain"]()]
    result: dict[str, Any] = {}
    try:
        steps.pop("reentrant")()
    except RuntimeError as error:
        result["reentrant"] = str(error).strip().splitlines()[0]
    for name, step in steps.items():
        off = deviation([g.clone() for g in step()], reference)
        gc.collect()
        with CostCounter() as counter:
            step()
        result[name] = {
            "memory_mb": round(counter.memory / 1e6, 1),
            "gradients_off": float(f"{off:.1e}"),
        }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.process_time()
            step()
            seconds[name].append(time.process_time() - started)
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds["plain"], strict=True)]
        memory = result[name]["memory_mb"] / result["plain"]["memory_mb"]
        result[name] |= {
            "seconds": round(statistics.median(own), 4),
            "time_over_plain": round(statistics.median(ratios), 3),
            "memory_over_plain": round(memory, 3),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "command": f"python benchmarks/activation_checkpointing.py --rounds {arguments.rounds}",
        "date": time.strftime("%Y-%m-%d"),
        **{f"{layers} layers": measure(layers, arguments.rounds) for layers in (2, 4)},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
