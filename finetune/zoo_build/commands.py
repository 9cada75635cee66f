"""`evenfield zoo build`: make a named model by its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...core.command_line import Workers
from ...core.terminal import say


def zoo_build(
    name: Annotated[str, typer.Argument(help="name of the model, see `evenfield zoo list`")],
    into: Annotated[
        Path | None, typer.Option("--into", help="folder for it; default: the cache")
    ] = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="folder for data and checkpoints")
    ] = None,
    workers: Workers = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="replace the model of that name, once the new is whole"),
    ] = False,
) -> None:
    """Make a named model by its recipe: generate and label data, pretrain, evaluate, write a card.

    The same command continues an interrupted build.

    Example: evenfield zoo build evenfield-m
    """
    import shutil

    from ...core.destination import check_destination
    from ...model_zoo.hub.remote import HubError, cache_folder
    from ...model_zoo.zoo import named_models as zoo
    from .build import RECIPES, build_zoo_model

    if name not in RECIPES:
        known = ", ".join(zoo.names())
        raise HubError(
            "no model of the zoo has this name", file=name, remedy=f"name one of {known}"
        )
    recipe = RECIPES[name]
    # The digest makes a changed recipe, or another model, start from the beginning.
    place = (work or cache_folder() / "zoo-work") / f"{name}-{recipe.digest}"
    folder_of_models = into or cache_folder() / "zoo"
    check_destination(
        folder_of_models / name,
        overwrite=overwrite,
        kinds=["a model"],
        elsewhere="choose another folder with --into",
    )
    folder = build_zoo_model(recipe, name, place, folder_of_models, workers)
    if folder is None:
        return  # stopped by a signal: what is done stays in `place`
    say(f"model: {folder}")
    say(f"next: evenfield check sanity {folder} suite=quick --attach")
    if work is None:
        shutil.rmtree(place)
