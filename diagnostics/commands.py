"""`evenfield report` and the group `evenfield check`, whose commands are the files in `checks/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.command_line import (
    CommandLineError,
    FolderHub,
    Overrides,
    Overwrite,
    settings_option,
)
from ..core.terminal import say
from .check import CheckGroup


check_app = typer.Typer(
    cls=CheckGroup,
    no_args_is_help=True,
    help="Checks of a model; all but `trust`, `baselines`, `noise` and `linescan` need no data.",
)


# without a callback or a second command, typer would turn the group into a single command
@check_app.callback()
def check() -> None:
    """Checks of a model; all but `trust`, `baselines`, `noise` and `linescan` need no data."""


@check_app.command("compare")
def compare(
    before: Annotated[
        str,
        typer.Argument(
            help="results of `--out`, a model, or a calculator of ASE as module:name", metavar="A"
        ),
    ],
    after: Annotated[str, typer.Argument(help="the same, to be judged against A", metavar="B")],
    overrides: Overrides = None,
    show_settings: Annotated[
        bool, settings_option("diagnostics.sanity.config:SanityConfig")
    ] = False,
    before_level: Annotated[
        str | None, typer.Option("--level-a", help="head of A; its default when not given")
    ] = None,
    after_level: Annotated[
        str | None, typer.Option("--level-b", help="head of B; its default when not given")
    ] = None,
    folder_hub: FolderHub = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="HTML file for all figures and a picture")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the file of --page")
    ] = False,
) -> None:
    """Compare two potentials, and list the figures that got worse.

    If A or B is a model or a calculator, its checks are run now, with the given settings. If it is
    a folder, its results are read. The exit code is 1 if any figure got worse.

    Examples:
    evenfield check compare runs/before runs/after --page runs/comparison.html
    evenfield check compare evenfield-1 runs/tuned suite=quick checks=[lattice,elastic]
    """
    from ..core.destination import PAGES, check_destination
    from ..core.pages.page import write_page
    from ..core.settings import load_settings
    from .sanity.compare import Comparison, side_of, summary
    from .sanity.config import SanityConfig

    settings = load_settings(SanityConfig, None, overrides or [])
    if page is not None:
        check_destination(
            page,
            overwrite=overwrite,
            file_kind=PAGES,
            inputs=[before, after],
            elsewhere="name another file for --page",
        )
    comparison = Comparison(
        side_of(before, before_level, settings, folder_hub),
        side_of(after, after_level, settings, folder_hub),
    )
    for line in summary(comparison):
        say(line)
    if page is not None:
        title = f"{comparison.before.name} -> {comparison.after.name}"
        write_page(page, title, comparison.sections())
    if comparison.lines("worse"):
        raise typer.Exit(1)


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
    """Write one self-contained HTML page about one or more runs.

    It shows errors by element, learning curves, parity plots and the few-shot curve.

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
