"""`evenfield quickstart`; the commands of the other rooms are in the rooms."""

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
    """The whole walk on demo data: generate, convert, pretrain twice, fine-tune, simulate, report.

    Each step is printed as the command that does it. Steps whose output exists are skipped: remove
    the folder to start again.

    Example: evenfield quickstart runs/quickstart
    """
    from ..core.settings import load_settings
    from .quickstart import QuickstartConfig, run_quickstart

    run_quickstart(out, load_settings(QuickstartConfig, None, overrides))
