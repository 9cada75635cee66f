"""The model card: Hugging Face metadata and a page of facts, generated from the model's own records."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment

from ..potential.potential import Potential


TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
HUB_REFERENCE = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@[\w.-]+)?")
RARE = 10  # training structures below which an element is named as one to be careful with
# key of evaluation.json -> name of the figure, unit
FIGURES = {
    "energy_mae_per_atom": ("Energy MAE", "eV/atom"),
    "force_mae": ("Force MAE", "eV/A"),
    "stress_mae": ("Stress MAE", "eV/A^3"),
    "worst_decile_force_mae": ("Force MAE, worst tenth of elements", "eV/A"),
}


def model_card(
    config: dict[str, Any],
    evaluation: dict[str, Any],
    potential: Potential,
    attachments: dict[str, bytes],
) -> str:
    """README.md of a model folder: valid hub metadata on top, readable tables below."""
    record, architecture = config["record"], config["architecture"]
    symbols = sorted(
        {s for level in record["elements"].values() for s in level}, key=chemical_symbols.index
    )
    body = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(
        TEMPLATE.read_text()
    )
    text = body.render(
        record=record,
        architecture=architecture,
        evaluation=evaluation,
        attachments=sorted(attachments),
        forgetting=_forgetting(attachments),
        dtype=config["dtype"],
        symbols=symbols,
        num_parameters=sum(p.numel() for p in potential.parameters()),
        e0=_reference_energies(potential, record["elements"]),
        rare=[s for s in symbols if record["train_counts"].get(s, 0) < RARE]
        if record["train_counts"]
        else [],
        rare_below=RARE,
        compute=_compute(record["training"]),
        number=_number,
    )
    return str(
        ModelCard(
            f"---\n{_metadata(record, architecture, evaluation, len(symbols)).to_yaml()}\n---\n\n{text}"
        )
    )


def card_pictures(
    record: dict[str, Any], evaluation: dict[str, Any], predictions: Any
) -> dict[str, bytes]:
    """File name -> PNG of what the card shows; a model that nobody evaluated has no pictures."""
    if not evaluation:
        return {}
    from .card_pictures import coverage, element_errors, parity

    pictures = {
        "coverage.png": coverage(record["train_counts"]),
        "element_errors.png": element_errors(evaluation),
    }
    if predictions is not None:
        pictures["parity.png"] = parity(predictions)
    return {name: data for name, data in pictures.items() if data}


def _metadata(
    record: dict[str, Any],
    architecture: dict[str, Any],
    evaluation: dict[str, Any],
    num_elements: int,
) -> ModelCardData:
    base = HUB_REFERENCE.fullmatch(record["base_model"] or "")
    return ModelCardData(
        license=(record["licence"] or "other").lower(),
        library_name="evenfield",
        pipeline_tag="graph-ml",
        tags=["interatomic-potential", "materials", "chemistry", "equivariant"],
        base_model=base["repo"] if base else None,
        base_model_relation="finetune" if base else None,
        model_name=record["name"],
        eval_results=_results(evaluation),
        mlip={
            "cutoff_angstrom": architecture["cutoff"],
            "units": "eV, eV/A, eV/A^3 (tensile-positive)",
            "levels_of_theory": architecture["levels_of_theory"],
            "num_elements": num_elements,
            "elements": record["elements"],
            "outputs": ["energy", "energies", "forces", "stress", "features"],
            "conservative_forces": True,
            "training_data": [
                {"name": d["name"], "sha256": d["sha256"], "licence": d["licence"]}
                for d in record["training_data"]
            ],
        },
    )


def _results(evaluation: dict[str, Any]) -> list[EvalResult] | None:
    """Figures over all structures and of each level of theory, in the form of the hub's model-index."""
    split = evaluation.get("split")
    tables = {"all levels of theory": evaluation, **evaluation.get("levels", {})}
    results = [
        EvalResult(
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
        for where, table in tables.items()
        for key, (name, unit) in FIGURES.items()
        if _is_number(table.get(key))
    ]
    return results or None


def _reference_energies(
    potential: Potential, elements: dict[str, list[str]]
) -> dict[str, dict[str, float]]:
    table = {}
    for head, level in enumerate(potential.config.levels_of_theory):
        values = potential.e0[head].tolist()
        table[level] = {
            symbol: values[chemical_symbols.index(symbol)] for symbol in elements.get(level, [])
        }
    return table


def _forgetting(attachments: dict[str, bytes]) -> list[dict[str, Any]]:
    """Rows of forgetting.json, which a fine-tuning leaves; what is none of them is left out of the card."""
    try:
        rows = json.loads(attachments.get("forgetting.json", b"[]"))
    except ValueError:
        return []
    return (
        [row for row in rows if isinstance(row, dict) and "kind" in row]
        if isinstance(rows, list)
        else []
    )


def _compute(training: dict[str, Any]) -> dict[str, str]:
    """What of the training's record says what it took."""
    facts = (
        {"wall time": f"{training['seconds'] / 60:.1f} minutes"}
        if _is_number(training.get("seconds"))
        else {}
    )
    facts |= {"processes": str(training["ranks"])} if "ranks" in training else {}
    facts |= {"device": str(training["device"])} if "device" in training else {}
    settings = training.get("config", {})
    return facts | (
        {"optimizer steps": f"{settings['max_steps']:,}"} if "max_steps" in settings else {}
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: Any, digits: int = 4, factor: float = 1.0) -> str:
    """A figure times `factor`, or a dash where there is none."""
    return f"{factor * value:.{digits}f}" if _is_number(value) else "-"
