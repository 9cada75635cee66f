"""The callback interface: which hooks the loop calls and when, and what a callback may use.

The order of callbacks in the list does not matter. Operations whose order matters are in separate
phases: the loop calls one hook of all callbacks before it calls the next hook of any. After every
step:

    on_step       the weights have just been updated       averages, watchdog
    on_guard      look for a failure, undo it or give up   collapse guard, rollback
    on_evaluate   measure, and add figures to the report   validation, learned noise
    on_report     the report is complete: write it or act  metrics, progress bar, element weights
    on_save       save everything that is now known        checkpoints

At the end, the loop calls `on_end` and then `on_save` once more. A callback must not depend on what
another callback does in the same phase.
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
    """Measurements of one optimizer step. Loss and counts are summed over all ranks."""

    step: int
    epoch: int
    loss: float
    learning_rate: float
    structures: int
    edges: int
    data_seconds: float
    seconds: float

    gradient_norm: float | None = None
    """The norm before clipping; None for a skipped step."""

    bad_structures: list[str] = field(default_factory=list)
    """The structures of a step that was skipped because loss or gradients were not finite."""

    note: str = ""
    """A message from a guard to the user."""

    evaluation: ErrorSummary | None = None
    """Validation errors at this step, on rank 0; None without a validation."""

    noise: dict[str, dict[str, float]] | None = None
    """Learned noise by level of theory and label, on rank 0; None if this step does not record
    it."""


class Loop(Protocol):
    """The part of the training loop that a callback may read and change."""

    engine: Engine
    step: int
    max_steps: int
    stop: StopRequest

    def state(self) -> dict[str, Any]:
        """The state of stream and callbacks on this rank, JSON-ready."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of all callbacks, named `NAME/KEY`."""
        ...

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Return the tensors of a checkpoint to the callbacks."""
        ...

    def evaluated_weights(self) -> AbstractContextManager[object]:
        """Inside the block, the potential has the weights that are evaluated and exported."""
        ...


class Callback:
    """Base class of callbacks. Every hook runs on every rank that holds the callback."""

    name: str = ""
    """The key of its state in checkpoints, unique in a run; empty for a callback without state."""

    def on_step(self, loop: Loop, report: StepReport) -> None:
        """Called after the weights were updated, or the step skipped (`report.bad_structures`)."""

    def on_guard(self, loop: Loop, report: StepReport) -> None:
        """Look for a failure. Roll the run back, or raise TrainingError."""

    def on_evaluate(self, loop: Loop, report: StepReport) -> None:
        """Evaluate the current weights and add the result to the report."""

    def on_report(self, loop: Loop, report: StepReport) -> None:
        """Write the report, which is now complete, or act on it."""

    def on_save(self, loop: Loop, *, last: bool) -> None:
        """Save state. All other hooks of the step have run, and `on_end` too if `last` is set."""

    def on_end(self, loop: Loop) -> None:
        """Called when no more steps follow, because the run is finished or was asked to stop."""

    def close(self) -> None:
        """Release files and threads. Also called after an error."""

    def evaluated_weights(self) -> AbstractContextManager[object]:
        """Replace the weights while the potential is evaluated or exported."""
        return nullcontext()

    def state(self) -> dict[str, Any]:
        """The state to restore at a resume, JSON-ready and equal on all ranks."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `state`."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to restore at a resume or rollback, on the CPU. Only rank 0's are saved."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore the result of `tensors`."""
