"""What a run folder says about a training that goes on, has stopped or has ended; read by the page that shows it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml


SILENT = 60.0  # s without a row, or so many typical steps, after which a run is called silent
SILENT_STEPS = 30


@dataclass(frozen=True)
class RunView:
    """A run at one instant; steps and evaluations are rows of metrics.jsonl, the newest last."""

    folder: Path
    max_steps: int
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    seconds_since: float  # the last row
    ended: bool  # its model folder is there
    rank_hung: bool  # a rank left the stacks of its threads behind

    @classmethod
    def read(cls, folder: Path) -> RunView:
        """Raises ValueError for a folder that holds no run."""
        metrics, config = folder / "metrics.jsonl", folder / "config.yaml"
        if not metrics.is_file() or not config.is_file():
            raise ValueError(f"{folder}: holds no run: name the `out` of an `evenfield pretrain`")
        rows = list(_rows(metrics))
        hangs = [
            path
            for path in folder.glob("hang-rank-*.txt")
            if len(path.read_text().splitlines()) > 1
        ]
        return cls(
            folder=folder,
            max_steps=int(yaml.safe_load(config.read_text())["max_steps"]),
            steps=[row for row in rows if row["event"] == "step"],
            evaluations=[row for row in rows if row["event"] == "evaluation"],
            seconds_since=max(0.0, time.time() - metrics.stat().st_mtime),
            ended=(folder / "model" / "manifest.json").is_file(),
            rank_hung=bool(hangs),
        )

    @property
    def step(self) -> int:
        """The last one, 0 before the first."""
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.ended:
            return "ended"
        if self.rank_hung:
            return "a rank hung and was ended"
        if not self.steps:
            return "starting"
        if self.seconds_since > max(SILENT, SILENT_STEPS * self.typical("seconds")):
            return "silent: stopped, killed or waiting in a queue"
        return "evaluating" if self.step >= self.max_steps else "training"

    def typical(self, name: str, last: int = 100) -> float:
        """Median of a figure over the last steps; NaN where no step has it."""
        values = self.column(name)[-last:]
        values = values[np.isfinite(values)]
        return float(np.median(values)) if len(values) else np.nan

    def column(self, name: str) -> np.ndarray:
        """A figure of all steps (n,), NaN where a step lacks it."""
        return np.array(
            [np.nan if row.get(name) is None else row[name] for row in self.steps], dtype=float
        )

    def evaluated(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a figure of the validations that have it."""
        rows = [(row["step"], row[name]) for row in self.evaluations if row.get(name) is not None]
        return np.array([step for step, _ in rows]), np.array(
            [value for _, value in rows], dtype=float
        )

    @property
    def seconds_left(self) -> float:
        """To the last step at the pace of the last hundred, validations and saves included as far as they are seen."""
        return (self.max_steps - self.step) * self.typical("seconds")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Whole rows; the last line may be in the writing."""
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
