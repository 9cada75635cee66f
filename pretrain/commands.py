"""`evenfield pretrain` (one run from a recipe, on one or many ranks) and `evenfield evaluate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..core.command_line import (
    DefaultCommandGroup,
    FolderHub,
    ModelReference,
    Overrides,
    Overwrite,
    Recipe,
    settings_option,
)
from ..core.errors import EvenfieldError
from ..core.terminal import say
from .loop.signals import StopRequest, listening


app = typer.Typer(
    cls=DefaultCommandGroup,
    no_args_is_help=True,
    help="Pretrain a potential: evenfield pretrain data=FOLDER out=FOLDER, or a command.",
)


@app.command()
def run(
    overrides: Overrides = None,
    recipe: Recipe = None,
    resume: Annotated[
        Literal["no", "auto", "must"],
        typer.Option(
            "--resume",
            help="continue from the newest whole checkpoint; auto starts afresh if there is none, "
            "and is refused if all are damaged",
        ),
    ] = "no",
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="start a new run in an occupied folder; the old run is removed at the end",
        ),
    ] = False,
    changed_data: Annotated[
        bool,
        typer.Option(
            "--changed-data", help="with --resume: continue although the data have grown or changed"
        ),
    ] = False,
    # DeepSpeed's launcher adds this option
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
    show_settings: Annotated[bool, settings_option("pretrain.config:PretrainConfig")] = False,
) -> None:
    """Pretrain a potential on a converted data set; the word `run` can be left out.

    SIGTERM, SIGUSR1 and Ctrl-C save and stop at the end of a step.

    Examples:
    evenfield pretrain data=runs/embedded out=runs/uniform max_steps=2000
    evenfield pretrain data=runs/embedded out=runs/uniform max_steps=2000 --resume auto
    torchrun --nproc-per-node 2 -m evenfield.cli pretrain --recipe recipe.yaml
    """
    if overwrite and resume != "no":
        raise EvenfieldError(
            "--overwrite starts a new run, and --resume continues one", remedy="give one of them"
        )
    stop = StopRequest()
    # Signals are caught before torch is imported. The import takes seconds, and a signal during
    # that time would kill a rank silently.
    with listening(stop):
        from ..core.settings import load_settings
        from .config import PretrainConfig
        from .run import pretrain

        config = load_settings(PretrainConfig, recipe, overrides)
        model = pretrain(config, resume, stop=stop, overwrite=overwrite, changed_data=changed_data)
    if model is not None and os.environ.get("RANK", "0") == "0":
        say(f"model: {model}")


@app.command()
def watch(
    run_folder: Annotated[Path, typer.Argument(help="folder of a run, `out` of its settings")],
    overrides: Overrides = None,
    show_settings: Annotated[bool, settings_option("pretrain.monitor.watch:WatchConfig")] = False,
) -> None:
    """Keep a page in a run folder that shows the progress of the training.

    It is updated until the run ends. Ctrl-C stops it earlier.

    Example: evenfield pretrain watch runs/uniform every=10
    """
    from ..core.rich_console import Console
    from ..core.settings import load_settings
    from .monitor.watch import WatchConfig
    from .monitor.watch import watch as run_watch

    config = load_settings(WatchConfig, None, overrides)
    try:
        run_watch(run_folder, config, Console(soft_wrap=True))
    except KeyboardInterrupt:
        # the usual way to stop; the last page stays
        say()


def evaluate(
    model: ModelReference,
    data: Annotated[Path, typer.Argument(help="folder of a converted data set")],
    out: Annotated[Path, typer.Argument(help="folder for evaluation.json and predictions.npz")],
    split: Annotated[
        Literal["train", "valid", "test"], typer.Option(help="which structures")
    ] = "test",
    folder_hub: FolderHub = None,
    overwrite: Overwrite = False,
) -> None:
    """Errors of a model on a data set: overall, by level of theory and by element.

    Structures that the model cannot predict are left out, and the reasons are printed: other levels
    of theory, and elements that the model was not trained on at their level.

    Example: evenfield evaluate runs/uniform/model runs/embedded runs/errors
    """
    from ..core.destination import check_destination, replace_folder
    from ..core.files import file_errors, write_atomically
    from ..core.freed_memory import keep_freed_memory
    from ..data_pipelines.physics.residual import as_learned
    from ..data_pipelines.stream.collection import Collection
    from ..model_zoo.evaluation.coverage import Coverage
    from ..model_zoo.evaluation.evaluation import NothingToEvaluateError, predict
    from ..model_zoo.evaluation.summary import summarise
    from ..model_zoo.hub.load import load

    check_destination(out, overwrite=overwrite, kinds=["an evaluation"], inputs=[model, data])
    collection = Collection([str(data)])
    if not collection.num_structures(split):
        raise EvenfieldError(
            f"the data set has no structures in the {split} split",
            file=data,
            remedy="name another with --split",
        )
    loaded = load(model, folder_hub=folder_hub)
    keep_freed_memory()
    coverage = Coverage(loaded.record.learned)
    structures = coverage.answerable(collection.structures(split))
    # the model predicts labels minus its physics
    structures = as_learned(structures, data, loaded.potential.config.physics)
    try:
        predictions = predict(loaded.potential, structures, progress=True)
    except NothingToEvaluateError:
        raise EvenfieldError(
            f"the model can answer for none of the structures of {split}: "
            + "; ".join(coverage.left_out),
            file=data,
            remedy="name a model that was trained at these levels of theory on these elements",
        ) from None
    record = loaded.record
    summary = summarise(predictions, split, record.train_counts, record.level_counts)
    summary.refuse_infinite()
    own_files = {"evaluation.json", "predictions.npz"}
    # written together, because parity plots and errors must belong to the same model
    with replace_folder(out, own_files.__contains__) as new, file_errors(out):
        predictions.parity().save(new / "predictions.npz")
        write_atomically(new / "evaluation.json", summary.to_json() + "\n")
    say(f"{out / 'evaluation.json'}: {summary.num_structures} structures of {split}")
    for sentence in coverage.left_out:
        say(f"left out: {sentence}")
