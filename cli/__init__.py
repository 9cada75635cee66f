"""The console script `evenfield`.

Each package defines its commands in a `commands.py`. This module only puts them together, and
determines what the user sees if a command fails. In: the words of a command line. Out: an exit
code: 0 for success, 1 for a mistake that the user can correct, 2 for invalid words, 70 for a bug in
evenfield, 130 after Ctrl-C. Read `quickstart.py` next, which runs the other commands in sequence.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import TextIO

import typer

from ..core.errors import EvenfieldError, EvenfieldWarning
from ..core.files import DISK_REMEDIES
from ..core.terminal import say
from ..data_pipelines.commands import app as data_app
from ..diagnostics.commands import check_app, report
from ..finetune.commands import app as finetune_app
from ..model_zoo.commands import app as hub_app
from ..model_zoo.commands import zoo_app
from ..model_zoo.cost.commands import app as model_app
from ..pretrain.commands import app as pretrain_app
from ..pretrain.commands import evaluate
from ..simulation.commands import learn, simulate
from .commands import quickstart
from .zoo_build import zoo_build


USER_ERROR = 1
BUG = 70  # EX_SOFTWARE of sysexits.h; typer itself exits with 2 for invalid words
INTERRUPTED = 130  # what a shell reports after SIGINT


app = typer.Typer(
    no_args_is_help=True,
    # main() itself prints tracebacks, in the plain form that is best for bug reports
    pretty_exceptions_enable=False,
    help="Foundation-model pipeline for interatomic potentials, even across the periodic table.",
)
app.add_typer(data_app, name="data")
app.add_typer(pretrain_app, name="pretrain")
app.command()(evaluate)
app.add_typer(finetune_app, name="finetune")
app.add_typer(hub_app, name="hub")
app.add_typer(model_app, name="model")
zoo_app.command("build")(zoo_build)
app.add_typer(zoo_app, name="zoo")
app.command()(simulate)
app.command()(learn)
app.add_typer(check_app, name="check")
app.command()(report)
app.command()(quickstart)


def main() -> None:
    """Run one command and exit.

    An EvenfieldError is printed as one line, followed by the items of a list if it has one. Any
    other exception is a bug in evenfield: its traceback is printed with the versions that a bug
    report needs. Only an OSError of a full or broken disk is printed like an EvenfieldError.
    """
    try:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                app()
        finally:
            # flush here, where a BrokenPipeError can still be handled
            sys.stdout.flush()
    except EvenfieldError as error:
        say(f"error: {_in_few_lines(str(error))}", colour="red", err=True)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # as in `evenfield ... | head`; Python flushes again at exit, which must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(USER_ERROR)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_REMEDIES:
            where = f"{error.filename}: " if error.filename else ""
            text = f"{where}{error.strerror}: {DISK_REMEDIES[error.errno]}"
            say(f"error: {_in_few_lines(text)}", colour="red", err=True)
            sys.exit(USER_ERROR)

        import traceback

        say(traceback.format_exc(), err=True)
        say(
            f"\nThis is a bug in evenfield ({_versions()}). "
            "Please report it with the command and the traceback above.",
            colour="red",
            err=True,
        )
        sys.exit(BUG)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning for users as one line, and any other with its place in the source."""
    if issubclass(category, EvenfieldWarning):
        say(f"warning: {' '.join(str(message).split())}", colour="yellow", err=True)
    else:
        say(warnings.formatwarning(message, category, filename, lineno, line).rstrip(), err=True)


def _in_few_lines(text: str) -> str:
    """Join the text of an error to one line, except for list items, which are indented by two."""
    lines = []
    for line in text.split("\n  "):
        lines.append(" ".join(line.split()))
    return "\n  ".join(lines)


def _versions() -> str:
    """The versions that a bug report needs, found without importing the packages."""
    # imported here, so that commands that succeed do not wait for these imports
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = [f"Python {platform.python_version()}"]
    for package in ("evenfield", "torch"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)
