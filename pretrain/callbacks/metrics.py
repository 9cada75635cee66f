"""The metrics of a run: metrics.jsonl and a progress bar, and optionally TensorBoard and W&B.

The metrics come from the complete report of a step (`on_report`).
"""

from __future__ import annotations

import importlib.util
import math
import os
import resource
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ...core.files import file_errors, write_atomically
from ...core.rich_console import Console, PlainColumn
from ...core.settings import Settings
from ...model_zoo.evaluation.summary import ErrorSummary
from ..monitor.rows import BadRowError, line_of, lines_of, row_of
from .callback import Callback, Loop, StepReport


class LoggingConfig(Settings):
    """Where metrics are written, in addition to metrics.jsonl."""

    tensorboard: bool = Field(
        default=False,
        description="event files in the run folder",
        json_schema_extra={"resume": "applied"},
    )
    wandb_project: str | None = Field(
        default=None,
        description="project on Weights & Biases",
        json_schema_extra={"resume": "applied"},
    )

    @field_validator("tensorboard", "wandb_project")
    @classmethod
    def _is_installed(cls, value: object, info: Any) -> object:
        package = "tensorboard" if info.field_name == "tensorboard" else "wandb"
        if value and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"{package} is not installed: pip install {package}, or leave this key out"
            )
        return value


class Metrics(Callback):
    """Appends JSON lines to metrics.jsonl: one per step, and one per validation or noise record.

    Lines after the step from which a run resumes are dropped. A full disk does not stop the run:
    lines are kept in memory until they can be written.
    """

    def __init__(self, path: Path, start_step: int, console: Console | None = None) -> None:
        lines = lines_of(path.read_bytes()) if path.is_file() else []
        kept = []
        damaged = 0
        for line in lines:
            try:
                step = row_of(line)["step"]
            except (BadRowError, KeyError):
                damaged += 1
                continue
            if step <= start_step:
                kept.append(f"{line}\n")
        with file_errors(path):
            write_atomically(path, "".join(kept))

        # unbuffered, so that rows survive a kill
        self._file = path.open("ab", buffering=0)
        self._waiting = b""
        self._console = console or Console(quiet=True)
        if damaged:
            self._console.print(f"{path}: {damaged} damaged lines are left out")

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        warned = bool(self._waiting)
        self._waiting += line_of(row).encode()
        try:
            # A disk that fills up may accept only some of the bytes. The rest is written later, so
            # that lines stay complete.
            while self._waiting:
                written = self._file.write(self._waiting)
                self._waiting = self._waiting[written:]
        except OSError as error:
            if not warned:
                self._console.print(
                    f"{self._file.name}: {error.strerror}: "
                    "rows are kept in memory until they can be written",
                    style="red",
                )

    def on_report(self, loop: Loop, report: StepReport) -> None:
        if report.evaluation is not None:
            self.write({"event": "evaluation", "step": report.step, **report.evaluation.to_dict()})
        if report.noise is not None:
            self.write({"event": "noise", "step": report.step, "noise": report.noise})
        self.write(self._row(report))

    def _row(self, report: StepReport) -> dict[str, Any]:
        """The row of a step. Notes and skipped steps are also printed."""
        row: dict[str, Any] = {
            "event": "step",
            "step": report.step,
            "epoch": report.epoch,
            **figures(report),
            "seconds": report.seconds,
        }
        if report.note:
            row["note"] = report.note
            self._console.print(f"step {report.step}: {report.note}")
        if report.bad_structures:
            row["bad_structures"] = report.bad_structures
            names = ", ".join(report.bad_structures[:5])
            if len(report.bad_structures) > 5:
                names += " ..."
            self._console.print(
                f"step {report.step}: loss or gradient not finite, step skipped; "
                f"structures: {names}",
                # names of structures may look like markup
            )
        return row

    def close(self) -> None:
        self._file.close()


def figures(report: StepReport) -> dict[str, float | None]:
    """The numbers of a step that are plotted as curves.

    A loss that is not finite becomes None, because JSON has no NaN.
    """
    return {
        "loss": report.loss if math.isfinite(report.loss) else None,
        "learning_rate": report.learning_rate,
        "gradient_norm": report.gradient_norm,
        "structures_per_s": report.structures / report.seconds,
        "edges_per_s": report.edges / report.seconds,
        "data_wait_share": report.data_seconds / report.seconds,
        "memory_gib": peak_memory_gib(),
    }


def known_figures(report: StepReport) -> dict[str, float]:
    """The result of `figures` without entries that are None."""
    return {name: value for name, value in figures(report).items() if value is not None}


def peak_memory_gib() -> float:
    """Peak memory of this rank in GiB: on its GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kB on Linux


class ProgressBar(Callback):
    """A progress bar with steps, smoothed loss, speed, data wait, memory and time left."""

    def __init__(self, console: Console, max_steps: int, start_step: int) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            PlainColumn("{task.completed}/{task.total}  {task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=max_steps, completed=start_step, figures="")
        self._loss = math.nan  # the smoothed one, before the first step
        self._bar.start()

    def on_report(self, loop: Loop, report: StepReport) -> None:
        # a skipped step has no finite loss
        if math.isfinite(report.loss):
            if math.isnan(self._loss):
                self._loss = report.loss
            else:
                self._loss = 0.95 * self._loss + 0.05 * report.loss
        parts = (
            f"loss {self._loss:.3f}",
            f"{report.structures / report.seconds:.0f} structures/s",
            f"{report.edges / report.seconds:.0f} edges/s",
            f"data wait {report.data_seconds / report.seconds:.0%}",
            f"{peak_memory_gib():.1f} GiB",
        )
        self._bar.update(self._task, completed=report.step, figures="  ".join(parts))

    def close(self) -> None:
        self._bar.stop()


class TensorBoard(Callback):
    """Writes the metrics as TensorBoard event files.

    A resumed run purges events after the step from which it resumes.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        # an optional package, whose import takes seconds
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)

    def on_report(self, loop: Loop, report: StepReport) -> None:
        for name, value in known_figures(report).items():
            self._writer.add_scalar(f"train/{name}", value, report.step)
        if report.evaluation is not None:
            for name, value in evaluated(report.evaluation).items():
                self._writer.add_scalar(name, value, report.step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Callback):
    """Sends the metrics to Weights & Biases.

    A resumed run continues the same curve, because its id is stored in the run folder.
    """

    def __init__(self, folder: Path, project: str, config: dict[str, Any]) -> None:
        import wandb

        # a random id, because the name of a run need not be unique in a project
        identity = folder / "wandb-id.txt"
        if not identity.is_file():
            with file_errors(identity):
                write_atomically(identity, os.urandom(8).hex())
        self._run = wandb.init(
            project=project,
            name=folder.name,
            id=identity.read_text(),
            dir=str(folder),
            config=config,
            resume="allow",
        )

    def on_report(self, loop: Loop, report: StepReport) -> None:
        values = {f"train/{name}": value for name, value in known_figures(report).items()}
        if report.evaluation is not None:
            values |= evaluated(report.evaluation)
        self._run.log(values, step=report.step)

    def close(self) -> None:
        self._run.finish()


def evaluated(summary: ErrorSummary) -> dict[str, float]:
    """The numbers of a validation that are plotted as curves."""
    return {f"valid/{name}": value for name, value in summary.figures().items()}
