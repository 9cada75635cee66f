"""The learning rate of every step: a linear warm-up, a constant stretch, a cosine."""

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
    decay_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of max_steps, at the end, that the cosine takes; before it the rate "
        "stays at its peak, and a run can be resumed from there with more steps",
        json_schema_extra={"resume": "applied"},
    )


class Schedule:
    """Learning rates of a run whose peak is `peak`.

    With a `decay_share` below 1 this is the warm-up, stable, decay schedule (Hu et al. 2024,
    arXiv:2404.06395). The rate of a step in the stable stretch does not depend on `max_steps`, so
    a run that is prolonged there makes the steps that a longer run would have made.
    """

    def __init__(self, peak: float, config: ScheduleConfig = ScheduleConfig()) -> None:
        self.peak = peak
        self.config = config

    def at(self, step: int, max_steps: int) -> float:
        """The rate of a step, counted from 0, of a run of `max_steps` steps."""
        warmup_steps = self.config.warmup_steps
        if step < warmup_steps:
            return self.peak * (step + 1) / warmup_steps

        stable_until = round(max_steps * (1 - self.config.decay_share))
        decay_start = max(warmup_steps, stable_until)
        if step < decay_start:
            return self.peak

        final = self.config.final_learning_rate
        progress = (step - decay_start) / max(1, max_steps - decay_start)
        swing = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return final + (self.peak - final) * swing
