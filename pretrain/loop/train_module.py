"""What is trained, as one module: potential, noise of its labels, and loss.

The train module knows the mathematics of a step, the trainer knows time, callbacks know the rest.
An engine wraps the train module and knows ranks and precision of memory.
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
    """How the network is computed; the result is the same up to rounding."""

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
    """Potential + noise + loss: a batch goes in, its share of the step's loss comes out.

    Forces are computed inside forward, because DeepSpeed differentiates what forward returns. The
    noise is part of the module, because the engine sums gradients only of what its module holds.

    element_weight: (119,) factors of the force errors by element, on top of the stream's own
    weights; None for 1. It is state of the run and not of the model, so no buffer.
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
        """This batch's share of the step's loss.

        counts: returns the numbers of labels in the whole step (`loss.label_counts`). It is called
        after the prediction, so that ranks can add up their counts in the meantime.
        progress: the share of all steps that is done, which weights of the loss may depend on.
        """
        noise = None if self.noise is None else self.noise()
        prediction = self.predict(batch)
        loss = self.loss.at(progress)
        return weighted_loss(prediction, batch, counts(), loss, noise)

    def predict(self, batch: Batch) -> Prediction:
        """The potential's prediction; with bfloat16, its matrix products are rounded to that."""
        # autocast leaves the weights in float32, and casts them for each product
        low = self.precision == "bfloat16"
        with torch.autocast(batch.positions.device.type, torch.bfloat16, enabled=low):
            return self.potential(batch)

    def weigh_atoms(self, batch: Batch) -> None:
        """Multiply the weights of atoms by those of their elements; the batch is on the CPU."""
        if self.element_weight is not None:
            assert batch.atom_weight is not None
            batch.atom_weight = batch.atom_weight * self.element_weight[batch.atomic_numbers]
