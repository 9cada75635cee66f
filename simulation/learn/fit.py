"""The model after a round: refitted in closed form to all labels so far, with radii of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...data_pipelines.physics.residual import each_without_physics
from ...data_pipelines.structure import Structure
from ...finetune.config import FineTuneConfig
from ...finetune.run import finetune
from ...finetune.safety.uncertainty import uncertainty_of_refit
from ...finetune.save import save_finetuned
from ...finetune.target import Target
from ...model_zoo.hub.load import LoadedModel
from ...model_zoo.package.record import TrainingData
from ...model_zoo.uncertainty.record import UNCERTAINTY, uncertainty_file
from .config import LearnConfig


def fit(
    base: LoadedModel,
    structures: Sequence[Structure],
    digest: str,
    out: Path,
    config: LearnConfig,
) -> None:
    """Write the model folder `out`: `base` refitted to all `structures`.

    It always begins with the base model, so that it follows from the labels alone, whatever rounds
    they came in. No structure is held out: the few that there are are all needed, and the refit
    chooses its prior by those that it leaves out. digest: of the labels.
    """
    source = TrainingData(
        name=f"labels by {config.oracle}",
        sha256=digest,
        licence="not stated",
        description="structures that simulations met on the way",
        num_structures=len(structures),
    )
    # oracles label the whole, and a model with physics learns the rest
    physics = base.potential.config.physics
    left = list(each_without_physics(structures, physics))
    target = Target(config.level, left, [], [], source, physics=physics)
    settings = FineTuneConfig(
        strategy=config.strategy, refit=config.refit, seed=config.seed, trust_units=True
    )
    result = finetune(base, target, settings)
    own = uncertainty_of_refit(result.potential, target.train, result.posterior)

    record = uncertainty_file(result.potential, {config.level: own})
    save_finetuned(result, base, out, attachments={UNCERTAINTY: record})
