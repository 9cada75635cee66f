"""What happens around the steps: checkpoints and validation here, figures in metrics.py, guards in guards.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ...data_pipelines.stream.collection import Collection
from ...model_zoo.evaluation.evaluation import evaluate, with_a_head
from ...model_zoo.evaluation.summary import ErrorSummary
from ...model_zoo.potential.potential import Potential
from ..checkpoints.checkpoints import CheckpointConfig, save_checkpoint


if TYPE_CHECKING:
    from ..loop.noise import NoiseScales
    from ..loop.trainer import StepReport, Trainer
    from .average import WeightAverage
    from .metrics import Metrics


class Callback:
    """Called after every step and at the end, on every rank; `on_evaluation` on rank 0; `close` also after an error."""

    def on_step(self, trainer: Trainer, report: StepReport) -> None: ...

    def on_evaluation(self, step: int, summary: ErrorSummary) -> None: ...

    def on_end(self, trainer: Trainer) -> None: ...

    def close(self) -> None: ...

    def state(self) -> dict[str, Any]:
        """What it must be given back at a resume, JSON-ready."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


class Checkpoints(Callback):
    """Saves every so many steps, and at the end, also when a signal ended the run.

    A save that fails on the disk is told and tried again at the next turn; `problem` holds what went wrong last.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        tell: Callable[[str], None],
        average: WeightAverage | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.config, self.tell, self.average, self.about = (
            folder,
            config,
            tell,
            average,
            about,
        )
        self.problem: str | None = None
        self._saved = -1

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % self.config.every == 0:
            self._save(trainer)

    def on_end(self, trainer: Trainer) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.step == self._saved:
            return
        average = self.average.tensors() if self.average else None
        engine, keep = trainer.engine, self.config.keep
        self.problem = save_checkpoint(
            self.folder, trainer.step, engine, trainer.state(), keep, average, self.about
        )
        if self.problem is None:
            self._saved = trainer.step
        else:
            self.tell(
                f"step {trainer.step}: NOT saved: {self.problem}; the checkpoints before are as they were"
            )


class Validation(Callback):
    """Errors on the validation split every so many steps, into the metrics and onto the screen (rank 0)."""

    def __init__(
        self,
        potential: Potential,
        data: Collection,
        metrics: Metrics,
        console: Console,
        every: int,
        limit: int,
        average: WeightAverage | None = None,
    ) -> None:
        self.potential, self.data, self.metrics = potential, data, metrics
        self.console, self.every, self.limit = console, every, limit
        self.average = average
        self.summary: ErrorSummary | None = None

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % self.every:
            return
        structures = with_a_head(self.potential, self.data.structures("valid"))
        averaged: AbstractContextManager[None] = (
            self.average.applied() if self.average else nullcontext()
        )
        with averaged:
            self.summary = summary = evaluate(self.potential, structures, "valid", self.limit)
        self.potential.train()
        self.metrics.write({"event": "evaluation", "step": report.step, **summary.to_dict()})
        for callback in trainer.callbacks:
            callback.on_evaluation(report.step, summary)
        self.console.print(f"step {report.step}: valid " + ", ".join(_figures(summary)))


class NoiseFigures(Callback):
    """What noise has been learned, into the metrics every so many steps and at the end (rank 0)."""

    def __init__(self, noise: NoiseScales, metrics: Metrics, every: int) -> None:
        self.noise, self.metrics, self.every = noise, metrics, every

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % self.every == 0 or report.step == trainer.max_steps:
            self.metrics.write({"event": "noise", "step": report.step, "noise": self.noise.table()})


def _figures(summary: ErrorSummary) -> list[str]:
    """The errors of which there are labels, to be read."""
    figures = []
    if summary.energy_mae_per_atom is not None:
        figures.append(f"energy MAE {1000 * summary.energy_mae_per_atom:.1f} meV/atom")
    if summary.force_mae is not None:
        figures.append(
            f"force MAE {summary.force_mae:.3f} eV/A (RMS of the labels {summary.force_rms:.3f})"
        )
        figures.append(
            f"worst element {summary.worst_element} {summary.worst_element_force_mae:.3f}"
        )
    return figures
