"""The console script `evenfield`: each folder of the house owns its subcommands; this only hangs them up."""

from __future__ import annotations

import sys

import typer

from ..data_pipelines.commands import app as data_app
from ..diagnostics.checks.commands import app as check_app
from ..diagnostics.commands import quickstart, report
from ..finetune.commands import app as finetune_app
from ..finetune.zoo_build.commands import zoo_build
from ..model_zoo.commands import app as hub_app
from ..model_zoo.commands import zoo_app
from ..model_zoo.cost.commands import app as model_app
from ..pretrain.commands import evaluate, pretrain
from ..simulation.commands import simulate


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Foundation-model pipeline for interatomic potentials that is even across the periodic table.",
)
app.add_typer(data_app, name="data")
app.command()(pretrain)
app.command()(evaluate)
app.add_typer(finetune_app, name="finetune")
app.add_typer(hub_app, name="hub")
app.add_typer(model_app, name="model")
zoo_app.command("build")(zoo_build)
app.add_typer(zoo_app, name="zoo")
app.command()(simulate)
app.add_typer(check_app, name="check")
app.command()(report)
app.command()(quickstart)


def main() -> None:
    """Run; a mistake of the user's is one line on stderr and exit code 1, everything else keeps its traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        typer.secho(f"error: {' '.join(str(error).split())}", fg="red", err=True)
        sys.exit(1)
