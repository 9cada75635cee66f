"""The model after a round: it learns all labels so far, and gets radii from their errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...data_pipelines.physics.residual import each_without_physics
from ...data_pipelines.structure import Structure
from ...finetune.run import finetune
from ...finetune.safety.uncertainty import uncertainty_of_refit
from ...finetune.save import save_finetuned
from ...finetune.target import Target
from ...model_zoo.hub.load import LoadedModel
from ...model_zoo.package.record import TrainingData
from ...model_zoo.uncertainty.record import UNCERTAINTY, uncertainty_file
from . import store
from .config import LearnConfig
from .stall import refit_settings, train


def fit(
    base: LoadedModel,
    structures: Sequence[Structure],
    digest: str,
    out: Path,
    config: LearnConfig,
    facts: Path,
    stall: str | None = None,
) -> None:
    """Write the model folder `out`: `base` after learning all `structures`.

    Learning always starts from the base model, so the result follows from the labels alone,
    whatever rounds they came in. A refit holds no structure out: the few there are are all needed,
    and the refit chooses its prior by leaving each part out in turn.

    digest: of the labels. facts: file to write, with the strategy that was used, and why.
    stall: why a gradient strategy is compared with the refit; None for no comparison.

    Raises KeyboardInterrupt if a signal has ended a training.
    """
    source = TrainingData(
        name=f"labels by {config.oracle}",
        sha256=digest,
        licence="not stated",
        description="structures that simulations met on the way",
        num_structures=len(structures),
    )
    # oracles label the whole energy, and a model with physics learns what the physics leaves
    physics = base.potential.config.physics
    to_learn = list(each_without_physics(structures, physics))
    target = Target(config.level, to_learn, [], [], source, physics=physics)

    trained = None
    compared: dict[str, Any] | None = None
    if stall is not None:
        trained, compared = train(base, target, config)
    if trained is None:
        result = finetune(base, target, refit_settings(config))
        uncertainty = uncertainty_of_refit(result.potential, target.train, result.posterior)
    else:
        result = trained.result
        uncertainty = trained.uncertainty

    # before the model: once the model is there, this function is not called again
    store.write(facts, {"strategy": result.strategy, "why": stall, "compared": compared})
    record = uncertainty_file(result.potential, {config.level: uncertainty})
    save_finetuned(result, base, out, attachments={UNCERTAINTY: record})
