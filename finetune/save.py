"""Save a fine-tuned model as a folder: weights, posterior, and a record of base model and data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from ..core.destination import check_destination
from ..data_pipelines.census.domain import LevelDomain, domain_of
from ..model_zoo.heads.carry_over import heads_carried_over
from ..model_zoo.heads.record import HEADS, heads_file
from ..model_zoo.hub.load import LoadedModel
from ..model_zoo.package.domain_record import domain_file
from ..model_zoo.package.folder import save_model
from ..model_zoo.package.record import ModelRecord
from ..model_zoo.potential.potential import Potential
from .closed_form.posterior import FILE as POSTERIOR_FILE
from .heads import member_levels
from .run import FineTuned
from .safety.forgetting import Forgetting
from .state import train_counts


def check_model_place(
    out: Path, *, overwrite: bool = False, inputs: Iterable[Path | str] = ()
) -> None:
    """Raise DestinationError if `out` must not be written; see `check_destination`."""
    check_destination(out, overwrite=overwrite, kinds=["a model"], inputs=inputs)


def save_finetuned(
    result: FineTuned,
    model: LoadedModel,
    out: Path,
    licence: str | None = None,
    forgetting: Forgetting | None = None,
    *,
    overwrite: bool = False,
    attachments: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the model folder `out`, which loads like any other model.

    licence: of the new weights; by default that of the base model.
    forgetting: the forgetting report to store in the folder.
    attachments: further files of the folder, name -> content, such as a new record.

    The base model's record of uncertainty is not copied. It holds only for the old weights, and it
    cannot be made again from structures that were learned from. Heads for other properties are
    copied if their features did not change, as after a refit; see `heads_left_behind`.

    Returns `out`. Raises DestinationError if `out` holds something, unless `overwrite`.
    """
    check_model_place(out, overwrite=overwrite)
    base = model.record
    level = result.level_of_theory
    seen = {chemical_symbols[z] for z in result.learned_elements}
    elements = dict(base.elements)
    # With another zero of energy, the old reference energies of other elements no longer hold.
    known = [] if result.reference.another_zero else elements.get(level, [])
    elements[level] = sorted({*known, *seen})
    # Members of an ensemble know the same elements as their head.
    for member in member_levels(level, len(result.posterior.bootstrap)):
        elements[member] = elements[level]

    # If the base model has no counts, leave them out: with the new structures alone, elements that
    # it has learned would seem to have no training structures.
    counts = dict(base.train_counts)
    if counts:
        counts = train_counts(counts, result.structures)
    level_counts = dict(base.level_counts)
    if set(base.elements) <= set(level_counts):
        level_counts[level] = train_counts(level_counts.get(level, {}), result.structures)

    record = ModelRecord(
        name=out.name,
        licence=licence or base.licence,
        elements=elements,
        default_level=level,
        level_details=base.level_details,
        train_counts=counts,
        level_counts=level_counts,
        training_data=[*base.training_data, result.target.source],
        training={**base.training, "finetune": facts(result)},
        versions=base.versions,
        base_model=model.reference,
    )
    files = {POSTERIOR_FILE: result.posterior.to_bytes()}
    files |= domain_file(_domains(result, model))
    if forgetting is not None:
        files |= forgetting.to_files()
    heads = heads_carried_over(model.heads, model.potential, result.potential)
    if heads:
        files[HEADS] = heads_file(result.potential, heads)
    files |= attachments or {}
    evaluation = result.final.errors
    return save_model(out, result.potential, record, evaluation, attachments=files)


def heads_left_behind(model: LoadedModel, potential: Potential) -> list[str]:
    """Names of the heads of `model` whose features changed in `potential`, its fine-tuned copy."""
    kept = heads_carried_over(model.heads, model.potential, potential)
    return [name for name in model.heads if name not in kept]


def _domains(result: FineTuned, model: LoadedModel) -> dict[str, LevelDomain]:
    """The domains of the base model, extended by the structures of the fine-tuned level."""
    domains = model.domains
    level = result.level_of_theory
    own = domain_of(result.target.train)
    if level in domains:
        domains[level] = domains[level].merged(own)
    elif level not in model.potential.config.levels_of_theory:
        domains[level] = own
    # otherwise the level also learned from earlier structures, which are not recorded
    return domains


def facts(result: FineTuned) -> dict[str, Any]:
    """The facts of a fine-tuning, JSON-ready, for the record and the model card."""
    stages = result.stages
    done = {
        "strategy": result.strategy,
        "auto": None if result.choice is None else result.choice.to_dict(),
        "started_from": result.started_from,
        "step0": [row.to_dict() for row in result.table],
        "e0": asdict(result.reference),
        "refit": asdict(result.refit),
        "gradient": asdict(result.gradient) if result.gradient else None,
        "kept": {name: stage.kept for name, stage in stages.items() if stage.kept is not None},
        "held_out_score": result.held_out_scores,
        "num_train": len(result.target.train),
        "num_valid": len(result.target.valid),
        "seconds": {name: round(stage.seconds, 2) for name, stage in stages.items()},
    }
    # turn tuples into lists now, so that the record equals what is read back from the file
    return json.loads(json.dumps(done))
