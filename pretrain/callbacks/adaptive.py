"""Element weights of the loss that adapt to the validation error of each element (group DRO)."""

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


class AdaptiveWeights(Callback):
    """After each validation: log q_z += rate (MAE_z / mean MAE - 1), within the bound.

    This is the rule of Sagawa et al. (ICLR 2020). The weights q_z multiply the force errors of the
    atoms of element z. Elements without validation labels keep their weights. Rank 0 validates and
    broadcasts the errors.

    The weights act on the loss and not on the sampling. The stream prepares batches ahead of time,
    so changes of the sampling would make a resume inexact.
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
        # only rank 0 has validated, but all ranks must use the same weights
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
    """Element weights (119,) after one update with errors (119,).

    Unknown errors are NaN. Without previous weights, all start at 1.
    """
    if weight is None:
        weight = torch.ones(NUM_ELEMENTS, dtype=torch.float32)
    known = torch.isfinite(errors)
    if not known.any():
        return weight
    mean = errors[known].mean()
    # if all errors are zero, no element is worse than another
    if mean == 0:
        return weight

    gain = torch.where(known, errors / mean - 1.0, 0.0)
    # in logarithms, the bound is symmetric
    limit = math.log(config.bound)
    log_weight = weight.log() + config.rate * gain
    return log_weight.clamp(-limit, limit).exp()
