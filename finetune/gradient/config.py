"""Settings of gradient training: how long, how fast, on which batches."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ...core.settings import GivenBy, Settings
from ...data_pipelines.stream.config import StreamConfig
from ...pretrain.loop.loss import LossConfig


# The defaults were measured in docs/decisions/0009.
MANY_STRUCTURES = 100
STEPS_FOR_FEW = 600
STEPS_FOR_MANY = 1800


class GradientConfig(Settings):
    """Length, rates and batches of a gradient strategy."""

    max_steps: int | None = Field(
        default=None,
        gt=0,
        description="most optimizer steps; default 600, or 1,800 for 100 structures or more",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="default 0.005; for full 0.002, and 0.0005 with replay",
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="learning rate of a layer, divided by that of the layer above it (full only)",
    )
    rank: int = Field(default=4, gt=0, le=1024, description="rank of the adapters (lora only)")
    evaluate_every: int = Field(
        default=25, gt=0, description="steps between evaluations on the held-out structures"
    )
    patience: int = Field(
        default=4,
        gt=0,
        description="evaluations without improvement, in the second half, before training stops",
    )
    clip_norm: float = Field(default=10.0, gt=0, description="largest gradient norm")
    loss: LossConfig = LossConfig()
    stream: Annotated[StreamConfig, GivenBy(seed="the seed of the fine-tuning")] = StreamConfig()

    @property
    def steps(self) -> int:
        """The number of steps that was set, or else the default for few structures."""
        return self.max_steps or STEPS_FOR_FEW

    def for_structures(self, number: int) -> GradientConfig:
        """A copy in which the default number of steps is filled in for `number` structures."""
        default = STEPS_FOR_MANY if number >= MANY_STRUCTURES else STEPS_FOR_FEW
        return self.model_copy(update={"max_steps": self.max_steps or default})
