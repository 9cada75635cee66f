"""`evenfield pretrain`: one run from a recipe, on one process or many."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    overrides: Annotated[list[str] | None, typer.Argument(help="settings as key=value, key.sub=value")] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="YAML file of settings")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest whole checkpoint")] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,  # DeepSpeed's launcher adds it
) -> None:
    """Pretrain a potential on a converted data set.

    Examples:
    evenfield pretrain data=runs/embedded out=runs/uniform max_steps=2000
    torchrun --nproc-per-node 2 -m evenfield.cli pretrain --recipe recipe.yaml engine.zero_stage=1
    """
    from ..data_pipelines.settings import load_settings
    from .config import PretrainConfig
    from .run import pretrain as run

    model = run(load_settings(PretrainConfig, recipe, overrides), resume=resume)
    if model is not None and os.environ.get("RANK", "0") == "0":
        typer.echo(f"model: {model}")


def zoo_build(
    name: Annotated[str, typer.Argument(help="name of the model, see `evenfield zoo list`")],
    into: Annotated[Path | None, typer.Option("--into", help="folder for it; default: the cache")] = None,
    work: Annotated[Path | None, typer.Option("--work", help="folder for data and checkpoints")] = None,
    workers: Annotated[int | None, typer.Option(help="processes that label the data; default one per core")] = None,
) -> None:
    """Make a named model by its recipe: generate and label data, pretrain, evaluate, write card and folder.

    An interrupted build goes on. Example: evenfield zoo build evenfield-m
    """
    import shutil

    from ..model_zoo import zoo
    from ..model_zoo.remote import cache_folder
    from .zoo import RECIPES, build_zoo_model

    if name not in RECIPES:
        raise ValueError(f"{name}: no model of the zoo; there are: {', '.join(zoo.names())}")
    place = work or cache_folder() / "zoo-work" / f"{name}-{RECIPES[name].digest}"  # a new recipe starts afresh
    folder = build_zoo_model(RECIPES[name], name, place, into or cache_folder() / "zoo", workers)
    if folder is not None:
        typer.echo(f"model: {folder}")
        if work is None:
            shutil.rmtree(place)
