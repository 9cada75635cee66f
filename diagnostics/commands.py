"""`evenfield report` and `evenfield quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    out: Annotated[Path, typer.Argument(help="folder for report.html and pictures/")],
    runs: Annotated[
        list[str],
        typer.Argument(help="runs to show as name=folder; two are compared before, after"),
    ],
    title: Annotated[str, typer.Option(help="heading of the page")] = "evenfield",
    fewshot: Annotated[
        Path | None, typer.Option(help="fewshot.json of `evenfield finetune curve`")
    ] = None,
    model_card: Annotated[Path | None, typer.Option(help="README.md of a model folder")] = None,
    notes: Annotated[Path | None, typer.Option(help="Markdown to put at the end")] = None,
) -> None:
    """One self-contained HTML page: errors, periodic-table heat maps, learning curves, parity, few-shot curve.

    Example: evenfield report runs/report uniform=runs/uniform reweighted=runs/reweighted --fewshot runs/fewshot.json
    """
    from .report.report import write_report

    folders = {}
    for word in runs:
        name, equals, folder = word.partition("=")
        if not equals:
            raise ValueError(
                f"'{word}': name a run as name=folder, for example uniform=runs/uniform"
            )
        folders[name] = Path(folder)
    page = write_report(
        out, title=title, runs=folders, fewshot=fewshot, model_card=model_card, notes=notes
    )
    typer.echo(f"report: {page}")


def quickstart(
    out: Annotated[Path, typer.Argument(help="folder for everything that it makes")],
    overrides: Annotated[list[str] | None, typer.Argument(help="settings as key=value")] = None,
) -> None:
    """The whole walk on embedded data: generate, convert, pretrain twice, fine-tune, publish, simulate, report.

    Each step is printed as the command that does it. Steps whose output is there are kept; remove the folder to
    start anew.
    """
    from ..cli.quickstart import QuickstartConfig
    from ..cli.quickstart import quickstart as run
    from ..core.settings import load_settings

    run(out, load_settings(QuickstartConfig, None, overrides))
