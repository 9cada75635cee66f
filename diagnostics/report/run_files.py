"""Reads the files that runs leave behind: metrics, evaluation, predictions, few-shot rows.

Units: energies eV/atom, forces eV/A (errors per component), stress eV/A^3, times s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError


RUN_FILES = ("metrics.jsonl", "evaluation.json", "predictions.npz")
STEP_FIELDS = ("step", "loss", "structures_per_s", "edges_per_s", "data_wait_share", "seconds")
MADE_BY = {
    "metrics.jsonl": "evenfield pretrain",
    "evaluation.json": "evenfield pretrain",
    "predictions.npz": "evenfield pretrain",
    "fewshot.json": "evenfield finetune curve",
}


class _File(BaseModel):
    """Fields that a report needs; what else stands in the file is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Errors(_File):
    """Errors on a set of structures; None where it has no such label."""

    num_structures: int
    energy_mae_per_atom: float | None
    force_mae: float | None
    force_rms: float | None

    @property
    def relative_force_mae(self) -> float | None:
        """Force MAE over the RMS of the labels, None where there is nothing to compare with."""
        return (
            self.force_mae / self.force_rms
            if self.force_mae is not None and self.force_rms
            else None
        )


class ElementErrors(Errors):
    """Errors of one element; num_train_structures says how rare it was in training."""

    num_train_structures: int
    num_atoms: int


class Evaluation(Errors):
    """evaluation.json: errors of one model on one split."""

    split: str
    num_atoms: int
    stress_mae: float | None = None
    per_element: dict[str, ElementErrors]
    mean_over_elements_force_mae: float | None
    worst_element: str | None
    worst_element_force_mae: float | None
    worst_decile_force_mae: float | None
    levels: dict[str, Errors] = {}

    def element_values(self, *, relative: bool = False) -> dict[str, float | None]:
        """Symbol -> force MAE in eV/A, or relative to the element's force RMS."""
        name = "relative_force_mae" if relative else "force_mae"
        return {symbol: getattr(errors, name) for symbol, errors in self.per_element.items()}


class FewShotRow(_File):
    """One fine-tune: strategy, number of structures and seed, with its test errors."""

    num_structures: int
    strategy: str
    seed: int
    force_mae: float
    energy_mae_per_atom: float
    seconds: float


class FewShot(_File):
    """fewshot.json: fine-tunes of one pretrained model on one target chemistry."""

    target: str
    force_rms: float
    rows: list[FewShotRow]

    @property
    def strategies(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(row.strategy for row in self.rows))


@dataclass(frozen=True)
class Metrics:
    """metrics.jsonl as columns: field -> values, one table per event, sorted by step."""

    steps: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]

    @property
    def last_step(self) -> int:
        """Optimizer steps done."""
        return int(self.steps["step"][-1])

    @property
    def seconds(self) -> float:
        """Time spent in the steps, waiting for data included; every step has a line with its own time."""
        return float(np.nansum(self.steps["seconds"]))

    @property
    def structures_seen(self) -> float:
        """Structures that the steps have used, repeats counted."""
        return float(np.nansum(self.steps["seconds"] * self.steps["structures_per_s"]))


@dataclass(frozen=True)
class Predictions:
    """predictions.npz: labels and predictions of S structures with N atoms; E0 is subtracted."""

    reference_energy_per_atom: np.ndarray  # (S,) eV/atom
    predicted_energy_per_atom: np.ndarray  # (S,) eV/atom
    reference_forces: np.ndarray  # (N, 3) eV/A
    predicted_forces: np.ndarray  # (N, 3) eV/A
    level_index: np.ndarray  # (S,)
    level_names: list[str]


@dataclass(frozen=True)
class Run:
    """Everything that a report shows of one pretraining run."""

    name: str
    folder: Path
    metrics: Metrics
    evaluation: Evaluation
    predictions: Predictions


Model = TypeVar("Model", bound=_File)


def read_run(name: str, folder: Path) -> Run:
    """Read metrics.jsonl, evaluation.json and predictions.npz of a run folder.

    Raises: FileNotFoundError that names the file and the command that makes it; ValueError for a broken file.
    """
    folder = Path(folder)
    return Run(
        name,
        folder,
        read_metrics(folder / "metrics.jsonl"),
        read_evaluation(folder / "evaluation.json"),
        read_predictions(folder / "predictions.npz"),
    )


def read_evaluation(path: Path) -> Evaluation:
    """Read and check an evaluation.json."""
    return _read_json(Path(path), Evaluation, MADE_BY["evaluation.json"])


def read_few_shot(path: Path) -> FewShot:
    """Read and check a fewshot.json."""
    return _read_json(Path(path), FewShot, MADE_BY["fewshot.json"])


def read_metrics(path: Path) -> Metrics:
    """Read a metrics.jsonl, also one whose last line was cut off by a kill.

    A run that was resumed has written some steps twice: the last writing counts.
    """
    path = _existing(Path(path), MADE_BY["metrics.jsonl"])
    rows: dict[str, dict[int, dict]] = {"step": {}, "evaluation": {}}
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}: line {number} is not JSON ({error})") from error
        if row.get("event") in rows and row.get("split", "valid") == "valid":
            rows[row["event"]][row["step"]] = row
    metrics = Metrics(_columns(rows["step"]), _columns(rows["evaluation"]))
    missing = [name for name in STEP_FIELDS if name not in metrics.steps]
    if missing:
        raise ValueError(f"{path} has no step with {', '.join(missing)}: did the run start?")
    return metrics


def read_predictions(path: Path) -> Predictions:
    """Read a predictions.npz and check that its arrays fit together."""
    path = _existing(Path(path), MADE_BY["predictions.npz"])
    with np.load(path, allow_pickle=False) as file:
        missing = sorted(set(Predictions.__dataclass_fields__) - set(file))
        if missing:
            raise ValueError(f"{path} lacks the arrays {', '.join(missing)}")
        arrays = {name: file[name] for name in Predictions.__dataclass_fields__}
    for kind in ("energy_per_atom", "forces"):
        reference, predicted = arrays[f"reference_{kind}"].shape, arrays[f"predicted_{kind}"].shape
        if reference != predicted:
            raise ValueError(
                f"{path}: {kind} has shape {reference} in reference and {predicted} in predicted"
            )
    return Predictions(**(arrays | {"level_names": [str(n) for n in arrays["level_names"]]}))


def _columns(rows: dict[int, dict]) -> dict[str, np.ndarray]:
    """Numeric fields as arrays sorted by step; a field that a row lacks is NaN."""
    ordered = [rows[step] for step in sorted(rows)]
    names = {
        name for row in ordered for name, value in row.items() if isinstance(value, int | float)
    }
    return {
        name: np.array([row.get(name, np.nan) for row in ordered], dtype=float) for name in names
    }


def _read_json(path: Path, model: type[Model], command: str) -> Model:
    try:
        return model.model_validate_json(_existing(path, command).read_text())
    except ValidationError as error:
        raise ValueError(f"{path} is not what `{command}` writes: {error}") from error


def _existing(path: Path, command: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; `{command}` writes it")
    return path
