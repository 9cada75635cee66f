"""The only reader of metrics.jsonl, which `pretrain/callbacks/metrics.py` writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ...core.errors import EvenfieldError
from ...core.files import file_errors
from ...model_zoo.evaluation.summary import ErrorSummary, SummaryError
from .rows import BadRowError, lines_of, row_of


class BadMetricsError(EvenfieldError):
    """A metrics.jsonl is damaged."""


ValidationFigure = Callable[[ErrorSummary], float | None]
"""A function that returns a number of a validation, such as the force MAE, or None."""


@dataclass(frozen=True)
class Validation:
    """Errors on the validation split after a step."""

    step: int
    errors: ErrorSummary


@dataclass(frozen=True)
class RunMetrics:
    """The content of metrics.jsonl: rows of steps and validations, both in the order of steps."""

    steps: list[dict[str, Any]]
    """Rows with event "step"; see `pretrain.callbacks.metrics.figures` for their numbers."""
    validations: list[Validation]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a metrics file. An incomplete last line, after a kill for example, is ignored.

        A resumed run may have written a step twice; the last row counts. Raises BadMetricsError for
        a damaged complete line, and FileError if there is no file.
        """
        with file_errors(path, remedy="`evenfield pretrain` writes it"):
            lines = lines_of(path.read_bytes())

        # by step, so that a later row replaces an earlier one
        steps: dict[int, dict[str, Any]] = {}
        validations: dict[int, Validation] = {}
        for number, line in enumerate(lines, start=1):
            try:
                row = row_of(line)
                if row["event"] == "step":
                    steps[row["step"]] = row
                elif row["event"] == "evaluation":
                    validations[row["step"]] = Validation(row["step"], ErrorSummary.from_dict(row))
            except (BadRowError, ValueError, LookupError, TypeError, SummaryError) as error:
                raise BadMetricsError(
                    f"line {number} is damaged ({error})",
                    file=path,
                    remedy="remove the line",
                ) from error

        ordered_steps = [steps[step] for step in sorted(steps)]
        ordered_validations = [validations[step] for step in sorted(validations)]
        return cls(ordered_steps, ordered_validations)

    @property
    def last_step(self) -> int:
        """The last optimizer step; 0 before the first."""
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def seconds(self) -> float:
        """Time spent in steps, including waiting for data."""
        return float(np.nansum(self.column("seconds")))

    @property
    def structures_seen(self) -> float:
        """Structures used in all steps; repeated structures count repeatedly."""
        return float(np.nansum(self.column("seconds") * self.column("structures_per_s")))

    def column(self, name: str) -> np.ndarray:
        """A quantity of all steps, (n,); NaN for steps without it."""
        # a loss that is not finite is null, because JSON has no NaN
        values = [row.get(name) for row in self.steps]
        return np.array([np.nan if value is None else value for value in values], dtype=float)

    def typical(self, name: str, last: int | None = None) -> float:
        """Median of a quantity over all steps, or over the last ones; NaN if no step has it."""
        values = self.column(name)
        if last is not None:
            values = values[-last:]
        known = values[np.isfinite(values)]
        return float(np.median(known)) if len(known) else np.nan

    def validated(self, figure: ValidationFigure) -> tuple[np.ndarray, np.ndarray]:
        """Steps (n,) and values (n,) of a figure, for validations that have it."""
        found = []
        for validation in self.validations:
            value = figure(validation.errors)
            if value is not None:
                found.append((validation.step, value))
        # an empty list would have no columns
        table = np.array(found, dtype=float).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def remarks(self) -> list[str]:
        """Skipped steps and notes of callbacks, one line each, the newest first."""
        texts = []
        for row in reversed(self.steps):
            if row.get("bad_structures"):
                names = ", ".join(row["bad_structures"][:5])
                texts.append(
                    f"step {row['step']}: loss or gradient not finite, left out; "
                    f"structures: {names}"
                )
            if row.get("note"):
                texts.append(f"step {row['step']}: {row['note']}")
        return texts
