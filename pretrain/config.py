"""The one config of a pretraining run; each part is configured by the class that it belongs to."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from ..core.settings import Settings
from ..data_pipelines.stream.collection import Collection
from ..data_pipelines.stream.mixture import MixingConfig
from ..data_pipelines.stream.stream import StreamConfig
from ..model_zoo.potential.config import ModelConfig
from .callbacks.adaptive import AdaptiveConfig
from .callbacks.average import AverageConfig
from .callbacks.guards import GuardConfig
from .callbacks.metrics import LoggingConfig
from .checkpoints.checkpoints import CheckpointConfig
from .loop.engine import EngineConfig
from .loop.loss import LossConfig


class PretrainConfig(Settings):
    """Everything that a run depends on; saved in the run folder and in every checkpoint."""

    data: str | list[str] = Field(description="folder of a converted data set, or several to mix")
    out: str = Field(description="run folder; its name is the name of the model")
    licence: str | None = Field(
        default=None, description="licence of the weights; needed to publish"
    )
    seed: int = 0
    max_steps: int = Field(default=1000, gt=0, description="optimizer steps")
    evaluate_every: int = Field(default=200, gt=0, description="steps between validations")
    evaluate_structures: int = Field(
        default=200, gt=0, description="most structures in a validation on the way"
    )
    model: ModelConfig = ModelConfig()
    stream: StreamConfig = StreamConfig()
    mixing: MixingConfig = MixingConfig()
    loss: LossConfig = LossConfig()
    adaptive: AdaptiveConfig = AdaptiveConfig()
    engine: EngineConfig = EngineConfig()
    average: AverageConfig = AverageConfig()
    guards: GuardConfig = GuardConfig()
    logging: LoggingConfig = LoggingConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _spikes_can_be_told(self) -> Self:
        if self.guards.spike and self.loss.learn_noise:
            raise ValueError(
                "guards.spike compares losses by their ratio, and with loss.learn_noise they fall below zero: set one "
                "of them only"
            )
        return self

    def open_data(self) -> Collection:
        """The data sets of the run."""
        return Collection([self.data] if isinstance(self.data, str) else self.data)
