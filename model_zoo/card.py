"""The model card: Hugging Face metadata and a page of facts, generated from the model's own records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment

from .potential import Potential


TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"


def model_card(config: dict[str, Any], evaluation: dict[str, Any], potential: Potential) -> str:
    """README.md of a model folder: valid hub metadata on top, readable tables below."""
    record, architecture = config["record"], config["architecture"]
    data = ModelCardData(
        license=(record["licence"] or "other").lower(),
        library_name="evenfield",
        pipeline_tag="graph-ml",
        tags=["interatomic-potential", "materials", "chemistry", "equivariant"],
        model_name=record["name"],
        eval_results=_results(evaluation),
        mlip={
            "cutoff_angstrom": architecture["cutoff"],
            "units": "eV, eV/A, eV/A^3 (tensile-positive)",
            "levels_of_theory": architecture["levels_of_theory"],
            "elements": record["elements"],
            "conservative_forces": True,
        },
    )
    body = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(TEMPLATE.read_text())
    text = body.render(
        record=record,
        architecture=architecture,
        evaluation=evaluation,
        dtype=config["dtype"],
        num_parameters=sum(p.numel() for p in potential.parameters()),
        e0=_reference_energies(potential, record["elements"]),
        rare=sorted(symbol for symbol, count in record["train_counts"].items() if count < 10),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _results(evaluation: dict[str, Any]) -> list[EvalResult] | None:
    figures = {"force_mae": "Force MAE (eV/A)", "energy_mae_per_atom": "Energy MAE (eV/atom)"}
    results = [
        EvalResult(
            task_type="graph-ml",
            dataset_type="held-out",
            dataset_name=f"held-out {evaluation['split']} split",
            metric_type="mae",
            metric_name=name,
            metric_value=float(evaluation[key]),
        )
        for key, name in figures.items()
        if evaluation.get(key) is not None
    ]
    return results or None


def _reference_energies(potential: Potential, elements: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    table = {}
    for head, level in enumerate(potential.config.levels_of_theory):
        values = potential.e0[head].tolist()
        table[level] = {symbol: values[chemical_symbols.index(symbol)] for symbol in elements.get(level, [])}
    return table
