"""Measured effects of methods for rare elements on the errors of a model.

The numbers come from `benchmarks/results`; docs/reweighting.md describes how they were measured. A
test compares them with these files, so that neither can change alone. They show what to expect of a
run, but other data may behave differently.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..census.weights import WeightConfig


LONG_TAIL = "real data, 85 elements"
DEMO = "demo data, 79 elements"
LABORATORY = "laboratory, 24 cations"
# the only strength of sampling that was measured with several seeds
MEASURED_BETA = 0.5


@dataclass(frozen=True)
class Change:
    """Relative change of a force MAE against training without the method."""

    value: float
    """Median over the seeds; for LABORATORY, their mean."""
    low: float | None = None
    high: float | None = None
    """Range over the seeds; for LABORATORY, the 90 % interval over elements."""

    def __str__(self) -> str:
        text = f"{100 * self.value:+.1f} %"
        if self.low is None or self.high is None:
            return text
        return f"{text} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


@dataclass(frozen=True)
class MeasuredEffect:
    """The effect of one method on one data set."""

    method: str
    """Name of the method for readers."""
    settings: str
    """Settings that switch it on."""
    measured_on: str
    seeds: int
    hard: Change
    """Change for the elements that the method is meant for: the worst tenth of the elements. For
    LABORATORY, the elements while they are rare."""
    mean: Change | None
    """Change of the mean over all elements; None if it was not stored."""
    common: Change
    """Change over all force components, which common elements dominate. For LABORATORY, the
    elements while they are common."""


SAMPLING = "sampling by rarity"
LOSS = "weights on the loss"
ADAPTIVE = "loss weights that follow the errors"
CHEAP = "cheap labels of rare elements"
COMBINED = "cheap labels of all elements, sampling and shared readouts, against half the steps"

EFFECTS = (
    MeasuredEffect(
        SAMPLING,
        f"beta={MEASURED_BETA}",
        LONG_TAIL,
        3,
        hard=Change(-0.035, -0.046, 0.037),
        mean=Change(-0.031, -0.071, 0.006),
        common=Change(-0.021, -0.026, -0.002),
    ),
    MeasuredEffect(
        SAMPLING,
        f"beta={MEASURED_BETA}",
        DEMO,
        3,
        hard=Change(-0.047, -0.133, -0.018),
        mean=Change(-0.060, -0.154, -0.030),
        common=Change(0.020, 0.001, 0.020),
    ),
    MeasuredEffect(
        LOSS,
        "beta=1 sampling=false loss=true min_effective_share=0.25",
        LONG_TAIL,
        1,
        hard=Change(-0.018),
        mean=Change(-0.038),
        common=Change(0.020),
    ),
    MeasuredEffect(
        ADAPTIVE,
        "pretrain ... adaptive.rate=0.5",
        LONG_TAIL,
        3,
        hard=Change(0.004, -0.024, 0.017),
        mean=Change(0.004, -0.008, 0.032),
        common=Change(-0.005, -0.013, 0.060),
    ),
    MeasuredEffect(
        ADAPTIVE,
        "pretrain ... adaptive.rate=0.5",
        DEMO,
        3,
        hard=Change(-0.033, -0.036, -0.004),
        mean=Change(-0.008, -0.051, 0.026),
        common=Change(0.023, -0.009, 0.033),
    ),
    MeasuredEffect(
        CHEAP,
        "data enrich ... elements=rare",
        LABORATORY,
        1,
        hard=Change(-0.097, -0.149, -0.040),
        mean=None,
        common=Change(0.031, 0.018, 0.045),
    ),
    MeasuredEffect(
        COMBINED,
        "data enrich ... elements=all; beta=1; level_sharing.levels=[MAIN,CHEAP]",
        LABORATORY,
        3,
        hard=Change(-0.271, -0.325, -0.212),
        mean=None,
        common=Change(-0.098, -0.114, -0.082),
    ),
)


def expectation(config: WeightConfig) -> list[str]:
    """Lines that say what such settings and other methods did in our measurements."""
    used = []
    if config.beta > 0 and config.sampling:
        used.append(SAMPLING)
    if config.beta > 0 and config.loss:
        used.append(LOSS)

    lines = []
    if used:
        lines.append("what such weights did where they were measured (docs/reweighting.md):")
        lines += [_line(effect) for effect in EFFECTS if effect.method in used]
        lines += [f"  {doubt}" for doubt in _doubts(config, used)]
    else:
        lines.append("these settings weight nothing, so that errors stay as they are")
    lines.append("what other methods for rare elements did:")
    lines += [_line(effect) for effect in EFFECTS if effect.method not in used]
    return lines


def _doubts(config: WeightConfig, used: list[str]) -> list[str]:
    """Reasons why these settings may have other effects than those that were measured."""
    doubts = []
    if len(used) > 1:
        doubts.append("sampling and loss were not measured together")
    elif used == [SAMPLING] and config.beta != MEASURED_BETA:
        doubts.append(f"beta {config.beta:g} was not measured, only {MEASURED_BETA:g}")
    if SAMPLING in used:
        doubts.append("the seeds do not agree in sign: do not count on a gain")
    return doubts


def _line(effect: MeasuredEffect) -> str:
    in_laboratory = effect.measured_on == LABORATORY
    hard = "elements while rare" if in_laboratory else "worst tenth of elements"
    common = "while common" if in_laboratory else "all force components"
    changes = [f"{hard} {effect.hard}"]
    if effect.mean is not None:
        changes.append(f"mean over elements {effect.mean}")
    changes.append(f"{common} {effect.common}")
    average = "mean" if in_laboratory else "median and range"
    seeds = f"{average} of {effect.seeds} seeds" if effect.seeds > 1 else "one seed only"
    if in_laboratory:
        seeds += ", 90 % interval over elements"
    return (
        f"  {effect.method} ({effect.settings}), {effect.measured_on}, {seeds}: "
        f"force MAE of {', '.join(changes)}"
    )
