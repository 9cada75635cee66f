"""Element weights of the loss that follow the validation error of each element (group DRO)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from ase.data import atomic_numbers
from pydantic import Field
from torch import Tensor

from ...core.settings import Settings
from ...data_pipelines.census.census import NUM_ELEMENTS
from .callback import Callback, Validation


if TYPE_CHECKING:
    from ..loop.trainer import StepReport, Trainer


class AdaptiveConfig(Settings):
    """How fast, and how far, the force error of an element that is learned badly gains weight."""

    rate: float = Field(
        default=0.0,
        ge=0,
        description="step of the exponentiated gradient at a validation; 0 is off",
    )
    bound: float = Field(
        default=4.0, gt=1, description="largest weight, and the inverse of the smallest"
    )


class AdaptiveWeights(Callback):
    """After each validation: log q_z += rate (MAE_z / mean MAE - 1), within the bound (Sagawa et al., ICLR 2020).

    The weights multiply the force errors of the element's atoms. They act on the loss and not on the sampling,
    because the stream prepares batches ahead: weights that changed what it draws would make a resume inexact.
    An element without validation labels keeps its weight. Rank 0 validates and tells the others.
    """

    def __init__(self, config: AdaptiveConfig, validation: Validation | None, every: int) -> None:
        self.config, self.validation, self.every = config, validation, every

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % self.every:
            return
        errors = torch.full((NUM_ELEMENTS,), math.nan)
        if self.validation is not None and self.validation.summary is not None:
            for symbol, force_mae in self.validation.summary.force_mae_of_elements().items():
                errors[atomic_numbers[symbol]] = force_mae
        if trainer.engine.world_size > 1:
            dist.broadcast(errors, 0)
        trainer.element_weight = updated(trainer.element_weight, errors, self.config)


def updated(weight: Tensor | None, errors: Tensor, config: AdaptiveConfig) -> Tensor:
    """Weights (119,) after one step on the errors (119,), NaN where there is none; without a weight, from 1."""
    weight = torch.ones(NUM_ELEMENTS) if weight is None else weight
    known = torch.isfinite(errors)
    if not known.any() or errors[known].mean() == 0:
        return weight
    gain = torch.where(known, errors / errors[known].mean() - 1.0, 0.0)
    limit = math.log(config.bound)
    return (weight.log() + config.rate * gain).clamp(-limit, limit).exp()
