"""The training loop, for pretraining and for every fine-tuning by gradients.

The trainer knows time: which batches make a step, when a step is skipped, when the run ends. What a
step computes is the train module's (train_module.py); what happens around it, the callbacks'.
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
    """What the ranks do in one step: this rank's own batches and seconds, and sums over all ranks.

    The sums are communicated while the first forward computes; reading one waits for them.
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
        """Numbers of labels of each registered kind, (L,) float64."""
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
    """Takes steps, counts them and calls its callbacks, whose order has no meaning (callback.py).

    It starts at `start_step`, with the stream where the stream is.
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
        """accumulation: batches in a step, for each rank or virtual rank of the stream.

        stop: where a signal is noted, for a caller that listens to signals already.
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
        """Steps that were not taken, those before a resume included."""
        self._bad_steps = 0
        self._seconds_before = 0.0
        self._began: float | None = None

    @property
    def seconds(self) -> float:
        """How long the training has run, parts before a resume included."""
        if self._began is None:
            return self._seconds_before
        return self._seconds_before + time.perf_counter() - self._began

    def fit(self) -> bool:
        """Train to `max_steps`; False when a signal or a callback ended the run early.

        Callbacks are closed in any case, after an error too.

        Raises TrainingError when the weights are not finite, or when no step at all was taken.
        """
        self._began = time.perf_counter()
        with listening(self.stop), ExitStack() as closing:
            for callback in self.callbacks:
                closing.callback(callback.close)

            # a resumed run that was finished already takes no step, but still reaches its end
            for work in islice(self._work(), max(0, self.max_steps - self.step)):
                report = self.train_step(work)
                self._call_callbacks(report)
                # all ranks see the same sum, so all of them leave after the same step
                if work.stop:
                    break
            self._check_outcome()
            for callback in self.callbacks:
                callback.on_end(self)
            for callback in self.callbacks:
                callback.on_save(self, last=True)
        return self.step >= self.max_steps

    def _call_callbacks(self, report: StepReport) -> None:
        """One phase after the other, each of all callbacks."""
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
        """Inside the block the potential has the weights that are evaluated and exported."""
        with ExitStack() as replaced:
            for callback in self.callbacks:
                replaced.enter_context(callback.evaluated_weights())
            yield

    def state(self) -> dict[str, Any]:
        """What this rank needs back at a resume, JSON-ready."""
        # by name, so that a state finds its callback whatever else the resumed run has
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
        """Take up the states of all ranks, whose number may have been another one.

        same_data: go on where the stream was. Positions in other data would mean nothing.
        """
        # a stream merges the positions of all; callbacks have the same state on every rank
        if same_data:
            self.stream.load_state(states_of_virtual_ranks([state["stream"] for state in states]))
        # older checkpoints do not count
        self.num_skipped = states[0].get("num_skipped", 0)
        self._seconds_before = states[0].get("seconds", 0.0)
        saved = states[0]["callbacks"]
        for callback in self.callbacks:
            if callback.name in saved:
                callback.load_state(saved[callback.name])

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that the callbacks of this rank need back, under `NAME/KEY`."""
        own = {}
        for callback in self.callbacks:
            tensors = callback.tensors()
            for key, tensor in tensors.items():
                assert callback.name, f"{type(callback).__name__} has tensors but no name"
                own[f"{callback.name}/{key}"] = tensor
        return own

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` returned on rank 0."""
        for callback in self.callbacks:
            prefix = f"{callback.name}/"
            own = {}
            for key, tensor in tensors.items():
                if key.startswith(prefix):
                    own[key.removeprefix(prefix)] = tensor
            # a callback that the checkpoint does not know starts afresh
            if own:
                callback.load_tensors(own)

    def train_step(self, work: _Work) -> StepReport:
        """One optimizer step: losses, gradients, a check by all ranks, clipping and update."""
        learning_rate = self.schedule.at(self.step, self.max_steps)
        progress = self.step / self.max_steps
        losses = []
        for batch in work.batches:
            # the stream pins batches where there is a GPU, so this copy overlaps with computing
            batch = batch.to(self.engine.device, non_blocking=True)
            loss = self.engine.forward(batch, work.counts, progress)
            self.engine.backward(loss)
            losses.append(loss.detach())

        # Before the update, and agreed by all ranks: one rank that skips the step alone would
        # train another model from here on.
        healthy, loss_sum = self._over_all_ranks(losses)
        norm: float | None = None
        bad: list[str] = []
        if healthy:
            norm = self.engine.step(learning_rate)
        else:
            self.num_skipped += 1
            # the stream goes on: the same batch would fail again
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
        """The work of every step, without end.

        The stream is endless: a rank that came to an end would leave the others waiting.
        """
        stream = self.stream.batches()
        while True:
            started = time.perf_counter()
            epoch = self.stream.epoch
            num_batches = self.accumulation * self.stream.num_virtual_ranks
            batches = list(islice(stream, num_batches))
            waited = time.perf_counter() - started

            # before counting, because labels of atoms count by weight
            for batch in batches:
                self.engine.train_module.weigh_atoms(batch)
            labels = torch.zeros(len(LABELS), dtype=torch.float64)
            for batch in batches:
                labels = labels + label_counts(batch)
            structures = sum(batch.num_structures for batch in batches)
            edges = sum(batch.num_edges for batch in batches)
            # The request to stop is summed with the counts: it costs no message of its own, and
            # takes effect after the step that is beginning.
            others = torch.tensor([structures, edges, bool(self.stop.by)]).double()
            sums = torch.cat([labels, others])
            under_way = dist.all_reduce(sums, async_op=True) if self.engine.world_size > 1 else None
            yield _Work(batches, epoch, started, waited, sums, under_way)

    def _over_all_ranks(self, losses: list[Tensor]) -> tuple[bool, float]:
        """Whether losses and gradients of all ranks are finite, and the whole step's loss."""
        loss = torch.stack(losses).sum().double().cpu()
        healthy = bool(torch.isfinite(loss)) and self.engine.gradients_finite()
        # both in one message
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
        """A training ends with finite weights that have learned, or with an error."""
        refuse_infinite_weights(self.engine.train_module, self.step)
        if 0 < self.step == self.num_skipped and self.step >= self.max_steps:
            raise TrainingError(
                f"nothing was learned: loss or gradients were not finite in any of {self.step} "
                "steps",
                remedy="look at the labels, for example with `evenfield data inspect`, or lower "
                "optimizer.learning_rate; or set compute.precision=float32 if it was another",
            )

    def _check_bad(self, bad: list[str]) -> None:
        """Give up after too many skipped steps in a row: the weights must be beyond repair."""
        self._bad_steps = self._bad_steps + 1 if bad else 0
        if self._bad_steps >= MAX_BAD_STEPS:
            raise TrainingError(
                f"loss or gradients were not finite in {MAX_BAD_STEPS} steps in a row, "
                f"last with {', '.join(bad[:5])}",
                remedy="lower optimizer.learning_rate, or look at these structures",
            )
