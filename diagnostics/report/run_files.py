"""Read a run folder for a report: metrics, summary of errors, and pairs for parity plots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ...core.errors import EvenfieldError
from ...model_zoo.evaluation.predictions import ParityPairs
from ...model_zoo.evaluation.summary import ErrorSummary
from ...pretrain.monitor.run_metrics import RunMetrics


RUN_FILES = ("metrics.jsonl", "evaluation.json", "predictions.npz")
MADE_BY = {
    "metrics.jsonl": "evenfield pretrain",
    "evaluation.json": "evenfield pretrain",
    "predictions.npz": "evenfield pretrain",
    "fewshot.json": "evenfield finetune curve",
}


class ReportError(EvenfieldError):
    """The report cannot be made from the given files or names."""


@dataclass(frozen=True)
class Run:
    """Everything that a report shows about one pretraining run."""

    name: str
    folder: Path
    metrics: RunMetrics
    evaluation: ErrorSummary
    parity: ParityPairs

    @classmethod
    def read(cls, name: str, folder: Path) -> Self:
        """Read the RUN_FILES of a run folder.

        Raises ReportError if a file is missing or the run has no steps. The readers raise their own
        errors for a damaged file.
        """
        for file_name in RUN_FILES:
            if not (folder / file_name).is_file():
                raise ReportError(
                    "is missing",
                    file=folder / file_name,
                    remedy=f"`{MADE_BY[file_name]}` writes it",
                )
        metrics = RunMetrics.read(folder / "metrics.jsonl")
        if not metrics.steps:
            raise ReportError(
                "no step was taken",
                file=folder / "metrics.jsonl",
                remedy="wait for the run, or name another",
            )
        return cls(
            name,
            folder,
            metrics,
            ErrorSummary.read(folder / "evaluation.json"),
            ParityPairs.read(folder / "predictions.npz"),
        )
