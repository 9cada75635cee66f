"""The training loop, for pretraining and for every fine-tuning by gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...core.labels import LABELS
from ...data_pipelines.batch import Batch
from ...data_pipelines.stream.training_stream import TrainingStream
from ...data_pipelines.stream.virtual_ranks import states_of_virtual_ranks
from ..callbacks.callback import Callback
from .engine import Engine, EngineConfig
from .loss import LossConfig, label_counts, weighted_loss
from .signals import StopRequest, listening


MAX_BAD_STEPS = 10


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says what died and what to change."""


@dataclass
class StepReport:
    """Figures of one optimizer step, summed over all ranks."""

    step: int
    epoch: int
    loss: float
    learning_rate: float
    structures: int
    edges: int
    data_seconds: float
    seconds: float
    gradient_norm: float | None = None  # before the clip; None for a step that was not taken
    bad_structures: list[str] = field(default_factory=list)
    note: str = ""  # what a callback wants to be told to the user


@dataclass(frozen=True)
class _Work:
    """What the ranks do in one step: this rank's own batches and seconds, and sums over all ranks.

    The sums are under way while the first forward computes; whoever reads one waits for them.
    """

    batches: list[Batch]
    epoch: int
    started: float
    waited: float
    _sums: Tensor  # (L + 3,) labels, structures, edges, requests to stop
    _under_way: dist.Work | None

    def _sum(self) -> Tensor:
        if self._under_way is not None:
            self._under_way.wait()
        return self._sums

    @property
    def counts(self) -> Tensor:
        """Labels (L,)."""
        return self._sum()[:-3]

    @property
    def structures(self) -> int:
        return int(self._sum()[-3])

    @property
    def edges(self) -> int:
        return int(self._sum()[-2])

    @property
    def stop(self) -> bool:
        """Was any rank asked to stop?"""
        return bool(self._sum()[-1] > 0)


class Trainer:
    """Knows time: it steps, counts, and tells its callbacks. Goes on from `start_step` and the stream's state."""

    def __init__(
        self,
        engine: Engine,
        stream: TrainingStream,
        loss: LossConfig,
        engine_config: EngineConfig,
        max_steps: int,
        callbacks: list[Callback],
        start_step: int = 0,
        stop: StopRequest | None = None,
    ) -> None:
        self.engine, self.stream, self.loss, self.config = engine, stream, loss, engine_config
        self.max_steps, self.callbacks, self.step = max_steps, callbacks, start_step
        self.element_weight: Tensor | None = None  # (119,), on top of the stream's own
        self.stop = stop or StopRequest()
        self._bad_steps = 0

    def fit(self) -> bool:
        """Train to `max_steps`; False when a signal ended the run early. Callbacks see the end either way."""
        with listening(self.stop), ExitStack() as closing:
            for callback in self.callbacks:
                closing.callback(callback.close)
            for work in islice(self._work(), max(0, self.max_steps - self.step)):
                report = self.train_step(work)
                for callback in self.callbacks:
                    callback.on_step(self, report)
                if work.stop:
                    break
            for callback in self.callbacks:
                callback.on_end(self)
        return self.step >= self.max_steps

    def state(self) -> dict[str, Any]:
        """What this rank must be given back at a resume, JSON-ready."""
        weight = None if self.element_weight is None else self.element_weight.tolist()
        own = {
            type(callback).__name__: state
            for callback in self.callbacks
            if (state := callback.state())
        }
        return {"stream": self.stream.state(), "element_weight": weight, "callbacks": own}

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Take up the states of all ranks, of which there may have been another number."""
        self.stream.load_state(states_of_virtual_ranks([state["stream"] for state in states]))
        weight = states[0]["element_weight"]
        self.element_weight = None if weight is None else torch.tensor(weight)
        for callback in self.callbacks:
            if own := states[0]["callbacks"].get(type(callback).__name__):
                callback.load_state(own)

    def train_step(self, work: _Work) -> StepReport:
        """One optimizer step: forward, loss, backward, all-rank finite check, clip and update."""
        learning_rate = learning_rate_at(self.step, self.max_steps, self.config)
        losses, weights = [], self.loss.at(self.step / self.max_steps)
        for batch in work.batches:
            batch = batch.to(self.engine.device, non_blocking=True)
            noise = self.engine.noise() if self.engine.noise else None
            prediction = self.engine.forward(batch)
            loss = weighted_loss(prediction, batch, work.counts, weights, noise)
            self.engine.backward(loss)
            losses.append(loss.detach())
        healthy, loss_sum = self._over_all_ranks(losses)
        norm = None
        if healthy:
            norm = self.engine.step(learning_rate)
        else:
            self.engine.discard()
        bad = [] if healthy else self._structures_on_all_ranks(work)
        self._check_bad(bad)
        self.step += 1
        return StepReport(
            step=self.step,
            epoch=work.epoch,
            loss=loss_sum,
            learning_rate=learning_rate,
            structures=work.structures,
            edges=work.edges,
            data_seconds=work.waited,
            seconds=time.perf_counter() - work.started,
            gradient_norm=norm,
            bad_structures=bad,
        )

    def _work(self) -> Iterator[_Work]:
        """The work of every step, without end: the stream knows no end of an epoch that a rank would wait at."""
        stream = self.stream.batches()
        while True:
            started, epoch = time.perf_counter(), self.stream.epoch
            batches = list(islice(stream, self.config.accumulation * self.stream.num_virtual_ranks))
            waited = time.perf_counter() - started
            if self.element_weight is not None:
                for batch in batches:
                    batch.atom_weight = (
                        batch.atom_weight * self.element_weight[batch.atomic_numbers]
                    )
            labels = sum(
                (label_counts(b) for b in batches), torch.zeros(len(LABELS), dtype=torch.float64)
            )
            structures, edges = (
                sum(b.num_structures for b in batches),
                sum(b.num_edges for b in batches),
            )
            sums = torch.cat(
                [labels, torch.tensor([structures, edges, bool(self.stop.by)]).double()]
            )
            under_way = dist.all_reduce(sums, async_op=True) if self.engine.world_size > 1 else None
            yield _Work(batches, epoch, started, waited, sums, under_way)

    def _over_all_ranks(self, losses: list[Tensor]) -> tuple[bool, float]:
        """Whether losses and gradients of all ranks are finite, and the whole step's loss."""
        loss = torch.stack(losses).sum().double().cpu()
        healthy = bool(torch.isfinite(loss)) and self.engine.gradients_finite()
        sums = torch.stack([loss, loss.new_tensor(not healthy)])
        if self.engine.world_size > 1:
            dist.all_reduce(sums)
        return float(sums[1]) == 0, float(sums[0])

    def _structures_on_all_ranks(self, work: _Work) -> list[str]:
        own = [name for batch in work.batches for name in batch.structure_ids]
        if self.engine.world_size == 1:
            return own
        names: list[Any] = [None] * self.engine.world_size
        dist.all_gather_object(names, own)
        return [name for part in names for name in part]

    def _check_bad(self, bad: list[str]) -> None:
        self._bad_steps = self._bad_steps + 1 if bad else 0
        if self._bad_steps >= MAX_BAD_STEPS:
            raise TrainingError(
                f"loss or gradients were not finite in {MAX_BAD_STEPS} steps in a row, last with {', '.join(bad[:5])}: "
                "lower engine.learning_rate, or look at these structures"
            )


def learning_rate_at(step: int, max_steps: int, config: EngineConfig) -> float:
    """Linear warm-up, then a cosine from `learning_rate` to `final_learning_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    swing = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * swing
