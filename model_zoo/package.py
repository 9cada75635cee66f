"""A published model is a folder: weights as safetensors, the rest as JSON and text, all hashed. Nothing is run on load.

model.safetensors   weights and buffers; one metadata key, so that its hash is stable
config.json         format version, architecture, and the record of how the model came about
evaluation.json     errors on the held-out structures, overall and per element
README.md           the card, generated from the two
manifest.json       sha256 of every file
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors.torch import load, save

from ..data_pipelines.settings import Settings
from ..data_pipelines.shards import write_atomically
from .potential import Potential, PotentialConfig


FORMAT_VERSION = 1
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class BadModelError(ValueError):
    """A model folder that must not be used; the message names the file and the mend."""


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
    elements: dict[str, list[str]] = Field(description="level of theory -> symbols seen in training")
    train_counts: dict[str, int] = Field(default={}, description="symbol -> training structures")
    training_data: list[TrainingData] = Field(default=[])
    training: dict[str, Any] = Field(default={}, description="resolved config and cost of the training")
    versions: dict[str, str] = Field(default={}, description="packages that made it")
    base_model: str | None = Field(default=None, description="reference of the model that was fine-tuned")


def save_model(
    folder: Path | str,
    potential: Potential,
    record: ModelRecord,
    evaluation: dict[str, Any] | None = None,
    *,
    attachments: dict[str, bytes] | None = None,
) -> Path:
    """Write a model folder; the manifest is written last, so a folder without one is unfinished.

    `attachments`: further files, name -> content, for instance probe.extxyz.
    """
    from .card import model_card  # the card reads the record's types from this file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in sorted(potential.state_dict().items())}
    metadata = {"evenfield": json.dumps({"format_version": FORMAT_VERSION}, sort_keys=True)}
    config = {
        "format_version": FORMAT_VERSION,
        "dtype": str(next(potential.parameters()).dtype).removeprefix("torch."),
        "architecture": potential.config.model_dump(mode="json"),
        "record": record.model_dump(mode="json"),
    }
    config = json.loads(json.dumps(config, sort_keys=True))  # the card must not depend on the order of keys
    contents: dict[str, bytes] = dict(attachments or {})
    contents |= {
        "model.safetensors": save(tensors, metadata=metadata),
        "config.json": json.dumps(config, indent=1, sort_keys=True).encode(),
        "evaluation.json": json.dumps(evaluation or {}, indent=1).encode(),
        "README.md": model_card(config, evaluation or {}, potential).encode(),
    }
    for name, data in contents.items():
        write_atomically(folder / name, data)
    manifest = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1))
    return folder


def load_model(folder: Path | str) -> tuple[Potential, ModelRecord]:
    """Read a model folder, strictly: every hash, tensor name, shape and config key must be right.

    Raises BadModelError. No pickle is read and no code of the folder is run.
    """
    folder = Path(folder)
    contents = _verified(folder)
    potential, record = _build(folder / "config.json", contents["config.json"])
    tensors = load(contents["model.safetensors"])
    own = potential.state_dict()
    wrong = [f"missing {name}" for name in own.keys() - tensors.keys()]
    wrong += [f"unexpected {name}" for name in tensors.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)} {tensors[name].dtype}, not {tuple(own[name].shape)} {own[name].dtype}"
        for name in own.keys() & tensors.keys()
        if (own[name].shape, own[name].dtype) != (tensors[name].shape, tensors[name].dtype)
    ]
    if wrong:
        raise BadModelError(f"{folder / 'model.safetensors'}: does not fit config.json: {'; '.join(sorted(wrong))}")
    potential.load_state_dict(tensors, strict=True)
    return potential.eval(), record


def _build(path: Path, text: bytes) -> tuple[Potential, ModelRecord]:
    """The potential without its weights, and the record, from the bytes of config.json."""
    config = _json_object(path, text)
    version = config.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BadModelError(
            f"{path}: format {version} is newer than this evenfield reads ({FORMAT_VERSION}): upgrade evenfield"
        )
    try:
        potential = Potential(PotentialConfig.model_validate(config["architecture"]))
        record = ModelRecord.model_validate(config["record"])
        return potential.to(DTYPES[config["dtype"]]), record
    except KeyError as error:
        raise BadModelError(f"{path}: lacks or does not know {error}: fetch the model again") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadModelError(f"{path}: {faults}: it was made by another version of evenfield") from None


def _json_object(path: Path, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise BadModelError(f"{path}: is not valid JSON ({error}): fetch the model again") from None
    if not isinstance(content, dict):
        raise BadModelError(f"{path}: holds no JSON object: fetch the model again")
    return content


def _verified(folder: Path) -> dict[str, bytes]:
    """Contents of the files in the manifest, after checking their hashes."""
    if not (folder / "manifest.json").is_file():
        raise BadModelError(
            f"{folder}: not a model folder (no manifest.json); name a folder that holds a published model"
        )
    manifest = _json_object(folder / "manifest.json", (folder / "manifest.json").read_bytes())
    contents = {}
    for name, digest in manifest.items():
        path = folder / name
        if not path.is_file():
            raise BadModelError(f"{path}: file is missing: fetch the model again")
        contents[name] = path.read_bytes()
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise BadModelError(f"{path}: content does not match its sha256 in manifest.json: fetch the model again")
    for name in ("model.safetensors", "config.json"):
        if name not in contents:
            raise BadModelError(f"{folder / 'manifest.json'}: does not list {name}: fetch the model again")
    return contents
