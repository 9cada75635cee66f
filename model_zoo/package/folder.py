"""Save and load model folders: weights as safetensors, the rest as JSON and text, all hashed.

model.safetensors      weights and buffers, in several shards when they are large
config.json            format version, architecture, and the record of how the model was made
evaluation.json        errors on held-out structures, overall and per element
README.md              the model card, generated from config and evaluation, with its pictures
probe.extxyz           optional: structures that show what a later fine-tuning forgets
posterior.safetensors  optional: the posterior of the last weights, for uncertainties
heads.safetensors      optional: heads of other properties, such as charges
manifest.json          sha256 and size of every other file

Reading a folder never runs code from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ase.data import chemical_symbols
from pydantic import ValidationError

from ...core.addresses import without_secrets
from ...core.destination import (
    DestinationError,
    check_changeable,
    keep_files_of_others,
    replace_folder,
)
from ...core.errors import EvenfieldError
from ...core.files import file_errors, write_atomically
from ...core.torch_modes import own_modes
from ..evaluation.summary import ErrorSummary, SummaryError
from ..potential.config import PotentialConfig
from ..potential.potential import Potential
from .manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    MANIFEST,
    REQUIRED_FILES,
    RESTORE,
    BadModelError,
    check_version,
    is_weights,
    json_object,
    parse_manifest,
    read_manifest,
    read_manifest_text,
    read_verified,
    revision_of,
    validation_faults,
    write_manifest,
)
from .record import Description, ModelRecord
from .upgrade import upgrade
from .weights import (
    MAX_SHARD_BYTES,
    check_same_architecture,
    check_size,
    metadata,
    one_line,
    parse_weights,
    put_weights,
    weight_files,
)


if TYPE_CHECKING:
    from ..evaluation.predictions import Predictions

# dtypes that a model may have; config.json names one of them
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class ModelFolder:
    """The verified content of a model folder."""

    potential: Potential
    record: ModelRecord
    evaluation: ErrorSummary | None  # errors on held-out structures
    revision: str  # first 16 hex digits of the manifest's sha256
    attachments: dict[str, bytes] = field(default_factory=dict)  # file name -> content


# --- writing


def save_model(
    folder: Path | str,
    potential: Potential,
    record: ModelRecord,
    evaluation: ErrorSummary | None = None,
    *,
    attachments: dict[str, bytes] | None = None,
    predictions: Predictions | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write a model folder and return its path.

    `attachments` are additional files, name -> content. `predictions` are the predictions that
    `evaluation` summarises; the card needs them for its parity plot.

    An existing model in the folder is replaced in a single step at the end, so at any moment the
    folder holds either the old or the new model. Files that do not belong to a model are kept.

    Raises EvenfieldError for an invalid attachment name, for a folder that holds something other
    than a model, for a record that lists elements without training structures, and for weights or
    errors that are not finite. Raises FileError if the folder cannot be written.
    """
    # the card needs libraries that are not needed to read a model
    from .card import card_pictures, model_card

    folder = Path(folder)
    attachments = dict(attachments or {})
    for name in attachments:
        _check_attachment_name(name)
    _check_holds_a_model(folder)
    if evaluation is not None:
        evaluation.refuse_infinite()
    unlearned = record.unlearned() if record.level_counts else []
    if unlearned:
        raise EvenfieldError(
            f"the record lists {unlearned[0]}, but counts no training structure with it",
            file=folder,
            remedy="list only what was learned",
        )

    dtype = next(potential.parameters()).dtype
    config = {
        "format_version": FORMAT_VERSION,
        "dtype": str(dtype).removeprefix("torch."),
        "architecture": potential.config.model_dump(mode="json"),
        "record": without_paths(record.model_dump(mode="json")),
    }
    config_text = json.dumps(config, indent=1, sort_keys=True)
    # The card shows the record with its keys in the stored order, so that saving a loaded model
    # again gives the same bytes.
    stored_record = ModelRecord.model_validate(json.loads(config_text)["record"])

    attachments |= card_pictures(stored_record, evaluation, predictions)
    card = model_card(stored_record, evaluation, potential, attachments)
    evaluation_text = evaluation.to_json() if evaluation else "{}"
    contents = weight_files(potential, max_shard_bytes) | attachments
    contents["config.json"] = config_text.encode()
    contents["evaluation.json"] = evaluation_text.encode()
    contents["README.md"] = card.encode()

    with replace_folder(folder) as new, file_errors(folder):
        for name, data in contents.items():
            write_atomically(new / name, data)
        # the manifest comes last: a folder without one is unfinished, and is refused on reading
        write_atomically(new / MANIFEST, write_manifest(contents))
        # files of the user are kept but never read, because the manifest does not list them
        keep_files_of_others(folder, new, files_of_model(folder))
    return folder


def _check_attachment_name(name: str) -> None:
    taken = name in REQUIRED_FILES or name == MANIFEST or is_weights(name)
    if taken or not FILE_NAME.fullmatch(name):
        raise EvenfieldError(
            f"{name!r} is not a possible name for an attachment",
            remedy="choose another name that ends in .extxyz, .safetensors or .json",
        )


def _check_holds_a_model(folder: Path) -> None:
    """Raise EvenfieldError for a non-empty folder that holds neither a model nor part of one."""
    with file_errors(folder):
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    # older versions wrote file by file, and could leave a model without its manifest
    if names and MANIFEST not in names and "config.json" not in names:
        shown = ", ".join(names[:4])
        raise EvenfieldError(
            f"holds {shown}, and no model",
            file=folder,
            remedy="save the model into a folder of its own",
        )


def files_of_model(folder: Path) -> Callable[[str], bool]:
    """A function that tells whether a file name belongs to the model in `folder`.

    Other files were added by a user. If the manifest cannot be read, only the manifest and the
    weights are recognised.
    """
    listed = {MANIFEST}
    if (folder / MANIFEST).is_file():
        with suppress(BadModelError):
            listed |= set(read_manifest(folder).files)
    return lambda name: name in listed or is_weights(name)


def refuse_files_of_others(folder: Path | str, names: Iterable[str]) -> None:
    """Raise DestinationError if a user's file in a model folder has one of these names.

    The error is also raised for a model that the user may not change. Call this function before any
    long work.
    """
    folder = Path(folder)
    check_changeable(folder)
    is_of_model = files_of_model(folder)
    for name in names:
        if os.path.lexists(folder / name) and not is_of_model(name):
            raise DestinationError(
                "is no file of the model, and would be replaced",
                file=folder / name,
                remedy="move it to another folder",
            )


def describe(folder: Path | str, facts: Description) -> None:
    """Change facts in the record of a model folder, and write its card again.

    Raises EvenfieldError if the facts name a level of theory that the model does not have.
    """
    check_changeable(folder)
    model = read_model_folder(folder)
    levels = model.potential.config.levels_of_theory
    unknown = [f"level_details.{level}" for level in sorted(set(facts.level_details) - set(levels))]
    if facts.default_level is not None and facts.default_level not in levels:
        unknown.append(f"default_level={facts.default_level}")
    if unknown:
        raise EvenfieldError(
            f"{unknown[0]}: the model has no such level of theory",
            file=folder,
            remedy=f"choose among {', '.join(levels)}",
        )

    given = facts.model_dump(exclude={"level_details"}, exclude_none=True)
    given["level_details"] = model.record.level_details | facts.level_details
    record = model.record.model_copy(update=given)
    save_model(folder, model.potential, record, model.evaluation, attachments=model.attachments)


def attach(folder: Path | str, attachments: dict[str, bytes]) -> None:
    """Add files, name -> content, to a model folder, and write its card again.

    Raises DestinationError if a file of this name exists and does not belong to the model.
    """
    refuse_files_of_others(folder, attachments)
    model = read_model_folder(folder)
    # the card's pictures are attachments too, so the parity plot is kept without predictions
    files = model.attachments | attachments
    save_model(folder, model.potential, model.record, model.evaluation, attachments=files)


def without_paths(value: Any) -> Any:
    """A copy of a JSON tree with absolute paths cut to their last part and without passwords.

    Paths reveal the machine and its user, and mean nothing on another machine.
    """
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if isinstance(value, str):
        is_path = value.removeprefix("file://").startswith(("/", "~/"))
        return Path(value).name if is_path else without_secrets(value)
    return value


# --- reading


def load_model(folder: Path | str) -> tuple[Potential, ModelRecord]:
    """Read the potential and record of a model folder; see `read_model_folder`."""
    model = read_model_folder(folder)
    return model.potential, model.record


# Tensors made in inference mode cannot be differentiated, but forces need derivatives.
@own_modes()
def read_model_folder(folder: Path | str) -> ModelFolder:
    """Read a model folder of any known format.

    Reading is strict: every hash, tensor name, shape, number and config key must be valid.

    Raises BadModelError if one is not, and FileError if a file cannot be read.
    """
    folder = Path(folder)
    manifest_text = read_manifest_text(folder)
    try:
        return _read(folder, manifest_text)
    except BadModelError:
        # another process may have replaced the model after its manifest was read
        replaced = read_manifest_text(folder)
        if replaced == manifest_text:
            raise
        return _read(folder, replaced)


def _read(folder: Path, manifest_text: bytes) -> ModelFolder:
    """Read the model that a manifest describes."""
    config_path = str(folder / "config.json")
    # all files are verified before any of them is parsed
    manifest = parse_manifest(folder / MANIFEST, manifest_text)
    contents = {}
    for name, entry in manifest.files.items():
        contents[name] = read_verified(folder, name, entry)

    config = json_object(config_path, contents["config.json"])
    check_version(config_path, config.get("format_version"))
    # `upgrade` changes the config, but the shards repeat the architecture as it was saved
    saved_version = config["format_version"]
    saved_architecture = config.get("architecture")

    attachments = {name: contents[name] for name in manifest.attachments}
    files = {name: contents[name] for name in manifest.weights}
    tensors = parse_weights(files, str(folder))
    upgrade(config, tensors)
    weight_bytes = sum(len(data) for data in files.values())
    potential, record = build(config_path, config, weight_bytes)
    put_weights(potential, tensors, str(folder / manifest.weights[0]))
    # files of format 1 do not repeat the architecture
    if saved_version > 1:
        check_same_architecture(files, str(folder), saved_architecture)

    return ModelFolder(
        potential=potential.eval(),
        record=_with_tuned_level(record, potential.config.levels_of_theory, attachments),
        evaluation=_parse_evaluation(folder / "evaluation.json", contents["evaluation.json"]),
        # from the verified text, because the file may have been replaced since
        revision=revision_of(manifest_text),
        attachments=attachments,
    )


def _with_tuned_level(
    record: ModelRecord, levels: list[str], attachments: dict[str, bytes]
) -> ModelRecord:
    """The record, with the fine-tuned head as the default level if an older record states none.

    Every version of fine-tuning has stored the posterior of the fine-tuned head, which names it.
    """
    if record.default_level is not None or "finetune" not in record.training:
        return record
    tuned = metadata(attachments.get("posterior.safetensors", b"")).get("level_of_theory")
    # The first head belongs to the base model. Its posterior comes from `finetune attach`, not from
    # a fine-tuning.
    if tuned not in levels[1:]:
        return record
    return record.model_copy(update={"default_level": tuned})


def _parse_evaluation(path: Path, text: bytes) -> ErrorSummary | None:
    """Parse evaluation.json. An empty object means that the model was not evaluated."""
    content = json_object(path, text)
    if not content:
        return None
    try:
        return ErrorSummary.from_dict(content)
    except SummaryError as error:
        raise BadModelError(error.message, file=path, remedy=RESTORE) from error


def folder_revision(folder: Path) -> str:
    """The revision that pins a model folder. It changes if any byte of any file changes."""
    return revision_of(read_manifest_text(folder))


def read_attachment(folder: Path | str, name: str) -> bytes | None:
    """The verified content of one attachment of a model folder, or None if there is none.

    A file in the folder that the manifest does not list is not part of the model.
    """
    folder = Path(folder)
    entry = read_manifest(folder).files.get(name)
    return None if entry is None else read_verified(folder, name, entry)


def build(
    path: str, config: dict[str, Any], weight_bytes: int | None
) -> tuple[Potential, ModelRecord]:
    """Build the potential, without its weights, and the record from the content of config.json.

    `path` and `weight_bytes` are as in `read_config`.

    Raises BadModelError if no model can be built.
    """
    architecture, record, dtype = read_config(path, config, weight_bytes)
    try:
        return Potential(architecture).to(dtype), record
    except (ValueError, RuntimeError, AssertionError, ArithmeticError, IndexError) as error:
        # the config is untrusted: every value may be valid, but not the combination
        raise BadModelError(
            f"no model can be built from its architecture ({one_line(error)})",
            file=path,
            remedy=RESTORE,
        ) from error


def read_config(
    path: str, config: dict[str, Any], weight_bytes: int | None
) -> tuple[PotentialConfig, ModelRecord, torch.dtype]:
    """Check the content of config.json and return architecture, record and dtype.

    No model is built. `path` is used only in messages. `weight_bytes` is the size of the stored
    weights, or None if it is not known.

    Raises BadModelError if the content is invalid.
    """
    if not isinstance(config.get("architecture"), dict):
        raise BadModelError("lacks the architecture", file=path, remedy=RESTORE)
    try:
        architecture = PotentialConfig.from_stored(config["architecture"])
        record = ModelRecord.model_validate(config["record"], strict=True)
        dtype = DTYPES[config["dtype"]]
    except (KeyError, TypeError) as error:
        raise BadModelError(
            f"lacks {error}, or does not know it", file=path, remedy=RESTORE
        ) from error
    except ValidationError as error:
        raise BadModelError(
            validation_faults(error),
            file=path,
            remedy="it was made by another version of evenfield: load it with that version",
        ) from error

    check_size(path, architecture, weight_bytes)
    _check_names(path, record, architecture.levels_of_theory)
    return architecture, record, dtype


def _check_names(path: str, record: ModelRecord, levels: list[str]) -> None:
    """Check that levels of theory are unique, and that the record names valid levels and elements.

    Raises BadModelError.
    """
    if len(set(levels)) != len(levels):
        raise BadModelError(
            f"names a level of theory twice ({', '.join(levels)[:200]})", file=path, remedy=RESTORE
        )

    unknown_levels = sorted({*record.elements, *record.level_counts} - set(levels))
    if unknown_levels:
        raise BadModelError(
            f"lists elements for {unknown_levels[0][:100]!r}, which is not one of its levels of "
            "theory",
            file=path,
            remedy=RESTORE,
        )
    default = record.default_level
    if default is not None and default not in levels:
        raise BadModelError(
            f"has the default {default!r}, which is not one of its levels of theory",
            file=path,
            remedy=RESTORE,
        )

    listed = set(record.train_counts)
    for symbols in (*record.elements.values(), *record.level_counts.values()):
        listed.update(symbols)
    unknown_symbols = sorted(listed - set(chemical_symbols[1:119]))
    if unknown_symbols:
        raise BadModelError(
            f"lists {unknown_symbols[0][:100]!r}, which is not an element",
            file=path,
            remedy=RESTORE,
        )

    # Older records have no counts per level. Such models are loaded, and a calculator refuses
    # elements without training structures.
    unlearned = record.unlearned() if record.level_counts else []
    if unlearned:
        raise BadModelError(
            f"lists {unlearned[0]}, but counts no training structure with it",
            file=path,
            remedy=RESTORE,
        )
