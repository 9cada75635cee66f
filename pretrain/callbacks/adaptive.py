"""Element weights of the loss that follow the validation error of each element (group DRO)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from ase.data import atomic_numbers
from pydantic import Field
from torch import Tensor

from ...core.settings import Settings
from ...data_pipelines.census.census import NUM_ELEMENTS
from ..loop.train_module import TrainModule
from .callback import Callback, Loop, StepReport


class AdaptiveConfig(Settings):
    """How fast, and how far, the force error of a badly learned element gains weight."""

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


class AdaptiveWeights(Callback):
    """After each validation: log q_z += rate (MAE_z / mean MAE - 1), within the bound.

    The rule is that of Sagawa et al. (ICLR 2020). The weights multiply the force errors of the
    element's atoms. They act on the loss and not on the sampling, because the stream prepares
    batches ahead of time: weights that changed what it draws would make a resume inexact. An
    element without validation labels keeps its weight. Rank 0 validates and broadcasts the errors.
    """

    name = "adaptive"

    def __init__(self, config: AdaptiveConfig, train_module: TrainModule, every: int) -> None:
        self.config = config
        self.train_module = train_module
        self.every = every

    def on_report(self, loop: Loop, report: StepReport) -> None:
        if report.step % self.every:
            return

        # NaN for elements that the validation does not contain
        errors = torch.full((NUM_ELEMENTS,), math.nan, dtype=torch.float32)
        if report.evaluation is not None:
            for symbol, force_mae in report.evaluation.force_mae_of_elements().items():
                errors[atomic_numbers[symbol]] = force_mae
        # Only rank 0 has validated, but all ranks must weigh alike.
        if loop.engine.world_size > 1:
            dist.broadcast(errors, 0)

        before = self.train_module.element_weight
        self.train_module.element_weight = updated(before, errors, self.config)

    def state(self) -> dict[str, Any]:
        weight = self.train_module.element_weight
        return {} if weight is None else {"element_weight": weight.tolist()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.train_module.element_weight = torch.tensor(
            state["element_weight"], dtype=torch.float32
        )


def updated(weight: Tensor | None, errors: Tensor, config: AdaptiveConfig) -> Tensor:
    """Weights (119,) after one update with the errors (119,), which are NaN where unknown.

    Without previous weights all start at 1.
    """
    if weight is None:
        weight = torch.ones(NUM_ELEMENTS, dtype=torch.float32)
    known = torch.isfinite(errors)
    if not known.any():
        return weight
    mean = errors[known].mean()
    # a model without any error has no worst element
    if mean == 0:
        return weight

    gain = torch.where(known, errors / mean - 1.0, 0.0)
    # in logarithms, where the bound is the same upwards and downwards
    limit = math.log(config.bound)
    log_weight = weight.log() + config.rate * gain
    return log_weight.clamp(-limit, limit).exp()
