"""`evenfield report` and the group `evenfield check`, whose commands are the files in `checks/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.command_line import CommandLineError, Overwrite
from ..core.terminal import say
from .check import CheckGroup


check_app = typer.Typer(
    cls=CheckGroup, no_args_is_help=True, help="Checks of a model that need no labels."
)


# typer takes a group for one command if it has neither a second command nor a callback
@check_app.callback()
def check() -> None:
    """Checks of a model that need no labels."""


def report(
    out: Annotated[Path, typer.Argument(help="folder for report.html and pictures/")],
    runs: Annotated[
        list[str],
        typer.Argument(help="runs to show as name=folder; two are compared, before and after"),
    ],
    title: Annotated[str, typer.Option(help="heading of the page")] = "evenfield",
    fewshot: Annotated[
        Path | None, typer.Option(help="fewshot.json of `evenfield finetune curve`")
    ] = None,
    model_card: Annotated[Path | None, typer.Option(help="README.md of a model folder")] = None,
    notes: Annotated[Path | None, typer.Option(help="Markdown to put at the end")] = None,
    overwrite: Overwrite = False,
) -> None:
    """One self-contained HTML page: errors by element, learning curves, parity, few-shot curve.

    Example: evenfield report runs/report uniform=runs/uniform reweighted=runs/reweighted --fewshot
    runs/fewshot.json
    """
    from ..core.destination import check_destination, replace_folder
    from .report.report import files_of_report, write_report

    folders = {}
    for word in runs:
        name, equals, folder = word.partition("=")
        if not equals:
            raise CommandLineError(
                f"'{word}'", remedy="name a run as name=folder, for example uniform=runs/uniform"
            )
        folders[name] = Path(folder)

    others = [path for path in (fewshot, model_card, notes) if path is not None]
    check_destination(
        out, overwrite=overwrite, kinds=["a report"], inputs=[*folders.values(), *others]
    )
    with replace_folder(out, files_of_report(out)) as new:
        page = write_report(
            new, title=title, runs=folders, fewshot=fewshot, model_card=model_card, notes=notes
        )
    say(f"report: {out / page.name}")
