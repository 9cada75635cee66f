"""A published model is a folder: weights as safetensors, the rest as JSON and text, all hashed. Nothing is run on load.

model.safetensors   weights and buffers, in shards when large; one metadata key, so that its hash is stable
config.json         format version, architecture, and the record of how the model came about
evaluation.json     errors on the held-out structures, overall and per element
README.md           the card, generated from the two, with its pictures beside it
probe.extxyz        optional: structures that show what a later fine-tuning forgets
posterior.safetensors  optional: what an uncertainty of the predictions follows from
manifest.json       sha256 and size of every file
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from pydantic import Field, ValidationError

from ...core.files import write_atomically
from ...core.settings import Settings
from ..potential.potential import Potential, PotentialConfig
from .manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    MANIFEST,
    REFETCH,
    BadModelError,
    check_version,
    explain,
    is_weights,
    json_object,
    read_manifest,
    read_verified,
    write_manifest,
)
from .upgrade import upgrade
from .weights import (
    MAX_SHARD_BYTES,
    check_architecture,
    check_same_architecture,
    parse_weights,
    put_weights,
    weight_files,
)


DTYPES = {"float32": torch.float32, "float64": torch.float64}
OWN_NAMES = {"config.json", "evaluation.json", "README.md", MANIFEST}


class TrainingData(Settings):
    """One data set that a model was trained on."""

    name: str
    sha256: str
    licence: str
    description: str = ""
    num_structures: int


class ModelRecord(Settings):
    """What a model's user must know beside its weights."""

    name: str
    licence: str | None = Field(default=None, description="licence of the weights")
    description: str = Field(default="", description="what the model is for, in a sentence or two")
    citation: str | None = Field(default=None, description="how to cite it")
    level_details: dict[str, str] = Field(
        default={}, description="level of theory -> code, functional, basis, dispersion, spin"
    )
    elements: dict[str, list[str]] = Field(
        description="level of theory -> symbols seen in training"
    )
    train_counts: dict[str, int] = Field(default={}, description="symbol -> training structures")
    training_data: list[TrainingData] = Field(default=[])
    training: dict[str, Any] = Field(
        default={}, description="resolved config and cost of the training"
    )
    versions: dict[str, str] = Field(default={}, description="packages that made it")
    base_model: str | None = Field(
        default=None, description="reference of the model that was fine-tuned"
    )


@dataclass(frozen=True)
class Package:
    """A model folder, read and verified."""

    potential: Potential
    record: ModelRecord
    evaluation: dict[str, Any]
    revision: str  # first 16 hex digits of the manifest's sha256
    attachments: dict[str, bytes] = field(default_factory=dict)  # file name -> content


def save_model(
    folder: Path | str,
    potential: Potential,
    record: ModelRecord,
    evaluation: dict[str, Any] | None = None,
    *,
    attachments: dict[str, bytes] | None = None,
    predictions: Any = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write a model folder; the manifest is written last, so a folder without one is unfinished.

    `attachments`: further files, name -> content, for instance probe.extxyz. `predictions`: what `evaluation` sums
    up, for the card's parity plot (pretrain.evaluation.Predictions). Raises ValueError for a name that is taken or
    of a kind that no model holds.
    """
    from .card import card_pictures, model_card  # the card reads the record's types from this file

    folder, attachments, evaluation = Path(folder), dict(attachments or {}), evaluation or {}
    for name in attachments:
        if name in OWN_NAMES or is_weights(name) or not FILE_NAME.fullmatch(name):
            raise ValueError(
                f"{name}: no name for an attachment: another one, ending in .extxyz, .safetensors or .json"
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    config = {
        "format_version": FORMAT_VERSION,
        "dtype": str(next(potential.parameters()).dtype).removeprefix("torch."),
        "architecture": potential.config.model_dump(mode="json"),
        "record": without_paths(record.model_dump(mode="json")),
    }
    config = json.loads(
        json.dumps(config, sort_keys=True)
    )  # the card must not depend on the order of keys
    attachments |= card_pictures(config["record"], evaluation, predictions)
    contents: dict[str, bytes] = weight_files(potential, max_shard_bytes) | attachments
    contents["config.json"] = json.dumps(config, indent=1, sort_keys=True).encode()
    contents["evaluation.json"] = json.dumps(evaluation, indent=1).encode()
    contents["README.md"] = model_card(config, evaluation, potential, attachments).encode()
    for name, data in contents.items():
        write_atomically(folder / name, data)
    for path in folder.glob("model*.safetensors"):
        if is_weights(path.name) and path.name not in contents:  # of a model that stood here before
            path.unlink()
    write_atomically(folder / MANIFEST, write_manifest(contents))
    return folder


class Description(Settings):
    """Facts that only people know, laid over a model's record; what is not given stays."""

    name: str | None = None
    licence: str | None = None
    description: str | None = None
    citation: str | None = None
    level_details: dict[str, str] = Field(default={})


def describe(folder: Path | str, facts: Description) -> None:
    """Put facts into the record of a model folder and write its card again."""
    package = open_package(folder)
    if strange := sorted(set(facts.level_details) - set(package.potential.config.levels_of_theory)):
        levels = ", ".join(package.potential.config.levels_of_theory)
        raise ValueError(f"level_details.{strange[0]}: the model has {levels}")
    given = {
        key: value
        for key, value in facts.model_dump(exclude={"level_details"}).items()
        if value is not None
    }
    given["level_details"] = package.record.level_details | facts.level_details
    record = package.record.model_copy(update=given)
    save_model(
        folder, package.potential, record, package.evaluation, attachments=package.attachments
    )


def attach(folder: Path | str, attachments: dict[str, bytes]) -> None:
    """Put further files, name -> content, into a model folder and write its card again; see `save_model`."""
    package = open_package(folder)
    files = package.attachments | attachments
    save_model(folder, package.potential, package.record, package.evaluation, attachments=files)


def without_paths(value: Any) -> Any:
    """The same tree with absolute paths cut to their last part: where a file lay is nobody's business."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    local = isinstance(value, str) and value.removeprefix("file://").startswith(("/", "~/"))
    return Path(value).name if local else value


def load_model(folder: Path | str) -> tuple[Potential, ModelRecord]:
    """Potential and record of a model folder; see `open_package`."""
    package = open_package(folder)
    return package.potential, package.record


def open_package(folder: Path | str) -> Package:
    """Read a model folder, strictly: every hash, tensor name, shape, number and config key must be right.

    Raises BadModelError. No pickle is read and no code of the folder is run.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    contents = {name: read_verified(folder, name, entry) for name, entry in manifest.files.items()}
    config = json_object(folder / "config.json", contents["config.json"])
    check_version(folder / "config.json", config.get("format_version"))
    version, stated = config["format_version"], config.get("architecture")
    files = {name: contents[name] for name in manifest.weights}
    tensors = parse_weights(files, str(folder))
    upgrade(config, tensors)
    potential, record = build(str(folder / "config.json"), config, sum(map(len, files.values())))
    put_weights(potential, tensors, str(folder / manifest.weights[0]))
    if version > 1:
        check_same_architecture(files, str(folder), stated)
    return Package(
        potential=potential.eval(),
        record=record,
        evaluation=json_object(folder / "evaluation.json", contents["evaluation.json"]),
        revision=folder_revision(folder),
        attachments={name: contents[name] for name in manifest.attachments},
    )


def folder_revision(folder: Path) -> str:
    """What pins a model folder: it changes with every byte of every file."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:16]


def build(
    path: str, config: dict[str, Any], weight_bytes: int | None
) -> tuple[Potential, ModelRecord]:
    """The potential without its weights, and the record, from the content of config.json."""
    check_architecture(path, config.get("architecture"), weight_bytes)
    try:
        architecture = PotentialConfig.model_validate(config["architecture"])
        record = ModelRecord.model_validate(config["record"])
        dtype = DTYPES[config["dtype"]]
    except (KeyError, TypeError) as error:
        raise BadModelError(f"{path}: lacks or does not know {error}: {REFETCH}") from None
    except ValidationError as error:
        raise BadModelError(
            f"{path}: {explain(error)}: it was made by another version of evenfield"
        ) from None
    _check_elements(path, record, architecture.levels_of_theory)
    try:
        return Potential(architecture).to(dtype), record
    except (ValueError, RuntimeError, AssertionError, ArithmeticError, IndexError) as error:
        said = " ".join(str(error).split())[:200]
        raise BadModelError(
            f"{path}: no model can be built from its architecture ({said}): {REFETCH}"
        ) from None


def _check_elements(path: str, record: ModelRecord, levels: list[str]) -> None:
    if len(set(levels)) != len(levels):
        raise BadModelError(
            f"{path}: names a level of theory twice ({', '.join(levels)}): {REFETCH}"
        )
    if strange := sorted(set(record.elements) - set(levels)):
        raise BadModelError(
            f"{path}: lists elements for {strange[0]!r}, which is none of its levels: {REFETCH}"
        )
    listed = {symbol for symbols in record.elements.values() for symbol in symbols} | set(
        record.train_counts
    )
    if strange := sorted(listed - set(chemical_symbols[1:119])):
        raise BadModelError(f"{path}: lists {strange[0]!r}, which is no element: {REFETCH}")
