"""`evenfield zoo build`: build a named model from its recipe, and check it.

The recipes are in finetune/zoo_build, and the physical checks in diagnostics. diagnostics imports
finetune and not the other way round, so this command is defined here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.command_line import Workers
from ..core.terminal import say


if TYPE_CHECKING:
    from ..diagnostics.sanity.config import SanityConfig


def zoo_build(
    name: Annotated[str, typer.Argument(help="name of the model, see `evenfield zoo list`")],
    into: Annotated[
        Path | None, typer.Option("--into", help="folder for it; default: the cache")
    ] = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="folder for data, checkpoints and checks")
    ] = None,
    workers: Workers = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="replace the model of that name, once the new is whole"),
    ] = False,
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="keep a model that failed physical checks")
    ] = False,
    sources: Annotated[
        Path | None,
        typer.Option("--sources", help="folder with the files of a model's corpus"),
    ] = None,
) -> None:
    """Build a named model from its recipe, and check it.

    The steps are: generate and label data, pretrain, evaluate, check. Run the command again to
    continue an interrupted build. The check is the quick suite of `evenfield check sanity`, for the
    default level of theory, or for every level if there is no default. Its record is added to the
    model and its card. A model that fails is not kept unless --allow-failed is given. Loading a
    model that failed prints a warning.

    Examples:
    evenfield zoo build evenfield-m
    evenfield zoo build evenfield-1 --sources downloads
    """
    import shutil

    from ..core.destination import check_destination
    from ..diagnostics.sanity.config import SanityConfig
    from ..finetune.zoo_build.build import build_zoo_model
    from ..finetune.zoo_build.recipes import RECIPES
    from ..model_zoo.hub.remote import HubError, cache_folder
    from ..model_zoo.zoo import named_models as zoo

    if name not in RECIPES:
        known = ", ".join(zoo.names())
        raise HubError(
            "no model of the zoo has this name", file=name, remedy=f"name one of {known}"
        )
    recipe = RECIPES[name]
    # because of the digest, a changed recipe starts from the beginning
    place = (work or cache_folder() / "zoo-work") / f"{name}-{recipe.digest}"
    folder_of_models = into or cache_folder() / "zoo"
    check_destination(
        folder_of_models / name,
        overwrite=overwrite,
        kinds=["a model"],
        remedy="choose another folder with --into, or replace it with --overwrite",
    )

    def check(model: Path) -> None:
        settings = SanityConfig(suite="quick")
        check_model(model, place / "sanity", settings, allow_failed=allow_failed)

    folder = build_zoo_model(recipe, name, place, folder_of_models, workers, check, sources=sources)
    if folder is None:
        return  # stopped by a signal: what is done stays in `place`
    say(f"model: {folder}")
    if work is None:
        shutil.rmtree(place)


def check_model(model: Path, out: Path, settings: SanityConfig, *, allow_failed: bool) -> None:
    """Run the physical checks of a model folder, and attach their record to the model.

    out: folder for finished checks and their pages. If the checks are interrupted, the same call
        continues them.

    Raises BadModelError if the model fails, unless `allow_failed`.
    """
    from ..diagnostics.check import CheckedModel
    from ..diagnostics.checks import sanity
    from ..model_zoo.hub.load import load
    from ..model_zoo.package.folder import read_model_folder
    from ..model_zoo.package.levels import default_level, own_levels
    from ..model_zoo.package.manifest import BadModelError
    from ..model_zoo.package.sanity_record import unsound

    # load only once: attaching a record changes the revision, by which finished checks are found
    loaded = load(model)
    levels = loaded.potential.config.levels_of_theory
    default = default_level(loaded.record, levels)
    chosen = own_levels(levels) if default is None else [default]
    for number, level in enumerate(chosen):
        own_out = out / f"level-{number}"
        sanity.check(CheckedModel(loaded, level, model), settings, out=own_out, attach=True)

    checked = read_model_folder(model)
    failures = unsound(checked.potential, checked.record, checked.attachments)
    if not failures:
        return
    if not allow_failed:
        raise BadModelError(
            f"is built and not kept: {'; '.join(failures)}",
            file=loaded.record.name,
            remedy=f"see the pages in {out}, or keep it with --allow-failed, which goes on from "
            "here",
        )
    say(f"{'; '.join(failures)}; loading the model warns of it")
