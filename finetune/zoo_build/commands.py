"""`evenfield zoo build`: make a named model by its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def zoo_build(
    name: Annotated[str, typer.Argument(help="name of the model, see `evenfield zoo list`")],
    into: Annotated[
        Path | None, typer.Option("--into", help="folder for it; default: the cache")
    ] = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="folder for data and checkpoints")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="processes that label the data; default one per core")
    ] = None,
) -> None:
    """Make a named model by its recipe: generate and label data, pretrain, evaluate, write card and folder.

    An interrupted build goes on. Example: evenfield zoo build evenfield-m
    """
    import shutil

    from ...model_zoo.hub.remote import HubError, cache_folder
    from ...model_zoo.zoo import named_models as zoo
    from .build import RECIPES, build_zoo_model

    if name not in RECIPES:
        known = ", ".join(zoo.names())
        raise HubError("no model of the zoo has this name", file=name, remedy=f"there are: {known}")
    place = (
        work or cache_folder() / "zoo-work" / f"{name}-{RECIPES[name].digest}"
    )  # a new recipe starts afresh
    folder = build_zoo_model(RECIPES[name], name, place, into or cache_folder() / "zoo", workers)
    if folder is not None:
        typer.echo(f"model: {folder}")
        if work is None:
            shutil.rmtree(place)
