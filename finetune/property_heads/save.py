"""Put a head into a model folder, as an attachment; the weights do not change."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...core.destination import DestinationError
from ...model_zoo.heads.head import Head
from ...model_zoo.heads.record import HEADS, heads_file
from ...model_zoo.hub.load import LoadedModel
from ...model_zoo.package.folder import attach, save_model
from ..save import check_model_place


def check_place_of_head(
    model: LoadedModel,
    reference: Path | str,
    out: Path,
    name: str,
    *,
    overwrite: bool = False,
    inputs: Iterable[Path | str] = (),
) -> None:
    """Check, before any work, that the model with the new head may be written to `out`.

    `out` may be the folder of the model itself, which then gets the head.

    Raises DestinationError if the model already has a head of this name, or if `out` holds
    something else, both unless `overwrite`; see `check_model_place`.
    """
    if name in model.heads and not overwrite:
        raise DestinationError(
            f"the model has a head {name} already",
            file=str(reference),
            remedy="choose another name=, or replace it with --overwrite",
        )
    if not _is_same_folder(reference, out):
        check_model_place(out, overwrite=overwrite, inputs=[str(reference), *inputs])


def save_head(
    head: Head, model: LoadedModel, reference: Path | str, out: Path, *, overwrite: bool = False
) -> Path:
    """Write the model of `reference` with one more head to the folder `out`, and return `out`.

    Other heads are kept. Raises DestinationError as `check_place_of_head` does.
    """
    name = head.description.name
    check_place_of_head(model, reference, out, name, overwrite=overwrite)
    file = {HEADS: heads_file(model.potential, model.heads | {name: head})}
    if _is_same_folder(reference, out):
        attach(out, file)
        return out
    record = model.record.model_copy(update={"name": out.name})
    attachments = {**model.attachments, **file}
    return save_model(out, model.potential, record, model.evaluation, attachments=attachments)


def _is_same_folder(reference: Path | str, out: Path) -> bool:
    """Whether `reference` names the folder `out`."""
    return out.is_dir() and Path(reference).is_dir() and Path(reference).samefile(out)
