"""`evenfield pretrain`: one run from a recipe, on one process or many."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from .loop.signals import StopRequest, listening


def pretrain(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings as key=value, key.sub=value")
    ] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="YAML file of settings")] = None,
    resume: Annotated[
        Literal["no", "auto", "must"],
        typer.Option(
            "--resume",
            help="go on from the newest whole checkpoint; auto starts anew if there is none",
        ),
    ] = "no",
    local_rank: Annotated[
        int, typer.Option("--local_rank", hidden=True)
    ] = 0,  # DeepSpeed's launcher adds it
) -> None:
    """Pretrain a potential on a converted data set.

    SIGTERM, SIGUSR1 and Ctrl-C save and stop at the end of a step.

    Examples:
    evenfield pretrain data=runs/embedded out=runs/uniform max_steps=2000
    evenfield pretrain data=runs/embedded out=runs/uniform max_steps=2000 --resume auto
    torchrun --nproc-per-node 2 -m evenfield.cli pretrain --recipe recipe.yaml
    evenfield pretrain watch runs/uniform    # in another terminal: a page that follows the run
    """
    if overrides and overrides[0] == "watch":
        _watch(overrides[1:])
        return
    stop = StopRequest()
    with listening(
        stop
    ):  # before torch is imported: that takes seconds, in which a signal would end a rank
        from ..core.settings import load_settings
        from .config import PretrainConfig
        from .loop.trainer import TrainingError
        from .run import pretrain as run

        try:
            model = run(load_settings(PretrainConfig, recipe, overrides), resume, stop=stop)
        except TrainingError as error:
            typer.secho(f"error: {error}", fg="red", err=True)
            raise typer.Exit(1) from None
    if model is not None and os.environ.get("RANK", "0") == "0":
        typer.echo(f"model: {model}")


def _watch(words: list[str]) -> None:
    from rich.console import Console

    from ..core.settings import load_settings
    from .monitor.watch import WatchConfig, watch

    if not words or "=" in words[0]:
        raise ValueError(
            "watch: name the run folder, as in: evenfield pretrain watch runs/uniform every=10"
        )
    try:
        watch(
            Path(words[0]), load_settings(WatchConfig, overrides=words[1:]), Console(soft_wrap=True)
        )
    except KeyboardInterrupt:  # the page stays as it was drawn last
        typer.echo()


def evaluate(
    model: Annotated[str, typer.Argument(help="model folder or owner/name[@revision]")],
    data: Annotated[Path, typer.Argument(help="folder of a converted data set")],
    out: Annotated[Path, typer.Argument(help="folder for evaluation.json and predictions.npz")],
    split: Annotated[
        Literal["train", "valid", "test"], typer.Option(help="which structures")
    ] = "test",
    folder_hub: Annotated[
        Path | None, typer.Option("--folder-hub", help="folder hub to look models up in")
    ] = None,
) -> None:
    """Errors of a model on a data set: overall, by level of theory and by element.

    Examples:
    evenfield evaluate runs/uniform/model runs/embedded runs/errors
    """
    import json

    from ..core.files import write_atomically
    from ..data_pipelines.stream.collection import Collection
    from ..model_zoo.evaluation.evaluation import predict, summarise, with_a_head
    from ..model_zoo.hub.load import load

    structures = Collection([str(data)])
    if not structures.num_structures(split):
        raise ValueError(
            f"{data}: holds no structure of the {split} split: name another with --split"
        )
    potential = load(model, folder_hub=folder_hub).potential
    predictions = predict(
        potential, with_a_head(potential, structures.structures(split)), progress=True
    )
    out.mkdir(parents=True, exist_ok=True)
    predictions.save(out / "predictions.npz")
    summary = summarise(predictions, split)
    write_atomically(out / "evaluation.json", json.dumps(summary, indent=1) + "\n")
    typer.echo(f"{out / 'evaluation.json'}: {summary['num_structures']} structures of {split}")
