"""The content of fewshot.json: errors by strategy and number of structures.

`curve.py` writes the file, and `curve_plot.py` draws it. The report and the command line read it
with `FewShotCurve`. `FewShotCurve.times_fewer` defines what "N times fewer structures" means.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from ...core.destination import FileKind
from ...core.errors import EvenfieldError
from ...core.files import file_errors
from ...core.numbers import table_cell
from ...core.seals import SEAL, digest_of, sealed


BASELINE = "scratch"
# the pretrained model, whose error does not depend on the number of structures
UNCHANGED = "pretrained"
STRATEGY_LABELS = {
    "pretrained": "pretrained, unchanged",
    "step0": "E0 refit only (step 0)",
    "refit": "closed-form refit",
    "wide": "wide closed-form refit",
    "scratch": "trained from scratch",
}
ErrorName = Literal["force_mae", "energy_mae_per_atom"]


class FewShotFileError(EvenfieldError):
    """The file is not a few-shot curve, or it is damaged."""


class FewShotRow(BaseModel):
    """One fine-tuning: strategy, number of structures, seed of the draw, and its test errors."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_structures: int
    strategy: str
    seed: int
    force_mae: float | None
    """eV/A; None if the test structures have no forces."""
    energy_mae_per_atom: float | None
    """eV/atom; None if the test structures have no energies."""
    force_rms: float | None = None
    """RMS of the force labels of the test structures, eV/A."""
    seconds: float | None = None
    """Time of the fine-tuning; None if it was not recorded."""

    def __str__(self) -> str:
        parts = []
        if self.energy_mae_per_atom is not None:
            parts.append(f"{1000 * self.energy_mae_per_atom:.1f} meV/atom")
        if self.force_mae is not None:
            parts.append(f"{self.force_mae:.3f} eV/A")
        if self.seconds is not None:
            parts.append(f"{self.seconds:.0f} s")
        return " ".join(parts)


class FewShotCurve(BaseModel):
    """The content of fewshot.json: fine-tunings of one pretrained model on one target chemistry."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    target: str
    force_rms: float | None
    """RMS of the force labels of the test structures, eV/A."""
    origin: dict[str, Any] = {}
    """Model, data and settings: rows with another origin do not belong to the same curve."""
    rows: list[FewShotRow]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a file.

        Raises FewShotFileError if it is not a curve or is damaged, FileError if it cannot be read.
        """
        with file_errors(path, remedy="`evenfield finetune curve` writes it"):
            text = Path(path).read_bytes()
        try:
            curve = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise FewShotFileError(
                f"not a few-shot curve ({place}: {first['msg']})",
                file=path,
                remedy="write it with `evenfield finetune curve`",
            ) from error

        # The next run keeps these rows, and a report draws them. Without the checksum, nothing
        # would notice a changed digit.
        content = json.loads(text)
        if content.get(SEAL) != digest_of(content):
            raise FewShotFileError(
                "does not match its checksum: it is damaged, or was edited",
                file=path,
                remedy="restore it, or remove it and compute the curve again",
            )
        return curve

    def to_json(self) -> str:
        """The text of fewshot.json."""
        return json.dumps(sealed(self.model_dump()), indent=1)

    @property
    def strategies(self) -> list[str]:
        """Names of the strategies, in the order of the file."""
        return list(dict.fromkeys(row.strategy for row in self.rows))

    @property
    def sizes(self) -> list[int]:
        """Numbers of structures, ascending."""
        return sorted({row.num_structures for row in self.rows})

    def errors(self, strategy: str, error: ErrorName) -> dict[int, list[float]]:
        """Number of structures, ascending -> errors of all seeds; sizes without errors are absent.

        Errors in eV/A or eV/atom.
        """
        found: dict[int, list[float]] = {}
        for row in self.rows:
            value = getattr(row, error)
            if row.strategy == strategy and value is not None:
                found.setdefault(row.num_structures, []).append(value)
        return dict(sorted(found.items()))

    def medians(self, strategy: str, error: ErrorName) -> dict[int, float]:
        """Number of structures, ascending -> median error over the seeds."""
        return {
            size: float(np.median(values)) for size, values in self.errors(strategy, error).items()
        }

    def structures_needed(self, strategy: str, goal: float, error: ErrorName) -> float | None:
        """Number of structures at which the median error of a strategy reaches `goal`.

        Between two sizes, a power law is assumed. If the smallest size already reaches the goal,
        that size is returned, which is an upper bound. None if no size reaches the goal.
        """
        medians = self.medians(strategy, error)
        sizes = list(medians)
        if not sizes:
            return None
        if medians[sizes[0]] <= goal:
            return float(sizes[0])

        # error ~ size^-a: interpolate linearly in the logarithms
        for low, high in itertools.pairwise(sizes):
            if medians[high] <= goal:
                fall = math.log(medians[low] / medians[high])
                share = math.log(medians[low] / goal) / fall
                return float(low * (high / low) ** share)
        return None

    def times_fewer(self, strategy: str, error: ErrorName = "force_mae") -> float | None:
        """How many times fewer structures a strategy needs than training from scratch.

        The goal is the median error of training from scratch with the most structures. None if the
        strategy does not reach it, or if the curve has no training from scratch.
        """
        baseline = self.medians(BASELINE, error)
        if not baseline:
            return None
        most = max(baseline)
        needed = self.structures_needed(strategy, baseline[most], error)
        # "pretrained" needs no structures at all, for which there is no factor
        return most / needed if needed else None

    def table(self, error: ErrorName) -> tuple[list[str], list[list[str]]]:
        """Header and rows: medians over the seeds, with the range if there are several seeds."""
        columns = {strategy: self.errors(strategy, error) for strategy in self.strategies}
        rows = []
        for size in self.sizes:
            cells = [_median_and_range(errors.get(size, [])) for errors in columns.values()]
            rows.append([f"{size:,}", *cells])
        labels = [STRATEGY_LABELS.get(strategy, strategy) for strategy in self.strategies]
        return ["structures", *labels], rows


def _median_and_range(values: list[float]) -> str:
    if not values:
        return "-"
    median = table_cell(float(np.median(values)))
    if len(values) == 1:
        return median
    return f"{median} ({table_cell(min(values))}-{table_cell(max(values))})"


def _holds_curve(path: Path) -> bool:
    """Whether the file holds a curve, even a damaged one, about which `read` gives the details."""
    try:
        FewShotCurve.model_validate_json(path.read_bytes())
    except ValidationError:
        return False
    return True


CURVE_FILE = FileKind("a few-shot curve", _holds_curve)
