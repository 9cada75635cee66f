"""The trained module: potential, noise of labels, and loss.

The train module computes the loss of a step. An engine wraps it and handles ranks. The trainer runs
the steps, and callbacks do everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from ...core.settings import Settings
from ...data_pipelines.batch import Batch
from ...model_zoo.potential.potential import Potential
from ...model_zoo.potential.prediction import Prediction
from .loss import LossConfig, weighted_loss
from .noise import noise_of


class ComputeConfig(Settings):
    """How the network is computed. The results agree up to rounding."""

    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of matrix products; weights, sums and the optimizer stay float32",
        json_schema_extra={"resume": "applied"},
    )
    compiled: bool = Field(
        default=False,
        description="torch.compile of the network: minutes at the start, then 1.3 times as fast",
        json_schema_extra={"resume": "applied"},
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _not_double(cls, value: object) -> object:
        if value == "float64":
            raise ValueError(
                "float64 is refused: DeepSpeed would silently keep float32 master weights; "
                "energies are summed in float64 in any case"
            )
        return value


class TrainModule(nn.Module):
    """Maps a batch to its contribution to the loss of a step, by potential, noise and loss.

    Forces are computed inside `forward`, because DeepSpeed differentiates what `forward` returns.
    The noise is part of the module, because the engine sums only gradients of its module.

    `element_weight` (119,) holds factors on the force errors by element, in addition to the weights
    of the stream; None means 1. It is not a buffer, because it belongs to the run and not to the
    model.
    """

    def __init__(
        self,
        potential: Potential,
        loss: LossConfig = LossConfig(),
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        self.potential = potential
        self.noise = noise_of(loss, potential.config.levels_of_theory)
        self.loss = loss
        self.precision = precision
        self.element_weight: Tensor | None = None

    def forward(self, batch: Batch, counts: Callable[[], Tensor], progress: float = 0.0) -> Tensor:
        """The contribution of a batch to the loss of the step, a scalar.

        counts: returns the numbers of labels (L,) in the whole step (`loss.label_counts`). It is
            called after the prediction, so that ranks can sum their counts in the meantime.
        progress: the share of steps done, from 0 to 1, on which loss weights may depend.
        """
        noise = None if self.noise is None else self.noise()
        prediction = self.predict(batch)
        loss = self.loss.at(progress)
        return weighted_loss(prediction, batch, counts(), loss, noise)

    def predict(self, batch: Batch) -> Prediction:
        """Predict a batch; with the precision bfloat16, matrix products use bfloat16."""
        # autocast keeps the weights in float32 and casts them for each product
        low = self.precision == "bfloat16"
        with torch.autocast(batch.positions.device.type, torch.bfloat16, enabled=low):
            return self.potential(batch)

    def weigh_atoms(self, batch: Batch) -> None:
        """Multiply atom weights by element weights, in place. The batch must be on the CPU."""
        if self.element_weight is not None:
            assert batch.atom_weight is not None
            batch.atom_weight = batch.atom_weight * self.element_weight[batch.atomic_numbers]
