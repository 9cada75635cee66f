"""The state of a run at one moment, from its folder: training, silent or ended."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ...core.errors import EvenfieldError
from ...core.files import file_errors
from ...core.yaml_text import YamlTextError, read_yaml_text
from .run_metrics import RunMetrics


# a run is silent if no new row was written for this many seconds and this many typical steps
SILENT_SECONDS = 60.0
SILENT_STEPS = 30
RECENT_STEPS = 100
WATCH_PAGE = "watch.html"  # in the folder of the run


class NoRunError(EvenfieldError):
    """A folder does not contain a valid training run."""


def _max_steps(config: Path) -> int:
    """`max_steps` from the stored settings of a run. Raises NoRunError if they are invalid."""
    with file_errors(config):
        text = config.read_text(encoding="utf-8", errors="replace")
    try:
        settings = read_yaml_text(text)
    except YamlTextError as error:
        raise NoRunError(f"is no valid YAML ({error.message})", file=config) from None
    steps = settings.get("max_steps") if isinstance(settings, dict) else None
    if not isinstance(steps, int):
        raise NoRunError("states no number of max_steps", file=config)
    return steps


@dataclass(frozen=True)
class RunView:
    """The state of a run at one moment."""

    folder: Path
    max_steps: int
    metrics: RunMetrics
    seconds_since: float
    """Seconds since the last row was written."""
    ended: bool
    """Whether the model folder is complete."""
    rank_hung: bool
    """Whether a rank hung and wrote the stacks of its threads."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a run folder. Raises NoRunError for a folder that holds no run."""
        metrics = folder / "metrics.jsonl"
        config = folder / "config.yaml"
        if not metrics.is_file() or not config.is_file():
            raise NoRunError(
                "holds no run", file=folder, remedy="name the `out` of an `evenfield pretrain`"
            )
        with file_errors(folder):
            age = time.time() - metrics.stat().st_mtime
            # the first line is a heading, written when the watchdog starts
            hung = any(
                len(path.read_text().splitlines()) > 1 for path in folder.glob("hang-rank-*.txt")
            )
        return cls(
            folder=folder,
            max_steps=_max_steps(config),
            metrics=RunMetrics.read(metrics),
            seconds_since=max(0.0, age),
            # the manifest is the last file of a model folder
            ended=(folder / "model" / "manifest.json").is_file(),
            rank_hung=hung,
        )

    @property
    def step(self) -> int:
        """The last step; 0 before the first."""
        return self.metrics.last_step

    @property
    def state(self) -> str:
        """A short description of the state of the run."""
        if self.ended:
            return "ended"
        if self.rank_hung:
            return "a rank hung and was ended"
        if not self.metrics.steps:
            return "starting"
        # a step of a large model may take minutes
        patience = SILENT_STEPS * self.typical("seconds")
        if self.seconds_since > max(SILENT_SECONDS, patience):
            return "silent: stopped, killed or waiting in a queue"
        return "evaluating" if self.step >= self.max_steps else "training"

    def typical(self, name: str) -> float:
        """Median of a quantity over recent steps; NaN if no step has it."""
        return self.metrics.typical(name, RECENT_STEPS)

    @property
    def seconds_left(self) -> float:
        """Time to the last step at the recent pace, without validations."""
        return (self.max_steps - self.step) * self.typical("seconds")
