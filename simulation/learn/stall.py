"""When the refit no longer helps: has it stalled, and is a gradient strategy better?

The refit changes the last layer only. Where the network below it does not tell structures apart,
more labels do not help. Then all labels are learned once more by gradients, from the model that the
loop began with, and the result is taken where it is better on labels that it has not learned.

That is found out by whole trainings, each without a part of the labels. The same trainings give the
radii: those of refits would be too small, since the features below have seen every label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...core.labels import LABELS
from ...data_pipelines.structure import Structure
from ...finetune.auto.choose import LEAST_GAIN
from ...finetune.closed_form.refit import parts_of
from ...finetune.config import FineTuneConfig
from ...finetune.run import FineTuned, finetune
from ...finetune.safety.step0 import WorseError, step
from ...finetune.safety.uncertainty import Fold, uncertainty_of_folds
from ...finetune.strategies import fewest_to_hold_out
from ...finetune.target import Target, different, hold_out
from ...model_zoo.evaluation.summary import InfiniteErrorsError
from ...model_zoo.hub.load import LoadedModel
from ...model_zoo.package.weights import UnusableWeightsError
from ...model_zoo.potential.potential import Potential
from ...model_zoo.uncertainty.record import LevelUncertainty
from ...pretrain.errors import TrainingError
from .config import LearnConfig


# Trainings that each leave a part of the labels out. More of them are more like the training on
# all, and take as much longer.
NUM_PARTS = 4
# With fewer labels a training by gradients is not tried: a part would be one structure.
FEWEST_LABELS = 8
# Of what is learned from, the part that decides when a training stops, as in a fine-tuning.
VALID_SHARE = 0.2
# What a training may lead to, from these labels each time: the refit is taken. Any other error may
# be of the machine.
FAILURES = (TrainingError, WorseError, UnusableWeightsError, InfiniteErrorsError)


@dataclass(frozen=True)
class Trained:
    """A gradient strategy that was better than the refit on labels that neither had learned."""

    result: FineTuned
    uncertainty: LevelUncertainty


def stall_of(
    rounds: Sequence[Mapping[str, Any]], before: Mapping[str, Any] | None, config: LearnConfig
) -> str | None:
    """Why the next model is to be compared with one of a gradient strategy; None where it is not.

    rounds: contents of round.json so far. before: errors on the new labels of the round that is
    under way.

    The refit has stalled when none of the last `stall_rounds` errors is below the lowest of those
    before them. A comparison that the refit has won begins the count anew. One that it has lost is
    repeated in each later round, because a refit from the model that was given would forget it.
    """
    if config.when_stalled == "none":
        return None
    errors: list[float] = []
    for one in [*rounds, {"before": before, "learned": None}]:
        if one["before"] is not None:
            errors.append(one["before"]["force_rmse"])
        learned = one["learned"]
        if learned is None or learned["compared"] is None:
            continue
        if learned["strategy"] != config.strategy:
            return f"{learned['strategy']} was better in round {one['round']}"
        errors = []
    last = config.stall_rounds
    if len(errors) <= last or min(errors[-last:]) < min(errors[:-last]):
        return None
    return (
        f"for {last} {'round' if last == 1 else 'rounds'} the error on new labels was not below "
        f"{min(errors[:-last]):.3f} eV/A"
    )


def train(
    base: LoadedModel, target: Target, config: LearnConfig
) -> tuple[Trained | None, dict[str, Any] | None]:
    """The model by `when_stalled`, if it is better than the refit; and what was compared.

    target: all labels, in `train`. With too few of them nothing is compared.

    Raises KeyboardInterrupt where a signal has ended a training, because its weights would not
    follow from the labels.
    """
    structures = target.train
    if len(different(structures)) < FEWEST_LABELS:
        return None, None
    parts, _ = parts_of(structures, NUM_PARTS)
    folds: list[Fold] = []
    errors: dict[str, list[dict[str, float]]] = {config.strategy: [], config.when_stalled: []}
    try:
        for part in parts:
            left_out = [structures[place] for place in part]
            others = [own for place, own in enumerate(structures) if place not in set(part)]
            without = replace(target, train=others, test=left_out)
            refitted = finetune(base, without, refit_settings(config))
            trained = _by_gradients(base, without, config)
            for result, own in zip((refitted, trained), errors.values(), strict=True):
                own.append(_errors(result.potential, left_out))
            folds.append(Fold(trained.potential, trained.posterior, trained.structures, left_out))
        mean = {name: _mean(own, parts, structures) for name, own in errors.items()}
        compared: dict[str, Any] = {
            "parts": len(parts),
            "errors": {
                name: {LABELS[label].error_key: value for label, value in own.items()}
                for name, own in mean.items()
            },
        }
        refit, gradient = mean.values()
        ratios = [gradient[label] / refit[label] for label in refit if refit[label] > 0]
        compared["ratio"] = float(np.mean(ratios)) if ratios else None
        # less is noise, and radii of a refit are more reliable
        if not ratios or not np.mean(ratios) <= 1 - LEAST_GAIN:
            return None, compared
        whole = _by_gradients(base, target, config)
    except FAILURES as error:
        return None, {"failed": error.message}
    if whole.gradient is None or whole.gradient.best_step == 0:
        return None, compared | {"failed": "the training on all labels was undone"}
    radii = uncertainty_of_folds(whole.potential, whole.structures, whole.posterior, folds)
    return Trained(whole, radii), compared


def refit_settings(config: LearnConfig) -> FineTuneConfig:
    """Settings of the refit in closed form."""
    return FineTuneConfig(
        strategy=config.strategy, refit=config.refit, seed=config.seed, trust_units=True
    )


def _by_gradients(base: LoadedModel, target: Target, config: LearnConfig) -> FineTuned:
    """A training on the structures of the target, some of which decide when it stops."""
    strategy = config.when_stalled
    train, valid = hold_out(target.train, VALID_SHARE, config.seed, fewest_to_hold_out(strategy))
    settings = refit_settings(config).model_copy(
        update={
            "strategy": strategy,
            "gradient": config.gradient,
            # random features are not thrown away
            "start": "wide" if config.strategy == "wide" else "step0",
        }
    )
    result = finetune(base, replace(target, train=train, valid=valid), settings)
    if result.gradient is not None and result.gradient.interrupted:
        raise KeyboardInterrupt
    return result


def _errors(potential: Potential, left_out: list[Structure]) -> dict[str, float]:
    """Mean absolute errors by label, in eV/atom and eV/A."""
    found = step("left out", potential, left_out).mae
    return {name: value for name, value in found.items() if value is not None}


def _mean(
    errors: Sequence[Mapping[str, float]],
    parts: Sequence[Sequence[int]],
    structures: list[Structure],
) -> dict[str, float]:
    """The same over all parts: energies count by structures, forces by atoms."""
    mean = {}
    for name in errors[0]:
        per_atom = LABELS[name].per == "atom"
        weights = [
            sum(len(structures[place]) if per_atom else 1 for place in part) for part in parts
        ]
        mean[name] = float(np.average([one[name] for one in errors], weights=weights))
    return mean
