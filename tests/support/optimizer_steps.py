"""The same optimizer steps by the engine, on any number of ranks, and by plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenfield.data_pipelines.batch import Batch
from evenfield.data_pipelines.structure import Structure
from evenfield.model_zoo.potential.config import PotentialConfig
from evenfield.model_zoo.potential.potential import Potential
from evenfield.pretrain.config import PretrainConfig
from evenfield.pretrain.loop.engine import DeepSpeedEngine, EngineConfig
from evenfield.pretrain.loop.loss import LossConfig, label_counts, weighted_loss
from evenfield.pretrain.loop.optimizer import OptimizerConfig, parameter_groups
from evenfield.pretrain.loop.soap import Soap
from evenfield.pretrain.loop.train_module import TrainModule
from evenfield.pretrain.loop.trainer import Trainer


MODEL = {
    "channels": 8,
    "l_max": 2,
    "num_layers": 2,
    "readout_size": 16,
    "radial_hidden": 16,
    "cutoff": 4.0,
}
LEVELS = ("EMT", "EMT-scaled")
NUM_STEPS = 20
LEARNING_RATES = (1e-3, *(2e-3 - 5e-5 * k for k in range(NUM_STEPS - 1)))
CLIP_NORM = 5.0


def new_potential(seed: int = 0) -> Potential:
    """Always the same weights, in training mode."""
    torch.manual_seed(seed)
    return Potential(PotentialConfig(**MODEL, levels_of_theory=list(LEVELS))).train()


def new_engine(
    zero_stage: int,
    potential: Potential | None = None,
    loss: LossConfig = LossConfig(),
    optimizer: str = "adamw",
    precision: str = "float32",
) -> DeepSpeedEngine:
    """By default with AdamW, which all stages take."""
    train_module = TrainModule(potential or new_potential(), loss, precision)
    config = optimizer_config(optimizer)
    return DeepSpeedEngine(train_module, config, EngineConfig(zero_stage=zero_stage))


def optimizer_config(name: str = "adamw") -> OptimizerConfig:
    return OptimizerConfig(name=name, clip_norm=CLIP_NORM, weight_decay=1e-2)


def small_config(data: Path, out: Path, **changes: Any) -> PretrainConfig:
    """12 steps over a stream of small windows, saved after every one."""
    settings = {
        "data": str(data),
        "out": str(out),
        "max_steps": 12,
        "evaluate_every": 100,
        "model": MODEL,
        "stream": {"edge_budget": 1500, "window_blocks": 2},
        "optimizer": {"name": "adamw"},
        "schedule": {"warmup_steps": 2},
        "checkpoints": {"every": 1, "keep": 100},
    }
    return PretrainConfig.model_validate(settings | changes)


def elastic_config(data: Path, out: Path, max_steps: int, zero_stage: int) -> PretrainConfig:
    """A run of two virtual ranks whose learning rate does not depend on where it ends."""
    settings = {
        "max_steps": max_steps,
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "schedule": {"warmup_steps": 0, "final_learning_rate": 1e-3},
        "engine": {"zero_stage": zero_stage},
        "stream": {"edge_budget": 1500, "window_blocks": 2, "lanes": 2},
    }
    return small_config(data, out, **settings)


@contextmanager
def noting_structures() -> Iterator[list[list[str]]]:
    """Names of the structures in this rank's batches, step by step."""
    seen: list[list[str]] = []
    take_step = Trainer.train_step

    def note(self, work):
        seen.append([name for batch in work.batches for name in batch.structure_ids])
        return take_step(self, work)

    Trainer.train_step = note
    try:
        yield seen
    finally:
        Trainer.train_step = take_step


def batch_of(structures: Sequence[Structure]) -> Batch:
    return Batch.join([Batch.from_structure(s, MODEL["cutoff"], LEVELS) for s in structures])


def parts_of_steps(
    structures: Sequence[Structure], num_parts: int = 2
) -> list[list[list[Structure]]]:
    """The same structures for each step in 1, 2 or 4 parts of different sizes and heads.

    Parts 0 and 2 use one head, parts 1 and 3 the other: two ranks in turn use different heads.
    """
    levels = [cycle([s for s in structures if s.level_of_theory == level]) for level in LEVELS]
    large = cycle([s for s in structures if s.level_of_theory == LEVELS[0] and len(s) > 4])
    steps = []
    for _ in range(NUM_STEPS):
        many, few = [*islice(large, 2), *islice(levels[0], 3)], list(islice(levels[1], 2))
        steps.append(
            {1: [many + few], 2: [many, few], 4: [many[:2], few[:1], many[2:], few[1:]]}[num_parts]
        )
    return steps


def engine_steps(
    engine: DeepSpeedEngine, steps: list[list[Batch]], moments: list | None = None
) -> list[float]:
    """Take one step for each list of batches, which the ranks share in turn; returns the losses.

    moments: gets Adam's first moments after every step, which are sums over the gradients so far.
    """
    losses = []
    for batches, learning_rate in zip(steps, LEARNING_RATES, strict=False):
        counts = sum(label_counts(batch) for batch in batches)
        total = torch.zeros(1)
        for batch in batches[engine.rank :: engine.world_size]:
            batch = batch.to(engine.device)
            loss = engine.forward(batch, lambda counts=counts: counts)
            engine.backward(loss)
            total += loss.detach().cpu()
        if engine.world_size > 1:
            torch.distributed.all_reduce(total)
        losses.append(float(total))
        engine.step(learning_rate)
        if moments is not None:
            moments.append(first_moments(engine.state()))
    return losses


def first_moments(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of an engine's state, under the names that a potential gives its parameters."""
    prefix = "exp_avg/"
    return {
        name.removeprefix(prefix).removeprefix("potential."): moment
        for name, moment in state.items()
        if name.startswith(prefix)
    }


def moment_deviation(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> float:
    """Largest over the steps of |difference| / |whole|, all parameters as one vector."""
    deviations = []
    for a, b in zip(one, other, strict=True):
        difference = torch.cat([(a[name] - b[name]).flatten() for name in b])
        deviations.append(
            float(difference.norm() / torch.cat([m.flatten() for m in b.values()]).norm())
        )
    return max(deviations)


def plain_steps(
    steps: list[list[Batch]], optimizer_name: str = "adamw"
) -> tuple[dict[str, Tensor], list[float], list[float], list[dict]]:
    """The steps in plain PyTorch, all parts in one loss.

    Returns weights, losses, gradient norms before clipping, and first moments.
    """
    potential = new_potential()
    config = optimizer_config(optimizer_name)
    groups = parameter_groups(potential, config)
    optimizer = Soap(groups, lr=0.0) if optimizer_name == "soap" else torch.optim.AdamW(groups)
    losses, norms, moments = [], [], []
    for batches, learning_rate in zip(steps, LEARNING_RATES, strict=True):
        counts = sum(label_counts(batch) for batch in batches)
        loss = sum(
            weighted_loss(potential(batch), batch, counts, LossConfig()) for batch in batches
        )
        optimizer.zero_grad()
        loss.backward()
        norms.append(
            float(torch.nn.utils.clip_grad_norm_(potential.parameters(), config.clip_norm))
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        losses.append(loss.item())
        named = potential.named_parameters()
        moments.append(
            {
                name: optimizer.state[p]["exp_avg"].clone()
                for name, p in named
                if p in optimizer.state
            }
        )
    return weights(potential), losses, norms, moments


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

    num_virtual_ranks = 1

    def __init__(self, batches: list[Batch]) -> None:
        self.own, self.taken = batches, 0

    @property
    def epoch(self) -> int:
        return self.taken // len(self.own)

    def batches(self) -> Iterator[Batch]:
        while True:
            self.taken += 1
            yield self.own[(self.taken - 1) % len(self.own)]
