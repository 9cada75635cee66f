"""The model card: metadata for the Hugging Face hub, and a page of facts for readers.

Both are generated from the model's own records. The text of the page is in `templates/card.md.j2`.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment
from pydantic import BaseModel, ValidationError

from ..evaluation.predictions import Predictions
from ..evaluation.summary import ErrorSummary
from ..potential.potential import Potential
from .record import ModelRecord


TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
HUB_REFERENCE = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@[\w.-]+)?")
# training structures below which the card warns of an element
RARE = 10
# key of evaluation.json -> name of the figure, unit
FIGURES = {
    "energy_mae_per_atom": ("Energy MAE", "eV/atom"),
    "force_mae": ("Force MAE", "eV/A"),
    "stress_mae": ("Stress MAE", "eV/A^3"),
    "worst_decile_force_mae": ("Force MAE, worst tenth of elements", "eV/A"),
}


class ForgettingRow(BaseModel):
    """Errors of one kind of probe structures before and after a fine-tuning (forgetting.json)."""

    kind: str
    num_structures: int
    energy_before: float | None = None  # eV/atom
    energy_after: float | None = None
    force_before: float | None = None  # eV/A
    force_after: float | None = None


def model_card(
    record: ModelRecord,
    evaluation: dict[str, Any],
    potential: Potential,
    attachments: dict[str, bytes],
) -> str:
    """The text of README.md: valid metadata for the hub on top, readable tables below."""
    # the page is Markdown, not HTML: escaping would only spoil it
    environment = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    network = potential.config.network
    network_settings = network.model_dump(exclude={"architecture", "cutoff"})
    page = environment.from_string(TEMPLATE.read_text()).render(
        record=record,
        architecture=potential.config,
        network=network,
        network_settings=", ".join(f"{key} {value}" for key, value in network_settings.items()),
        receptive_field=potential.backbone.receptive_field,
        evaluation=evaluation,
        attachments=sorted(attachments),
        forgetting=_forgetting(attachments),
        dtype=str(next(potential.parameters()).dtype).removeprefix("torch."),
        symbols=record.symbols,
        num_parameters=sum(parameter.numel() for parameter in potential.parameters()),
        reference_energies=_reference_energies(potential, record.elements),
        rare=_rare_elements(record),
        rare_below=RARE,
        compute=_compute(record.training),
        number=_number,
    )
    metadata = _metadata(record, potential, evaluation).to_yaml()
    return str(ModelCard(f"---\n{metadata}\n---\n\n{page}"))


def card_pictures(
    record: ModelRecord, evaluation: dict[str, Any], predictions: Predictions | None
) -> dict[str, bytes]:
    """File name -> PNG of each picture on the card. A model without evaluation has none."""
    if not evaluation:
        return {}
    # matplotlib takes most of a second to import, and most folders are saved without pictures
    from .card_pictures import coverage, element_errors, parity

    summary = ErrorSummary.from_dict(evaluation)
    pictures = {
        "coverage.png": coverage(record.train_counts),
        "element_errors.png": element_errors(summary),
    }
    if predictions is not None:
        pictures["parity.png"] = parity(predictions, summary)
    return {name: data for name, data in pictures.items() if data}


def _metadata(
    record: ModelRecord, potential: Potential, evaluation: dict[str, Any]
) -> ModelCardData:
    """What the hub indexes. `mlip` is our own block, for searches among potentials."""
    training_data = []
    for data in record.training_data:
        training_data.append({"name": data.name, "sha256": data.sha256, "licence": data.licence})
    # a model that was fine-tuned from a local folder has no page that the hub could link to
    base = HUB_REFERENCE.fullmatch(record.base_model or "")
    return ModelCardData(
        license=(record.licence or "other").lower(),
        library_name="evenfield",
        pipeline_tag="graph-ml",
        tags=["interatomic-potential", "materials", "chemistry", "equivariant"],
        base_model=base["repo"] if base else None,
        base_model_relation="finetune" if base else None,
        model_name=record.name,
        eval_results=_results(evaluation),
        mlip={
            "cutoff_angstrom": potential.config.cutoff,
            "units": "eV, eV/A, eV/A^3 (tensile-positive)",
            "levels_of_theory": potential.config.levels_of_theory,
            "num_elements": len(record.symbols),
            "elements": record.elements,
            "outputs": ["energy", "energies", "forces", "stress", "features"],
            "conservative_forces": True,
            "training_data": training_data,
        },
    )


def _results(evaluation: dict[str, Any]) -> list[EvalResult] | None:
    """The figures of all structures and of each level of theory, as the hub's model index."""
    split = evaluation.get("split")
    tables = {"all levels of theory": evaluation, **evaluation.get("levels", {})}
    results = []
    for where, table in tables.items():
        for key, (name, unit) in FIGURES.items():
            if not _is_number(table.get(key)):
                continue
            result = EvalResult(
                task_type="graph-ml",
                task_name="energies, forces and stress of atomic structures",
                dataset_type="held-out",
                dataset_config=where,
                dataset_name=f"held-out {split} split, {where}",
                dataset_split=split,
                metric_type="mae",
                metric_name=f"{name} ({unit})",
                metric_value=float(table[key]),
            )
            results.append(result)
    # the hub's client refuses an empty list
    return results or None


def _reference_energies(
    potential: Potential, elements: dict[str, list[str]]
) -> dict[str, dict[str, float]]:
    """Level of theory -> symbol -> E0 in eV, for the elements that the level has seen."""
    table = {}
    for head, level in enumerate(potential.config.levels_of_theory):
        values = potential.e0[head].tolist()
        symbols = elements.get(level, [])
        table[level] = {symbol: values[chemical_symbols.index(symbol)] for symbol in symbols}
    return table


def _rare_elements(record: ModelRecord) -> list[str]:
    """Elements with few training structures; none when the record does not count them."""
    if not record.train_counts:
        return []
    return [symbol for symbol in record.symbols if record.train_counts.get(symbol, 0) < RARE]


def _forgetting(attachments: dict[str, bytes]) -> list[ForgettingRow]:
    """The rows of forgetting.json, which a fine-tuning writes.

    Attachments are free in form, so a file of that name with another content must not make the
    model unusable: whatever is not such a row is left out of the card.
    """
    try:
        content = json.loads(attachments.get("forgetting.json", b"[]"))
    except ValueError:
        return []
    if not isinstance(content, list):
        return []
    rows = []
    for entry in content:
        try:
            rows.append(ForgettingRow.model_validate(entry))
        except ValidationError:
            continue
    return rows


def _compute(training: dict[str, Any]) -> dict[str, str]:
    """What the training took, as far as its record tells."""
    facts = {}
    if _is_number(training.get("seconds")):
        facts["wall time"] = f"{training['seconds'] / 60:.1f} minutes"
    if "ranks" in training:
        facts["processes"] = str(training["ranks"])
    if "device" in training:
        facts["device"] = str(training["device"])
    settings = training.get("config", {})
    if "max_steps" in settings:
        facts["optimizer steps"] = f"{settings['max_steps']:,}"
    return facts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: Any, digits: int = 4, factor: float = 1.0) -> str:
    """`value` times `factor` with `digits` decimals, or a dash when there is no value."""
    return f"{factor * value:.{digits}f}" if _is_number(value) else "-"
