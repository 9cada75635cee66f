"""A fine-tuned model as a folder: weights, posterior, and a record of base model and data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..model_zoo.hub.load import LoadedModel
from ..model_zoo.package.folder import save_model
from ..model_zoo.package.record import ModelRecord
from .closed_form.posterior import FILE as POSTERIOR_FILE
from .heads import member_levels
from .run import FineTuned
from .safety.forgetting import Forgetting


def save_finetuned(
    result: FineTuned,
    model: LoadedModel,
    out: Path,
    licence: str | None = None,
    forgetting: Forgetting | None = None,
) -> Path:
    """Write the model folder `out`, which loads like that of any other model.

    licence: of the new weights; that of the base model when not given.
    """
    base = model.record
    level = result.level_of_theory
    symbols_of_structures = [set(one.to_atoms().symbols) for one in result.structures]
    seen = set().union(*symbols_of_structures)

    # Members of an ensemble learned from the same elements as their head.
    elements = dict(base.elements)
    elements[level] = sorted({*elements.get(level, []), *seen})
    for member in member_levels(level, len(result.posterior.bootstrap)):
        elements[member] = elements[level]

    counts = dict(base.train_counts)
    for symbol in sorted(seen):
        num_structures = sum(symbol in symbols for symbols in symbols_of_structures)
        counts[symbol] = counts.get(symbol, 0) + num_structures

    record = ModelRecord(
        name=out.name,
        licence=licence or base.licence,
        elements=elements,
        default_level=level,
        train_counts=counts,
        training_data=[*base.training_data, result.target.source],
        training={**base.training, "finetune": facts(result)},
        versions=base.versions,
        base_model=model.reference,
    )
    attachments = {POSTERIOR_FILE: result.posterior.to_bytes()}
    if forgetting is not None:
        attachments |= forgetting.to_files()
    evaluation = result.final.errors
    return save_model(out, result.potential, record, evaluation, attachments=attachments)


def facts(result: FineTuned) -> dict[str, Any]:
    """What was done, JSON-ready, for the record and its card."""
    stages = result.stages
    done = {
        "strategy": result.strategy,
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
    # tuples become lists here, and not only after the record has been read back
    return json.loads(json.dumps(done))
