"""`evenfield quickstart`; all other commands are defined in their own packages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.command_line import Overrides, settings_option


def quickstart(
    out: Annotated[Path, typer.Argument(help="folder for everything that it makes")],
    overrides: Overrides = None,
    show_settings: Annotated[bool, settings_option("cli.quickstart:QuickstartConfig")] = False,
) -> None:
    """Run the whole pipeline on demo data, from generating it to the report.

    The steps are: generate, convert, pretrain twice, fine-tune, simulate, report. Each step is
    printed as the equivalent command. Steps whose output exists are skipped; to start again, remove
    the folder.

    Example: evenfield quickstart runs/quickstart
    """
    from ..core.settings import load_settings
    from .quickstart import QuickstartConfig, run_quickstart

    run_quickstart(out, load_settings(QuickstartConfig, None, overrides))
