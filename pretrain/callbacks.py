"""What happens around the steps: metrics, progress bar, checkpoints, validation. Each does one thing."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..data_pipelines.collection import Collection
from ..data_pipelines.shards import write_atomically
from ..model_zoo.potential import Potential
from .checkpoints import CheckpointConfig, save_checkpoint
from .evaluation import evaluate, with_a_head


if TYPE_CHECKING:
    from .train import StepReport, Trainer


class Callback:
    """Called after every step and at the end, on every rank."""

    def on_step(self, trainer: Trainer, report: StepReport) -> None: ...

    def on_end(self, trainer: Trainer) -> None: ...


class Metrics(Callback):
    """One JSON line a step into metrics.jsonl; lines after the step that a run resumes from are dropped."""

    def __init__(self, path: Path, start_step: int) -> None:
        kept = []
        for line in path.read_text().splitlines() if path.is_file() else []:
            with suppress(ValueError):  # a kill may have cut off the last line
                if json.loads(line)["step"] <= start_step:
                    kept.append(line)
        write_atomically(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        row = {
            "event": "step",
            "step": report.step,
            "epoch": report.epoch,
            "loss": report.loss if math.isfinite(report.loss) else None,
            "learning_rate": report.learning_rate,
            "structures_per_s": report.structures / report.seconds,
            "edges_per_s": report.edges / report.seconds,
            "data_wait_share": report.data_seconds / report.seconds,
            "seconds": report.seconds,
        }
        self.write(row | ({"bad_structures": report.bad_structures} if report.bad_structures else {}))

    def on_end(self, trainer: Trainer) -> None:
        self._file.close()


class ProgressBar(Callback):
    """Steps, smoothed loss, speed, share of time spent waiting for data, time left."""

    def __init__(self, console: Console, max_steps: int, start_step: int) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  {task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=max_steps, completed=start_step, figures="")
        self._loss = math.nan
        self._bar.start()

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if math.isfinite(report.loss):
            self._loss = report.loss if math.isnan(self._loss) else 0.95 * self._loss + 0.05 * report.loss
        figures = (
            f"loss {self._loss:.3f}  {report.structures / report.seconds:.0f} structures/s  "
            f"{report.edges / report.seconds:.0f} edges/s  data wait {report.data_seconds / report.seconds:.0%}"
        )
        self._bar.update(self._task, completed=report.step, figures=figures)

    def on_end(self, trainer: Trainer) -> None:
        self._bar.stop()


class Checkpoints(Callback):
    """Saves every so many steps, and at the end, also when a signal ended the run."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder, self.config = folder, config
        self._saved = -1

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % self.config.every == 0:
            self._save(trainer)

    def on_end(self, trainer: Trainer) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.step != self._saved:
            save_checkpoint(self.folder, trainer.step, trainer.engine, trainer.state(), self.config.keep)
            self._saved = trainer.step


class Validation(Callback):
    """Errors on the validation split every so many steps, into the metrics and onto the screen (rank 0)."""

    def __init__(
        self, potential: Potential, data: Collection, metrics: Metrics, console: Console, every: int, limit: int
    ) -> None:
        self.potential, self.data, self.metrics = potential, data, metrics
        self.console, self.every, self.limit = console, every, limit
        self.summary: dict[str, Any] = {}

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % self.every:
            return
        structures = with_a_head(self.potential, self.data.structures("valid"))
        self.summary = summary = evaluate(self.potential, structures, "valid", self.limit)
        self.potential.train()
        self.metrics.write({"event": "evaluation", "step": report.step, **summary})
        self.console.print(f"step {report.step}: valid " + ", ".join(_figures(summary)))


def _figures(summary: dict[str, Any]) -> list[str]:
    """The errors of which there are labels, to be read."""
    figures = []
    if summary["energy_mae_per_atom"] is not None:
        figures.append(f"energy MAE {1000 * summary['energy_mae_per_atom']:.1f} meV/atom")
    if summary["force_mae"] is not None:
        figures.append(f"force MAE {summary['force_mae']:.3f} eV/A (RMS of the labels {summary['force_rms']:.3f})")
        figures.append(f"worst element {summary['worst_element']} {summary['worst_element_force_mae']:.3f}")
    return figures
