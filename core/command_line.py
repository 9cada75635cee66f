"""Parameters that several commands share, and the option `--settings`.

A command that takes settings as `key=value` words declares these two parameters in this order:

    overrides: Overrides = None,
    show_settings: Annotated[bool, settings_option("pretrain.config:PretrainConfig")] = False,
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from .errors import EvenfieldError
from .terminal import say
from .workers import MOST_WORKERS


if TYPE_CHECKING:
    # importing pydantic takes 0.2 s, which would delay `evenfield --help`
    from .settings import Settings


Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="settings as key=value or key.sub=value; --settings lists them"),
]
Recipe = Annotated[
    Path | None, typer.Option("--recipe", help="YAML file of settings, or a shipped recipe's name")
]
# the backslash keeps rich from interpreting the bracket as markup
ModelReference = Annotated[
    str, typer.Argument(help="model folder, zoo name or owner/name\\[@revision]")
]
FolderHub = Annotated[
    str | None,
    typer.Option(
        "--folder-hub", help="root of a folder hub: a path or s3://...; or set EVENFIELD_HUB"
    ),
]
LevelOfTheory = Annotated[
    str | None,
    typer.Option("--level-of-theory", help="head of the model; its default when not given"),
]

Device = Annotated[
    str, typer.Option("--device", help="where the model computes: cpu, cuda or cuda:1")
]
DType = Annotated[
    str | None,
    typer.Option("--dtype", help="float32 or float64; that of the weights when not given"),
]

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="replace what OUT holds, once the new result is whole")
]

Workers = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_WORKERS, help="processes; one per core when not given"),
]


class CommandLineError(EvenfieldError):
    """The words of a command line do not fit together."""


class DefaultCommandGroup(TyperGroup):
    """A group of commands in which the name of the default command may be left out."""

    default_command = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the name of the default command if the words do not name a command."""
        is_named = not args or args[0] in self.commands or args[0] in ctx.help_option_names
        return super().parse_args(ctx, args if is_named else [self.default_command, *args])


def settings_option(class_path: str) -> Any:
    """The flag `--settings` of a command, which prints the keys of a settings class and exits.

    class_path: `module:Class` below `evenfield`. It is a string, so that the class (and sometimes
        torch with it) is imported only if the flag is used.
    """
    return typer.Option(
        "--settings",
        is_eager=True,
        show_default=False,
        help="print every setting with its type, default and meaning",
        callback=_printer(class_path),
    )


def settings_class(class_path: str) -> type[Settings]:
    """Import the class that a `module:Class` path below `evenfield` names."""
    module, _, name = class_path.partition(":")
    package = __package__.partition(".")[0]
    found: type[Settings] = getattr(importlib.import_module(f"{package}.{module}"), name)
    return found


def share_of_work(task: str | None) -> tuple[int, int] | None:
    """Parse `--task K/N` to (K, N): the K-th of N shares, counted from 1; None stays None.

    Raises CommandLineError unless the text has two numbers with K from 1 to N.
    """
    if task is None:
        return None
    first, _, total = task.partition("/")
    is_share = first.isdecimal() and total.isdecimal() and 1 <= int(first) <= int(total)
    if not is_share:
        remedy = "write K/N with K from 1 to N, for example 1/8"
        raise CommandLineError(f"--task {task}", remedy=remedy)
    return int(first), int(total)


def _printer(class_path: str) -> Callable[[bool], None]:
    def print_settings(wanted: bool) -> None:
        if not wanted:
            return
        # imported here, so that other commands start faster
        from .settings_table import as_text

        say(as_text(settings_class(class_path)))
        raise typer.Exit

    print_settings.class_path = class_path  # type: ignore[attr-defined]  # read by the documentation
    return print_settings
