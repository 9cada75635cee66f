"""Does a cheap direct-force stage before conservative training pay?

    python benchmarks/two_stages.py DATA NAME [--seconds 120] [--seeds 0 1] [--shares 0 0.5]

DATA is a converted set. A run is given so many seconds of processor time, data and optimizer
included; `share` of them go to a direct stage, the rest to conservative training from the same
weights. Default model, batches, loss, AdamW and clip, one thread. The cosine of the learning rate
runs once over the whole budget, so that share 0 is plain training; the second stage has a new
optimizer and warms up again. In the direct stage forces are a linear readout of the l = 1 features
of all layers (the last one is given them, and loses them at the hand-over) plus the core repulsion,
nothing is differentiated by positions, and the net force of a structure is penalised. Writes
results/two_stages_NAME.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.data_pipelines.stream.source import Source
from evenfield.data_pipelines.stream.stream import Stream
from evenfield.model_zoo.evaluation.evaluation import evaluate, with_a_head
from evenfield.model_zoo.network.gaunt.layer import InteractionLayer
from evenfield.model_zoo.potential.derivatives import forces_and_stress
from evenfield.model_zoo.potential.potential import Potential
from evenfield.model_zoo.potential.prediction import Prediction
from evenfield.pretrain.checkpoints.checkpoints import seed_everything
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.initial_potential import build_potential
from evenfield.pretrain.loop.loss import label_counts, weighted_loss
from evenfield.pretrain.loop.optimizer import parameter_groups


NET_FORCE = 1.0  # weight of the penalty, per (eV/A)^2 and atom
WARM_UP = 50  # steps, in each stage
FIGURES = ("force_mae", "energy_mae_per_atom", "worst_decile_force_mae")
RESULTS = Path(__file__).resolve().parent / "results"


class DirectForces(nn.Module):
    """A network with forces read out of vectors; its energies are not their potential."""

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        config = potential.config
        backbone = potential.backbone
        self.potential = potential
        self.short = backbone.layers[-1]
        long = InteractionLayer(config.network, self.short.l_in, 1)
        copy_leading(self.short, long)
        backbone.layers[-1] = long
        depth = len(backbone.layers)
        self.weight = nn.Parameter(
            0.1 * torch.randn(len(config.levels_of_theory), depth * config.network.channels)
        )
        self._features: list[Tensor] = []
        for layer in backbone.layers:
            layer.register_forward_hook(
                lambda module, inputs, output: self._features.append(output)
            )

    def forward(self, batch: Batch) -> Prediction:
        """As the potential's, with direct forces and no stress."""
        potential = self.potential
        self._features.clear()
        vectors, tiles = potential.edge_vectors(batch)
        vectors = vectors.detach()
        head = batch.head[batch.structure_index]
        interaction, _ = potential.interaction(batch.atomic_numbers, head, vectors, tiles)
        core_energies, slope = potential.core_repulsion(batch, vectors, tiles)
        energies = potential.e0[head, batch.atomic_numbers] + interaction.double() + core_energies
        core, _ = forces_and_stress(slope, vectors, tiles, batch)
        arrows = torch.cat([x[1:4] for x in self._features], 2)  # (3, N, layers * C)
        own = torch.einsum("anc,nc->na", arrows, self.weight[head]) * potential.scale[
            head
        ].unsqueeze(1)
        energy = energies.new_zeros(batch.num_structures).index_add(
            0, batch.structure_index, energies
        )
        labels = {
            "energy": energy,
            "forces": core + own.to(core.dtype),
            "stress": torch.full_like(batch.labels["stress"], torch.nan),
        }
        return Prediction(labels)

    def conservative(self) -> Potential:
        """The potential as it was built, with what the network has learned."""
        copy_leading(self.potential.backbone.layers[-1], self.short)
        for layer in self.potential.backbone.layers:
            layer._forward_hooks.clear()
        self.potential.backbone.layers[-1] = self.short
        return self.potential


@torch.no_grad()
def copy_leading(source: InteractionLayer, target: InteractionLayer) -> None:
    """Copy the weights that two layers share; they differ in their highest output degree only."""
    given = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        old = given[name]
        new = parameter
        if name.startswith("gates"):  # rows are (order, degree, channel)
            orders = len(source.outputs)
            channels = source.outputs[0].weight.shape[1]
            old = old.view(orders, source.l_out + 1, channels, *old.shape[1:]).transpose(0, 1)
            new = new.view(orders, target.l_out + 1, channels, *new.shape[1:]).transpose(0, 1)
        degrees = min(len(old), len(new))
        new[:degrees].copy_(old[:degrees])


def net_force_penalty(prediction: Prediction, batch: Batch) -> Tensor:
    """Mean over structures of |sum of forces|^2 / N, in (eV/A)^2."""
    forces = prediction.forces
    net = forces.new_zeros(batch.num_structures, 3).index_add(0, batch.structure_index, forces)
    return (net.square().sum(1) / batch.atoms_per_structure).mean()


def train(
    model: nn.Module, batches: Any, config: PretrainConfig, clock: Clock, until: float
) -> int:
    """Steps until so much of the budget is spent; returns their number."""
    direct = isinstance(model, DirectForces)
    potential = model.potential if isinstance(model, DirectForces) else model
    groups = parameter_groups(potential, config.optimizer)
    if direct:
        groups.append({"params": [model.weight], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups)
    step = 0
    while clock.spent() < until:
        batch = next(batches)
        if direct:
            batch.labels["stress"] = torch.full_like(batch.labels["stress"], torch.nan)
        prediction = model(batch)
        loss = weighted_loss(prediction, batch, label_counts(batch), config.loss)
        if direct:
            loss = loss + NET_FORCE * net_force_penalty(prediction, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(
            [p for group in groups for p in group["params"]], config.optimizer.clip_norm
        )
        swing = 0.5 * (1 + math.cos(math.pi * min(1.0, clock.spent())))
        rate = config.optimizer.learning_rate * swing
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP)
        optimizer.step()
        step += 1
    return step


class Clock:
    """The share of a budget of processor seconds that is spent."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.start = time.process_time()

    def spent(self) -> float:
        return (time.process_time() - self.start) / self.seconds


def run(folder: str, seed: int, share: float, seconds: float) -> dict[str, Any]:
    """One training and its errors on the whole validation split."""
    config = PretrainConfig(data=folder, out="none", seed=seed, stream={"seed": seed})
    data = Collection([folder])
    seed_everything(seed)
    potential = build_potential(config, data).train()
    levels = potential.config.levels_of_theory
    source = Source(folder, config.stream, cutoff=config.model.cutoff, levels_of_theory=levels)
    batches = Stream(source).batches()
    clock = Clock(seconds)
    steps = {}
    if share:
        model = DirectForces(potential).train()
        steps["direct"] = train(model, batches, config, clock, share)
        potential = model.conservative()
    steps["conservative"] = train(potential, batches, config, clock, 1.0)
    batches.close()
    summary = evaluate(potential, with_a_head(potential, data.structures("valid")), "valid")
    return {"steps": steps, **{name: round(getattr(summary, name), 5) for name in FIGURES}}


def over_plain(runs: dict[str, Any], share: float, seeds: list[int]) -> dict[str, list[float]]:
    """Error relative to plain training, in percent: the median over seeds, then each seed."""
    rows = {}
    for name in FIGURES:
        ratios = [
            runs[f"share {share:g}, seed {s}"][name] / runs[f"share 0, seed {s}"][name]
            for s in seeds
        ]
        rows[name] = [round(100 * (value - 1), 1) for value in (statistics.median(ratios), *ratios)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("name")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / f"two_stages_{arguments.name}.json"
    runs = {}
    for seed in arguments.seeds:
        for share in arguments.shares:
            runs[f"share {share:g}, seed {seed}"] = run(
                arguments.data, seed, share, arguments.seconds
            )
            result = {
                "command": f"python benchmarks/two_stages.py DATA {arguments.name} "
                f"--seconds {arguments.seconds:g}",
                "date": time.strftime("%Y-%m-%d"),
                "units": "eV/A, eV/atom",
                "runs": runs,
            }
            path.write_text(json.dumps(result, indent=1) + "\n")
    later = [share for share in arguments.shares if share]
    result["over share 0, %: median, seeds"] = {
        f"{s:g}": over_plain(runs, s, arguments.seeds) for s in later
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
