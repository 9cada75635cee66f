"""Element weights of the loss that adapt to the validation error of each element.

With a rate, a badly learned element gains weight (group DRO). With the errors of a reference model,
an element gains weight by what it could still learn: by its excess over the reference (DoReMi).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from ase.data import atomic_numbers
from pydantic import Field, model_validator
from torch import Tensor

from ...core.settings import Settings
from ...data_pipelines.census.census import NUM_ELEMENTS
from ...model_zoo.evaluation.summary import ErrorSummary
from ..loop.train_module import TrainModule
from .callback import Callback, Loop, StepReport


class AdaptiveConfig(Settings):
    """How fast, and how much, the force errors of a badly learned element gain weight."""

    rate: float = Field(
        default=0.0,
        ge=0,
        description="step of the exponentiated gradient at a validation; 0 is off",
        json_schema_extra={"resume": "applied"},
    )
    bound: float = Field(
        default=4.0,
        gt=1,
        description="largest weight, and the inverse of the smallest",
        json_schema_extra={"resume": "applied"},
    )
    reference: str | None = Field(
        default=None,
        description="evaluation.json of a reference model on the same validation structures; "
        "weights then follow the excess over its errors",
        json_schema_extra={"resume": "applied"},
    )

    @model_validator(mode="after")
    def _a_reference_needs_a_rate(self) -> Self:
        if self.reference is not None and not self.rate:
            raise ValueError("reference has no effect without a rate: set rate too")
        return self

    def reference_errors(self) -> Tensor | None:
        """Force MAE of the reference model (119,) in eV/A, NaN where unknown; None without one.

        Raises SummaryError for a damaged file and FileError for a missing one.
        """
        if self.reference is None:
            return None
        return _by_atomic_number(ErrorSummary.read(Path(self.reference)))


class AdaptiveWeights(Callback):
    """After each validation: log q_z += rate (MAE_z / mean MAE - 1), within the bound.

    This is the rule of Sagawa et al. (ICLR 2020). With a reference it is that of DoReMi (Xie et
    al., NeurIPS 2023), with relative excesses, because forces of elements differ in size:

        log q_z += rate (e_z - mean e),   e_z = max(MAE_z / MAE_z of the reference - 1, 0)

    The weights q_z multiply the force errors of the atoms of element z. Elements without validation
    labels keep their weights. Rank 0 validates and broadcasts the errors.

    The weights act on the loss and not on the sampling. The stream prepares batches ahead of time,
    so changes of the sampling would make a resume inexact.
    """

    name = "adaptive"

    def __init__(self, config: AdaptiveConfig, train_module: TrainModule, every: int) -> None:
        self.config = config
        self.reference = config.reference_errors()
        self.train_module = train_module
        self.every = every

    def on_report(self, loop: Loop, report: StepReport) -> None:
        if report.step % self.every:
            return

        # NaN for elements that the validation does not contain
        errors = torch.full((NUM_ELEMENTS,), math.nan, dtype=torch.float32)
        if report.evaluation is not None:
            errors = _by_atomic_number(report.evaluation)
        # only rank 0 has validated, but all ranks must use the same weights
        if loop.engine.world_size > 1:
            dist.broadcast(errors, 0)

        before = self.train_module.element_weight
        self.train_module.element_weight = updated(before, errors, self.config, self.reference)

    def state(self) -> dict[str, Any]:
        weight = self.train_module.element_weight
        return {} if weight is None else {"element_weight": weight.tolist()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.train_module.element_weight = torch.tensor(
            state["element_weight"], dtype=torch.float32
        )


def updated(
    weight: Tensor | None,
    errors: Tensor,
    config: AdaptiveConfig,
    reference: Tensor | None = None,
) -> Tensor:
    """Element weights (119,) after one update with errors (119,), and those of a reference (119,).

    Unknown errors are NaN. Without previous weights, all start at 1.
    """
    if weight is None:
        weight = torch.ones(NUM_ELEMENTS, dtype=torch.float32)

    known = torch.isfinite(errors)
    if reference is not None:
        # forces that vanish by symmetry have no relative error
        known &= reference > 0
    # if all errors are zero, no element is worse than another
    if not errors[known].any():
        return weight

    if reference is None:
        gain = errors / errors[known].mean() - 1.0
    else:
        excess = (errors / reference - 1.0).clamp(min=0.0)
        gain = excess - excess[known].mean()

    # in logarithms, the bound is symmetric
    limit = math.log(config.bound)
    log_weight = weight.log() + config.rate * torch.where(known, gain, 0.0)
    return log_weight.clamp(-limit, limit).exp()


def _by_atomic_number(summary: ErrorSummary) -> Tensor:
    """Force MAE (119,) in eV/A; NaN for elements without one."""
    errors = torch.full((NUM_ELEMENTS,), math.nan, dtype=torch.float32)
    for symbol, force_mae in summary.force_mae_of_elements().items():
        errors[atomic_numbers[symbol]] = force_mae
    return errors
