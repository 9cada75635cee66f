"""Settings of a fine-tuning."""

from __future__ import annotations

from pydantic import Field

from ..data_pipelines.sources.config import SourceConfig
from .state import FitConfig
from .strategies import AUTO, StrategyName, describe_strategies


class FineTuneConfig(FitConfig):
    """Settings of a fine-tuning: strategy, structures, and how the data are read."""

    strategy: StrategyName = Field(default=AUTO, description=describe_strategies())
    num_structures: int | None = Field(
        default=None, gt=0, description="training structures to draw; all when not given"
    )
    valid_share: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="share of structures to hold out when the data have no validation split",
    )
    trust_units: bool = Field(
        default=False, description="continue although labels look like another unit to the model"
    )
    source: SourceConfig = SourceConfig()
