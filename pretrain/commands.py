"""`evenfield pretrain`: one run from a recipe, on one process or many."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from .signals import StopRequest, listening


def pretrain(
    overrides: Annotated[list[str] | None, typer.Argument(help="settings as key=value, key.sub=value")] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="YAML file of settings")] = None,
    resume: Annotated[
        Literal["no", "auto", "must"],
        typer.Option("--resume", help="go on from the newest whole checkpoint; auto starts anew if there is none"),
    ] = "no",
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,  # DeepSpeed's launcher adds it
) -> None:
    """Pretrain a potential on a converted data set.

    SIGTERM, SIGUSR1 and Ctrl-C save and stop at the end of a step.

    Examples:
    evenfield pretrain data=runs/embedded out=runs/uniform max_steps=2000
    evenfield pretrain data=runs/embedded out=runs/uniform max_steps=2000 --resume auto
    torchrun --nproc-per-node 2 -m evenfield.cli pretrain --recipe recipe.yaml engine.zero_stage=1
    """
    stop = StopRequest()
    with listening(stop):  # before torch is imported: that takes seconds, in which a signal would end a rank
        from ..data_pipelines.settings import load_settings
        from .config import PretrainConfig
        from .run import pretrain as run
        from .train import TrainingError

        try:
            model = run(load_settings(PretrainConfig, recipe, overrides), resume, stop=stop)
        except TrainingError as error:
            typer.secho(f"error: {error}", fg="red", err=True)
            raise typer.Exit(1) from None
    if model is not None and os.environ.get("RANK", "0") == "0":
        typer.echo(f"model: {model}")
