"""The learning rate of every step: linear warm-up, then a cosine."""

from __future__ import annotations

import math

from pydantic import Field

from ...core.settings import Settings


class ScheduleConfig(Settings):
    """Course of the learning rate around its peak, `optimizer.learning_rate`."""

    warmup_steps: int = Field(
        default=50,
        ge=0,
        description="steps over which the learning rate rises to its peak",
        json_schema_extra={"resume": "applied"},
    )
    final_learning_rate: float = Field(
        default=1e-5,
        ge=0,
        description="reached by a cosine at max_steps",
        json_schema_extra={"resume": "applied"},
    )


class Schedule:
    """Learning rates of a run whose peak is `peak`."""

    def __init__(self, peak: float, config: ScheduleConfig = ScheduleConfig()) -> None:
        self.peak = peak
        self.config = config

    def at(self, step: int, max_steps: int) -> float:
        """The rate of a step, counted from 0, of a run of `max_steps` steps."""
        warmup_steps = self.config.warmup_steps
        final = self.config.final_learning_rate
        if step < warmup_steps:
            return self.peak * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
        swing = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return final + (self.peak - final) * swing
