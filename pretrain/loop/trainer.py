"""The training loop, for pretraining and gradient fine-tuning.

The trainer decides which batches form a step, when a step is skipped, and when the run ends. The
train module (train_module.py) defines what a step computes. Callbacks do everything around it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...core.labels import LABELS
from ...data_pipelines.batch import Batch
from ...data_pipelines.stream.training_stream import TrainingStream
from ...data_pipelines.stream.virtual_ranks import states_of_virtual_ranks
from ..callbacks.callback import Callback, StepReport
from ..errors import TrainingError
from .engine import Engine
from .finite import refuse_infinite_weights
from .loss import label_counts
from .schedule import Schedule
from .signals import StopRequest, listening


MAX_BAD_STEPS = 10


@dataclass(frozen=True)
class _Work:
    """The work of one step: batches and timings of this rank, and sums over all ranks.

    The sums are communicated while the first forward pass runs. Reading one of them waits for the
    communication.
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

    def counts(self) -> Tensor:
        """The number of labels of each registered kind, (L,) float64."""
        return self._sum()[:-3]

    @property
    def structures(self) -> int:
        return int(self._sum()[-3])

    @property
    def edges(self) -> int:
        return int(self._sum()[-2])

    @property
    def stop(self) -> bool:
        """Whether any rank was asked to stop."""
        return bool(self._sum()[-1] > 0)


class Trainer:
    """Runs the training steps and calls the callbacks, whose order does not matter (callback.py).

    Training starts at `start_step`, with the stream at its current position.
    """

    def __init__(
        self,
        engine: Engine,
        stream: TrainingStream,
        schedule: Schedule,
        max_steps: int,
        callbacks: list[Callback],
        *,
        accumulation: int = 1,
        start_step: int = 0,
        stop: StopRequest | None = None,
    ) -> None:
        """Prepare the training.

        accumulation: batches per step, for each rank or virtual rank of the stream.
        stop: where stop requests are recorded, for a caller that already listens to signals.
        """
        names = [callback.name for callback in callbacks if callback.name]
        assert len(names) == len(set(names)), f"callbacks of the same name: {names}"
        self.engine = engine
        self.stream = stream
        self.schedule = schedule
        self.max_steps = max_steps
        self.callbacks = callbacks
        self.accumulation = accumulation
        self.step = start_step
        self.stop = stop or StopRequest()
        self.num_skipped = 0
        """The number of skipped steps, including those before a resume."""
        self._bad_steps = 0
        self._seconds_before = 0.0
        self._began: float | None = None

    @property
    def seconds(self) -> float:
        """Training time, including the time before a resume."""
        if self._began is None:
            return self._seconds_before
        return self._seconds_before + time.perf_counter() - self._began

    def fit(self) -> bool:
        """Train to `max_steps`; returns False if a signal or a callback stopped the run early.

        Callbacks are always closed, even after an error.

        Raises TrainingError if weights are not finite, if all steps were skipped, if too many steps
        in a row were skipped, or if a guard stops the run.
        """
        self._began = time.perf_counter()
        with listening(self.stop), ExitStack() as closing:
            for callback in self.callbacks:
                closing.callback(callback.close)

            # a resumed run that is already finished takes no step, but still runs the end hooks
            for work in islice(self._work(), max(0, self.max_steps - self.step)):
                report = self.train_step(work)
                self._call_callbacks(report)
                # all ranks see the same sum, so all of them stop after the same step
                if work.stop:
                    break
            self._check_outcome()
            for callback in self.callbacks:
                callback.on_end(self)
            for callback in self.callbacks:
                callback.on_save(self, last=True)
        return self.step >= self.max_steps

    def _call_callbacks(self, report: StepReport) -> None:
        """Run one phase after the other, each for all callbacks."""
        for callback in self.callbacks:
            callback.on_step(self, report)
        for callback in self.callbacks:
            callback.on_guard(self, report)
        for callback in self.callbacks:
            callback.on_evaluate(self, report)
        for callback in self.callbacks:
            callback.on_report(self, report)
        for callback in self.callbacks:
            callback.on_save(self, last=False)

    @contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Inside the block, the potential has the weights that are evaluated and exported."""
        with ExitStack() as replaced:
            for callback in self.callbacks:
                replaced.enter_context(callback.evaluated_weights())
            yield

    def state(self) -> dict[str, Any]:
        """The state of this rank to restore at a resume, JSON-ready."""
        # by name, so that a resumed run may have other callbacks
        own = {}
        for callback in self.callbacks:
            state = callback.state()
            if state:
                assert callback.name, f"{type(callback).__name__} has state but no name"
                own[callback.name] = state
        return {
            "stream": self.stream.state(),
            "callbacks": own,
            "num_skipped": self.num_skipped,
            "seconds": self.seconds,
        }

    def load_state(self, states: list[dict[str, Any]], *, same_data: bool = True) -> None:
        """Restore the states of all ranks, whose number may have been different.

        same_data: continue at the stored position of the stream. For other data, positions have no
            meaning, and the stream starts from its beginning.
        """
        # the stream merges the positions of all ranks; callbacks have equal states on all ranks
        if same_data:
            self.stream.load_state(states_of_virtual_ranks([state["stream"] for state in states]))
        # older checkpoints lack these counts
        self.num_skipped = states[0].get("num_skipped", 0)
        self._seconds_before = states[0].get("seconds", 0.0)
        saved = states[0]["callbacks"]
        for callback in self.callbacks:
            if callback.name in saved:
                callback.load_state(saved[callback.name])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the callbacks on this rank, named `NAME/KEY`."""
        own = {}
        for callback in self.callbacks:
            tensors = callback.tensors()
            for key, tensor in tensors.items():
                assert callback.name, f"{type(callback).__name__} has tensors but no name"
                own[f"{callback.name}/{key}"] = tensor
        return own

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore the result of `tensors` on rank 0."""
        for callback in self.callbacks:
            prefix = f"{callback.name}/"
            own = {}
            for key, tensor in tensors.items():
                if key.startswith(prefix):
                    own[key.removeprefix(prefix)] = tensor
            # a callback that is not in the checkpoint starts afresh
            if own:
                callback.load_tensors(own)

    def train_step(self, work: _Work) -> StepReport:
        """Run one optimizer step: losses, gradients, a check by all ranks, clipping, update."""
        learning_rate = self.schedule.at(self.step, self.max_steps)
        progress = self.step / self.max_steps
        losses = []
        for batch in work.batches:
            # with a GPU, the stream pins batches, so this copy overlaps with computation
            batch = batch.to(self.engine.device, non_blocking=True)
            loss = self.engine.forward(batch, work.counts, progress)
            self.engine.backward(loss)
            losses.append(loss.detach())

        # All ranks must agree before the update. A rank that skipped the step alone would train a
        # different model from here on.
        healthy, loss_sum = self._over_all_ranks(losses)
        norm: float | None = None
        bad: list[str] = []
        if healthy:
            norm = self.engine.step(learning_rate)
        else:
            self.num_skipped += 1
            # the stream moves on, because the same batch would fail again
            self.engine.discard()
            bad = self._structures_on_all_ranks(work)
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
        """Yield the work of every step, endlessly.

        The stream is endless, because a rank that reached its end would leave the others waiting.
        """
        stream = self.stream.batches()
        while True:
            started = time.perf_counter()
            epoch = self.stream.epoch
            num_batches = self.accumulation * self.stream.num_virtual_ranks
            batches = list(islice(stream, num_batches))
            waited = time.perf_counter() - started

            # before counting, because per-atom labels count by weight
            for batch in batches:
                self.engine.train_module.weigh_atoms(batch)
            labels = torch.zeros(len(LABELS), dtype=torch.float64)
            for batch in batches:
                labels = labels + label_counts(batch)
            structures = sum(batch.num_structures for batch in batches)
            edges = sum(batch.num_edges for batch in batches)
            # The stop request is summed together with the counts. It needs no separate message, and
            # takes effect after the step that is about to start.
            others = torch.tensor([structures, edges, bool(self.stop.by)]).double()
            sums = torch.cat([labels, others])
            under_way = dist.all_reduce(sums, async_op=True) if self.engine.world_size > 1 else None
            yield _Work(batches, epoch, started, waited, sums, under_way)

    def _over_all_ranks(self, losses: list[Tensor]) -> tuple[bool, float]:
        """Whether losses and gradients of all ranks are finite, and the loss of the whole step."""
        loss = torch.stack(losses).sum().double().cpu()
        healthy = bool(torch.isfinite(loss)) and self.engine.gradients_finite()
        # both numbers in one message
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

    def _check_outcome(self) -> None:
        """Raise TrainingError if weights are not finite, or if all steps were skipped."""
        refuse_infinite_weights(self.engine.train_module, self.step)
        if 0 < self.step == self.num_skipped and self.step >= self.max_steps:
            raise TrainingError(
                f"nothing was learned: loss or gradients were not finite in any of {self.step} "
                "steps",
                remedy="look at the labels, for example with `evenfield data inspect`, or lower "
                "optimizer.learning_rate; or set compute.precision=float32 if it was another",
            )

    def _check_bad(self, bad: list[str]) -> None:
        """Raise TrainingError after too many skipped steps in a row."""
        self._bad_steps = self._bad_steps + 1 if bad else 0
        if self._bad_steps >= MAX_BAD_STEPS:
            raise TrainingError(
                f"loss or gradients were not finite in {MAX_BAD_STEPS} steps in a row, "
                f"last with {', '.join(bad[:5])}",
                remedy="lower optimizer.learning_rate, or look at these structures",
            )
