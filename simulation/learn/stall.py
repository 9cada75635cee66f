"""When the refit no longer helps: has it stalled, and is a gradient strategy better?

The refit changes only the last layer. If the network below it does not tell structures apart, more
labels do not help. Then all labels are learned once more by gradients, from the model that the loop
began with. The result is taken if it is better on labels that it has not learned.

To find that out, the whole training is repeated without each part of the labels. The same trainings
give the radii. Radii from refits would be too small: the features below have seen every label.
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
from ...finetune.safety.uncertainty import TrainedFold, uncertainty_of_folds
from ...finetune.strategies import fewest_to_hold_out
from ...finetune.target import Target, different, hold_out
from ...model_zoo.evaluation.summary import InfiniteErrorsError
from ...model_zoo.hub.load import LoadedModel
from ...model_zoo.package.weights import UnusableWeightsError
from ...model_zoo.potential.potential import Potential
from ...model_zoo.uncertainty.record import LevelUncertainty
from ...pretrain.errors import TrainingError
from .config import LearnConfig


# Parts of the labels, each left out of one training. With more parts, these trainings are more like
# the one on all labels, but take longer.
NUM_PARTS = 4
# With fewer labels a gradient strategy is not tried: a part would be a single structure.
FEWEST_LABELS = 8
# The share of the structures to learn from that decides when a training stops.
VALID_SHARE = 0.2
# Errors of a training that would come again with the same labels, so that the refit is taken. Any
# other error may be due to the machine, and is raised.
FAILURES = (TrainingError, WorseError, UnusableWeightsError, InfiniteErrorsError)


@dataclass(frozen=True)
class Trained:
    """A gradient strategy that was better than the refit on labels that neither had learned."""

    result: FineTuned
    uncertainty: LevelUncertainty


def stall_of(
    rounds: Sequence[Mapping[str, Any]], before: Mapping[str, Any] | None, config: LearnConfig
) -> str | None:
    """Why the next model is compared with one of a gradient strategy; None for no comparison.

    rounds: contents of round.json so far. before: errors on the new labels of the present round.

    The refit has stalled if none of the last `stall_rounds` errors is below the lowest of those
    before them. After a comparison that the refit has won, the count begins anew. A comparison that
    it has lost is repeated in each later round: every model is made from the one that was given, so
    a plain refit would lose what the training gained.
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

    number = config.stall_rounds
    if len(errors) <= number:
        return None
    lowest_before = min(errors[:-number])
    if min(errors[-number:]) < lowest_before:
        return None
    return (
        f"for {number} {'round' if number == 1 else 'rounds'} the error on new labels was not "
        f"below {lowest_before:.3f} eV/A"
    )


def train(
    base: LoadedModel, target: Target, config: LearnConfig
) -> tuple[Trained | None, dict[str, Any] | None]:
    """The model by the strategy `when_stalled`, if it is better than the refit, else None.

    Also returns what was compared, for learned.json; None with too few labels for a comparison.

    target: all labels, in `train`.

    Raises KeyboardInterrupt if a signal has ended a training, whose weights then do not follow from
    the labels alone.
    """
    structures = target.train
    if len(different(structures)) < FEWEST_LABELS:
        return None, None
    parts, _ = parts_of(structures, NUM_PARTS)
    folds: list[TrainedFold] = []
    errors_of_refit: list[dict[str, float]] = []
    errors_of_training: list[dict[str, float]] = []
    try:
        for part in parts:
            left_out = [structures[place] for place in part]
            others = [one for place, one in enumerate(structures) if place not in set(part)]
            without = replace(target, train=others, test=left_out)
            refitted = finetune(base, without, refit_settings(config))
            trained = _by_gradients(base, without, config)
            errors_of_refit.append(_errors(refitted.potential, left_out))
            errors_of_training.append(_errors(trained.potential, left_out))
            folds.append(
                TrainedFold(trained.potential, trained.posterior, trained.structures, left_out)
            )

        refit = _mean(errors_of_refit, parts, structures)
        training = _mean(errors_of_training, parts, structures)
        ratios = [training[label] / refit[label] for label in refit if refit[label] > 0]
        compared: dict[str, Any] = {
            "parts": len(parts),
            "errors": {
                config.strategy: _by_error_key(refit),
                config.when_stalled: _by_error_key(training),
            },
            "ratio": float(np.mean(ratios)) if ratios else None,
        }
        # a smaller gain may be noise, and the radii of a refit are more reliable
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
            # a loop with random features keeps them
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
    """Errors over all parts, from those of each part: energies by structure, forces by atom."""
    mean = {}
    for name in errors[0]:
        per_atom = LABELS[name].per == "atom"
        weights = [
            sum(len(structures[place]) if per_atom else 1 for place in part) for part in parts
        ]
        mean[name] = float(np.average([one[name] for one in errors], weights=weights))
    return mean


def _by_error_key(errors: Mapping[str, float]) -> dict[str, float]:
    """Errors by label, under the names that files use for them."""
    return {LABELS[label].error_key: value for label, value in errors.items()}
