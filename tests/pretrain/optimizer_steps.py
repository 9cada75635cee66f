"""The same optimizer steps by the engine, on any number of ranks, and by plain PyTorch; shared with the workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch_geometric.data import Batch

from evenfield.data_pipelines.graphs import collate, structure_graph
from evenfield.data_pipelines.schema import Structure
from evenfield.model_zoo.potential import Potential, PotentialConfig
from evenfield.pretrain.engine import DeepSpeedEngine, EngineConfig, parameter_groups
from evenfield.pretrain.loss import LossConfig, label_counts, weighted_loss


MODEL = {"channels": 8, "l_max": 2, "num_layers": 2, "readout_size": 16, "radial_hidden": 16, "cutoff": 4.0}
LEVELS = ("EMT", "EMT-scaled")
NUM_STEPS = 5
LEARNING_RATES = (1e-3, 5e-3, 4e-3, 3e-3, 2e-3)
CLIP_NORM = 5.0


def new_potential(seed: int = 0) -> Potential:
    """Always the same weights, in training mode."""
    torch.manual_seed(seed)
    return Potential(PotentialConfig(**MODEL, levels_of_theory=list(LEVELS))).train()


def new_engine(zero_stage: int, potential: Potential | None = None) -> DeepSpeedEngine:
    return DeepSpeedEngine(potential or new_potential(), engine_config(zero_stage))


def engine_config(zero_stage: int, **changes: object) -> EngineConfig:
    return EngineConfig(zero_stage=zero_stage, clip_norm=CLIP_NORM, weight_decay=1e-2, **changes)


def batch_of(structures: Sequence[Structure]) -> Batch:
    return collate([structure_graph(s, MODEL["cutoff"], LEVELS) for s in structures])


def parts_of_steps(structures: Sequence[Structure]) -> list[list[list[Structure]]]:
    """For each step the structures of two ranks, which differ in number, in size and in the head that they use."""
    levels = [[s for s in structures if s.level_of_theory == level] for level in LEVELS]
    steps = []
    for k in range(NUM_STEPS):
        many = [s for s in levels[0] if len(s) > 4][k : k + 2] + levels[0][3 * k : 3 * k + 3]
        steps.append([many, levels[1][k : k + 1]])
    return steps


def engine_steps(engine: DeepSpeedEngine, steps: list[list[Batch]]) -> list[float]:
    """Take one step for each list of batches, in which the ranks take turns; returns the whole step's losses."""
    losses = []
    for batches, learning_rate in zip(steps, LEARNING_RATES, strict=False):
        counts = sum(label_counts(batch) for batch in batches)
        total = torch.zeros(1)
        for batch in batches[engine.rank :: engine.world_size]:
            batch = batch.to(engine.device)
            loss = weighted_loss(engine.forward(batch), batch, counts, LossConfig())
            engine.backward(loss)
            total += loss.detach().cpu()
        if engine.world_size > 1:
            torch.distributed.all_reduce(total)
        losses.append(float(total))
        engine.step(learning_rate)
    return losses


def plain_steps(steps: list[list[Batch]]) -> tuple[dict[str, Tensor], list[float], list[float]]:
    """The steps in plain PyTorch, all parts in one loss: weights, losses, and gradient norms before the clip."""
    potential, config = new_potential(), engine_config(0)
    optimizer = torch.optim.AdamW(parameter_groups(potential, config))
    losses, norms = [], []
    for batches, learning_rate in zip(steps, LEARNING_RATES, strict=True):
        counts = sum(label_counts(batch) for batch in batches)
        loss = sum(weighted_loss(potential(batch), batch, counts, LossConfig()) for batch in batches)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(potential.parameters(), config.clip_norm)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        losses.append(loss.item())
    return weights(potential), losses, norms


def weights(potential: Potential) -> dict[str, Tensor]:
    """A copy of all parameters on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in potential.named_parameters()}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def with_coinciding_atoms(batch: Batch) -> Batch:
    """The batch with two atoms of its first structure in one place: forces of NaN."""
    batch = batch.clone()
    edge = int((batch.cell_shifts.abs().sum(1) == 0).nonzero()[0])
    sender, receiver = batch.edge_index[:, edge]
    batch.positions[sender] = batch.positions[receiver]
    return batch


class FixedStream:
    """A stream of the same batches in every epoch."""

    def __init__(self, batches: list[Batch]) -> None:
        self.own, self.taken = batches, 0

    @property
    def epoch(self) -> int:
        return self.taken // len(self.own)

    def batches(self) -> Iterator[Batch]:
        while True:
            self.taken += 1
            yield self.own[(self.taken - 1) % len(self.own)]
