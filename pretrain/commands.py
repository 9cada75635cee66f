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
