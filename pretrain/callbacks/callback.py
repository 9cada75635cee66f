"""The protocol of callbacks: what the loop calls, when, and what a callback may see of the loop.

The order of the list of callbacks has no meaning. What depends on order is a phase of its own: the
loop calls one hook of all callbacks before it calls the next hook of any. After every step:

    on_step       the weights have just been updated       averages, watchdog
    on_guard      look for a failure, undo it or give up   collapse guard, rollback
    on_evaluate   measure, and add figures to the report   validation, learned noise
    on_report     the report is complete: write it or act  metrics, progress bar, element weights
    on_save       save everything that is now known        checkpoints

At the end come `on_end` and, once more, `on_save`. Within a phase a callback must not depend on
what another one does in the same phase.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ...model_zoo.evaluation.summary import ErrorSummary
from ..loop.engine import Engine
from ..loop.signals import StopRequest


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

    gradient_norm: float | None = None
    """Before clipping; None for a step that was not taken."""

    bad_structures: list[str] = field(default_factory=list)
    """The structures of a step that was not taken because its loss or gradients were not finite."""

    note: str = ""
    """A message of a guard to the user."""

    evaluation: ErrorSummary | None = None
    """Summary of the validation at this step, on rank 0."""

    noise: dict[str, dict[str, float]] | None = None
    """Learned noise by level of theory and label, on rank 0, at the steps that record it."""


class Loop(Protocol):
    """What a callback may read and change of the training loop."""

    engine: Engine
    step: int
    max_steps: int
    stop: StopRequest

    def state(self) -> dict[str, Any]:
        """State of stream and callbacks on this rank, JSON-ready."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that callbacks keep, under `NAME/KEY`."""
        ...

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Give the tensors of a checkpoint back to the callbacks."""
        ...

    def evaluated_weights(self) -> AbstractContextManager[object]:
        """Inside the block the potential has the weights that are evaluated and exported."""
        ...


class Callback:
    """Base of all callbacks; every hook runs on every rank that holds the callback."""

    name: str = ""
    """The key of its state in a checkpoint, unique in a run; empty for a callback without state."""

    def on_step(self, loop: Loop, report: StepReport) -> None:
        """The weights have just been updated, or the step was skipped (`report.bad_structures`)."""

    def on_guard(self, loop: Loop, report: StepReport) -> None:
        """Look for a failure: set the run back, or raise TrainingError."""

    def on_evaluate(self, loop: Loop, report: StepReport) -> None:
        """Measure the weights and add the result to the report."""

    def on_report(self, loop: Loop, report: StepReport) -> None:
        """The report is complete: write it, or act on it."""

    def on_save(self, loop: Loop, *, last: bool) -> None:
        """All other hooks of the step, and at the end of training `on_end`, have run."""

    def on_end(self, loop: Loop) -> None:
        """No further step will be taken, because the run is finished or was asked to stop."""

    def close(self) -> None:
        """Release files and threads; called after an error too."""

    def evaluated_weights(self) -> AbstractContextManager[object]:
        """Put other weights in place while the potential is evaluated or exported."""
        return nullcontext()

    def state(self) -> dict[str, Any]:
        """What it needs back at a resume, JSON-ready; the same on all ranks."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that it needs back at a resume or a rollback, on the CPU; rank 0's are saved."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` returned."""
