"""The learning rate of every step: linear warm-up, constant phase, cosine decay."""

from __future__ import annotations

import math

from pydantic import Field

from ...core.settings import Settings


class ScheduleConfig(Settings):
    """The shape of the learning rate schedule, whose peak is `optimizer.learning_rate`."""

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
    """Learning rates of a run with the peak `peak`.

    With a `decay_share` below 1, this is the warmup-stable-decay schedule (Hu et al. 2024,
    arXiv:2404.06395). In the stable phase, the rate does not depend on `max_steps`. A run that is
    extended during this phase therefore takes the same steps as a longer run.
    """

    def __init__(self, peak: float, config: ScheduleConfig = ScheduleConfig()) -> None:
        self.peak = peak
        self.config = config

    def at(self, step: int, max_steps: int) -> float:
        """The learning rate of a step, counted from 0, in a run of `max_steps` steps."""
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
