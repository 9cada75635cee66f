"""The model card: metadata for the Hugging Face hub, and a page of facts for readers.

Metadata and page are generated from the records of the model. The text of the page is in
`templates/card.md.j2`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeGuard

from ase.data import chemical_symbols
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment
from pydantic import BaseModel, ValidationError

from ...core.labels import LABELS, Label
from ...core.numbers import interval_cell, table_cell
from ..evaluation.evenness import Evenness, evenness
from ..evaluation.predictions import Predictions
from ..evaluation.summary import ElementErrors, Errors, ErrorSummary
from ..heads.description import KINDS
from ..heads.record import heads_of
from ..potential.potential import Potential
from ..uncertainty.coverage import UNITS, BallCounts, LevelCoverage, coverages_of
from .domain_record import domains_of, summary_of
from .levels import default_level
from .record import ModelRecord
from .sanity_record import PHYSICS, SANITY, sanity_record


TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
# A base model that the hub can link to. Local folders and zoo names do not match.
HUB_REFERENCE = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@[\w.-]+)?")
# the card warns about elements with fewer training structures
RARE = 10
ALL_LEVELS = "all levels of theory"


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
    evaluation: ErrorSummary | None,
    potential: Potential,
    attachments: dict[str, bytes],
) -> str:
    """The text of README.md: metadata for the hub at the top, readable tables below."""
    # the page is Markdown, so HTML escaping would spoil it
    environment = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    template = environment.from_string(TEMPLATE.read_text())

    physics = potential.config.physics
    # architecture and cutoff have separate rows
    network = potential.config.network
    network_settings = network.model_dump(exclude={"architecture", "cutoff"})
    shown_settings = ", ".join(f"{key} {value}" for key, value in network_settings.items())
    dtype = next(potential.parameters()).dtype
    num_parameters = sum(parameter.numel() for parameter in potential.parameters())

    found_evenness = evenness(evaluation) if evaluation else None
    page = template.render(
        record=record,
        architecture=potential.config,
        network=network,
        network_settings=shown_settings,
        receptive_field=potential.backbone.receptive_field,
        physics=None if physics is None else physics.described,
        snippet_level=_snippet_level(record, potential.config.levels_of_theory),
        snippet_symbol=_snippet_symbol(record, potential.config.levels_of_theory),
        default_level=default_level(record, potential.config.levels_of_theory),
        evaluation=evaluation,
        level_table=_level_table(evaluation) if evaluation else None,
        element_table=_element_table(evaluation) if evaluation else None,
        evenness=found_evenness,
        evenness_table=_evenness_table(found_evenness) if found_evenness else None,
        attachments=sorted(attachments),
        forgetting=_forgetting(attachments),
        sanity_table=_verdict_table(potential, attachments, SANITY),
        physics_table=_verdict_table(potential, attachments, PHYSICS),
        head_table=_head_table(potential, attachments),
        coverages=[
            (level, counted, _coverage_table(counted))
            for level, counted in coverages_of(potential, attachments).items()
        ],
        dtype=str(dtype).removeprefix("torch."),
        symbols=record.symbols,
        domains={level: summary_of(own) for level, own in domains_of(attachments).items()},
        num_parameters=num_parameters,
        reference_energies=_reference_energies(potential, record.elements),
        rare=_rare_elements(record),
        rare_below=RARE,
        compute=_compute(record.training),
        cell=table_cell,
    )
    other_outputs = list(heads_of(potential, attachments))
    metadata = _metadata(record, potential, evaluation, other_outputs).to_yaml()
    return str(ModelCard(f"---\n{metadata}\n---\n\n{page}"))


def _snippet_level(record: ModelRecord, levels: list[str]) -> str | None:
    """The level of theory that the code example must name; None if the model has a default."""
    if default_level(record, levels) is not None:
        return None
    # the text below the example says that the user has to choose
    return json.dumps(_first_level(record, levels))


def _snippet_symbol(record: ModelRecord, levels: list[str]) -> str:
    """An element with which the code example runs."""
    level = default_level(record, levels) or _first_level(record, levels)
    # only a model without training structures has no element
    return next(iter(record.trained_symbols(level)), "H")


def _first_level(record: ModelRecord, levels: list[str]) -> str:
    """The level of theory that is listed first."""
    return next(iter(record.elements), levels[0])


def card_pictures(
    record: ModelRecord, evaluation: ErrorSummary | None, predictions: Predictions | None
) -> dict[str, bytes]:
    """The pictures on the card as PNG, by file name. A model without evaluation has none."""
    if evaluation is None:
        return {}
    # matplotlib takes most of a second to import, and most folders are saved without pictures
    from .card_pictures import coverage, element_errors, parity

    pictures = {
        "coverage.png": coverage(record.train_counts),
        "element_errors.png": element_errors(evaluation),
    }
    if predictions is not None:
        pictures["parity.png"] = parity(predictions, evaluation)
    # pictures without data are left out, and the card then leaves out their sections
    return {name: data for name, data in pictures.items() if data}


def _metadata(
    record: ModelRecord,
    potential: Potential,
    evaluation: ErrorSummary | None,
    other_outputs: list[str],
) -> ModelCardData:
    """The metadata that the hub indexes. The block `mlip` is evenfield's own."""
    training_data = []
    for data in record.training_data:
        training_data.append({"name": data.name, "sha256": data.sha256, "licence": data.licence})
    # if the base model was a local folder, there is no page that the hub could link to
    base = HUB_REFERENCE.fullmatch(record.base_model or "")
    # `other` is the hub's name for a licence that it does not know
    licence = record.licence or "other"

    return ModelCardData(
        # the hub lists licences in lower case
        license=licence.lower(),
        library_name="evenfield",
        pipeline_tag="graph-ml",
        tags=["interatomic-potential", "materials", "chemistry", "equivariant"],
        base_model=base["repo"] if base else None,
        base_model_relation="finetune" if base else None,
        model_name=record.name,
        eval_results=_results(evaluation) if evaluation else None,
        mlip={
            "cutoff_angstrom": potential.config.cutoff,
            "units": "eV, eV/A, eV/A^3 (tensile-positive)",
            "levels_of_theory": potential.config.levels_of_theory,
            "default_level": default_level(record, potential.config.levels_of_theory),
            "num_elements": len(record.symbols),
            "elements": record.elements,
            "outputs": [*LABELS, "energies", "features", *other_outputs],
            "conservative_forces": True,
            "training_data": training_data,
        },
    )


def _results(evaluation: ErrorSummary) -> list[EvalResult] | None:
    """The errors over all structures and at each level of theory, as entries of the model index."""
    split = evaluation.split
    results = []
    tables: dict[str, Errors] = {ALL_LEVELS: evaluation, **evaluation.levels}
    for where, errors in tables.items():
        for name, label in LABELS.items():
            figure = f"{label.title.capitalize()} MAE ({label.error_unit})"
            error = errors.mae.get(name)
            results.append(_result(split, where, figure, error))

    # the weighting of rare elements is meant to lower this figure
    groups = evenness(evaluation).groups
    if groups:
        figure = "Force MAE over force RMS, rare third of the elements"
        results.append(_result(split, ALL_LEVELS, figure, groups["rare"].relative_force_mae.value))
    # the hub's client refuses an empty list
    return [result for result in results if result is not None] or None


def _result(split: str, where: str, figure: str, value: float | None) -> EvalResult | None:
    """One entry of the hub's model index; None for a missing or non-finite value."""
    if not _is_finite(value):
        return None
    return EvalResult(
        task_type="graph-ml",
        task_name="energies, forces and stress of atomic structures",
        dataset_type="held-out",
        dataset_config=where,
        dataset_name=f"held-out {split} split, {where}",
        dataset_split=split,
        metric_type="mae",
        metric_name=figure,
        metric_value=value,
    )


@dataclass(frozen=True)
class Table:
    """A table on the card: column titles, and the cells of each row."""

    titles: list[str]
    rows: list[list[str]]


def _level_table(evaluation: ErrorSummary) -> Table:
    """Errors of each level of theory, with a column for each registered label."""
    titles = ["level of theory", "structures", *_error_titles(LABELS.values())]
    rows = []
    for level, errors in evaluation.levels.items():
        rows.append([level, str(errors.num_structures), *_error_cells(errors, LABELS.values())])
    return Table(titles, rows)


def _evenness_table(found: Evenness) -> Table:
    """Errors on rare, middle and common elements."""
    titles = [
        "elements",
        "training structures",
        "test atoms",
        "force MAE / RMS (%)",
        "90 % interval",
        "energy MAE of structures with them (eV/atom)",
    ]
    rows = []
    for name, group in found.groups.items():
        fewest, most = group.num_train_structures
        rows.append(
            [
                f"{name}: {' '.join(group.symbols)}",
                f"{fewest} to {most}",
                str(group.num_atoms),
                table_cell(group.relative_force_mae.value, 100),
                interval_cell(group.relative_force_mae.interval, 100),
                table_cell(group.energy_mae_per_atom),
            ]
        )
    return Table(titles, rows)


def _element_table(evaluation: ErrorSummary) -> Table:
    """Errors of each element for which there are any."""
    labels = [label for name, label in LABELS.items() if _any_error(evaluation, name)]
    titles = ["element", "training structures", "test atoms", *_error_titles(labels, "element")]
    titles.append("force MAE / RMS (%), 90 % interval")

    rows = []
    for symbol, errors in evaluation.per_element.items():
        # an element of the training data may be absent from the held-out structures
        has_errors = any(value is not None for value in errors.mae.values())
        if has_errors:
            counts = [str(errors.num_train_structures), str(errors.num_atoms)]
            cells = _error_cells(errors, labels)
            interval = interval_cell(errors.relative_force_interval, 100)
            rows.append([symbol, *counts, *cells, interval])
    return Table(titles, rows)


def _any_error(evaluation: ErrorSummary, name: str) -> bool:
    """Whether any element has an error for the label. Otherwise its column would be empty."""
    elements: Iterable[ElementErrors] = evaluation.per_element.values()
    return any(errors.mae.get(name) is not None for errors in elements)


def _error_titles(labels: Iterable[Label], of: str = "level") -> list[str]:
    """Titles of the columns that `_error_cells` fills."""
    titles = []
    for label in labels:
        # the label of a whole structure is shared by all of its elements
        is_shared = of == "element" and label.per == "structure"
        whose = " of structures with it" if is_shared else ""
        unit = label.error_unit
        titles.append(f"{label.title} MAE{whose} ({unit})")
        if label.per == "atom":
            titles.append(f"RMS of reference {label.name} ({unit})")
    return titles


def _error_cells(errors: Errors, labels: Iterable[Label]) -> list[str]:
    """MAE of each label. Per-atom labels also get the RMS of the reference, for comparison."""
    cells = []
    for label in labels:
        cells.append(table_cell(errors.mae.get(label.name)))
        if label.per == "atom":
            cells.append(table_cell(errors.rms.get(label.name)))
    return cells


def _reference_energies(
    potential: Potential, elements: dict[str, list[str]]
) -> dict[str, dict[str, float]]:
    """E0 in eV by level of theory and symbol, for the elements that each level was trained on."""
    table = {}
    for head, level in enumerate(potential.config.levels_of_theory):
        # indexed by atomic number; values of other elements have no meaning
        values = potential.e0[head].tolist()
        row = {}
        for symbol in elements.get(level, []):
            row[symbol] = values[chemical_symbols.index(symbol)]
        table[level] = row
    return table


def _rare_elements(record: ModelRecord) -> list[str]:
    """Elements with few training structures; empty if the record has no counts."""
    if len(record.level_counts) > 1:
        # counted per level of theory, because structures at another level do not help
        return _rare_at_levels(record)
    counts = record.train_counts
    if not counts:
        return []
    return [symbol for symbol in record.symbols if counts.get(symbol, 0) < RARE]


def _rare_at_levels(record: ModelRecord) -> list[str]:
    rare = []
    for level, counts in record.level_counts.items():
        for symbol in record.elements.get(level, []):
            if counts.get(symbol, 0) < RARE:
                rare.append(f"{symbol} ({level})")
    return rare


def _verdict_table(potential: Potential, attachments: dict[str, bytes], file: str) -> Table | None:
    """A row for each level of theory and check; None if the model has no such record."""
    record = sanity_record(potential, attachments, file)
    if record is None:
        return None
    rows = []
    for level, verdict in record.levels.items():
        for name, check in verdict.checks.items():
            shown = {True: "passed", False: "**failed**", None: "not judged"}[check.passed]
            failed = "; ".join(check.failed)
            rows.append([level, verdict.suite, name, shown, failed, str(check.skipped)])
    return Table(["head", "suite", "check", "verdict", "what failed", "skipped"], rows)


def _coverage_table(counted: LevelCoverage) -> Table:
    """A row for each group of errors, with two columns for each stated coverage."""
    titles = ["errors of", "labels", "groups of structures"]
    for ball in counted.rows[0].balls if counted.rows else []:
        titles += [f"{100 * ball.coverage:g} % radius covers (%)", "median radius"]
    rows = []
    for row in counted.rows:
        where = f"{row.what}, {row.name}"
        if row.by == "size":
            where = f"{row.what}, labels of {row.name} {UNITS[row.what]}"
        cells = [where, f"{row.number:,}", str(row.groups)]
        for ball in row.balls:
            cells += _ball_cells(ball, row.number, UNITS[row.what])
        rows.append(cells)
    return Table(titles, rows)


def _ball_cells(ball: BallCounts, number: int, unit: str) -> list[str]:
    """The covered share with its standard error, and the median radius."""
    if ball.share is None or ball.median_radius is None:
        return ["too few scores", "-"]
    share = f"{100 * ball.share:.1f}"
    if ball.deviation is not None:
        share += f" +- {100 * ball.deviation:.1f}"
    if ball.number < number:
        share += f" of {ball.number:,}"
    return [share, f"{ball.median_radius:.3g} {unit}"]


def _head_table(potential: Potential, attachments: dict[str, bytes]) -> Table | None:
    """A row for each head for another property; None if the model has none."""
    rows = []
    for name, head in heads_of(potential, attachments).items():
        about = head.description
        what = "; ".join([KINDS[about.kind].meaning, *about.classes])
        how = f" ({'sum' if about.extensive else 'mean'} over the atoms)"
        own = ", by a network of its own"
        labels = [about.level_of_theory, about.data, about.licence or "licence not stated"]
        rows.append(
            [
                f"`{name}`",
                what + how * (about.kind == "scalar") + own * (about.trained_steps > 0),
                about.unit,
                ", ".join(labels),
                f"{about.num_structures} + {about.num_held_out}",
                " ".join(about.elements),
                _figures(about.errors),
                _figures(about.guess),
            ]
        )
    if not rows:
        return None
    titles = [
        "head",
        "predicts",
        "unit",
        "labels",
        "structures (fit + held out)",
        "elements",
        "held out",
        "trivial guess",
    ]
    # the texts come from users who fitted the heads, and could break the table
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return Table(titles, escaped)


def _figures(errors: dict[str, float]) -> str:
    return ", ".join(f"{name} {table_cell(value)}" for name, value in errors.items())


def _forgetting(attachments: dict[str, bytes]) -> list[ForgettingRow]:
    """The rows of forgetting.json, which fine-tuning writes.

    Attachments have no fixed format, and a file of this name with other content must not make the
    model unusable. Invalid rows are therefore left out of the card.
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
    """The cost of the training, as far as its record states it."""
    facts = {}
    # records of older models lack some of these
    if isinstance(training.get("seconds"), int | float):
        facts["wall time"] = f"{training['seconds'] / 60:.1f} minutes"
    if "ranks" in training:
        facts["processes"] = str(training["ranks"])
    if "device" in training:
        facts["device"] = str(training["device"])
    settings = training.get("config", {})
    if "max_steps" in settings:
        facts["optimizer steps"] = f"{settings['max_steps']:,}"
    return facts


def _is_finite(value: float | None) -> TypeGuard[float]:
    """Whether a value is a finite number. With few test structures, errors may be NaN."""
    return value is not None and isfinite(value)
