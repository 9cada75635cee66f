"""What a check is, and how `evenfield check` finds it.

A check is a file in `checks/` with one function `check`, from a model, structures and settings to a
CheckResult. Its parameters become those of the command, its docstring the help:

    def check(
        model: CheckedModel,
        structure: Annotated[Atoms, structure_argument("crystal to strain")],
        steps: Annotated[int, typer.Option(min=2, help="number of strains")] = 5,
    ) -> CheckResult:

The command adds the options that every check has: --level-of-theory, --folder-hub, --json and
--overwrite.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..core.command_line import FolderHub, LevelOfTheory, ModelReference, Overwrite
from ..core.errors import EvenfieldError
from ..core.files import file_errors, write_atomically
from ..core.terminal import say
from . import checks


if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from ..model_zoo.hub.load import LoadedModel


class CheckError(EvenfieldError):
    """A check that cannot be made of this model or structure."""


@dataclass(frozen=True)
class CheckedModel:
    """A model with the head that a check looks at; None is the model's default."""

    loaded: LoadedModel
    level_of_theory: str | None = None

    @property
    def symbols(self) -> list[str]:
        """The elements that the head was trained on."""
        level = self.loaded.level_to_use(self.level_of_theory)
        return self.loaded.record.trained_symbols(level)

    def calculator(self, dtype: str | None = None) -> Calculator:
        """ASE's view of the head, in "float32", "float64", or None for that of the weights."""
        return self.loaded.calculator(level_of_theory=self.level_of_theory, dtype=dtype)


@dataclass(frozen=True)
class Figure:
    """One number that a check found.

    unit: empty for a ratio.
    limit: the largest value that passes; None where there is no verdict.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def passed(self) -> bool:
        """True also without a limit; false for NaN."""
        return self.limit is None or self.value <= self.limit


@dataclass(frozen=True)
class CheckResult:
    """What a check found: figures for programs, lines of text for people."""

    figures: list[Figure] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool | None:
        """The verdict; None for a check that only measures, where no figure has a limit."""
        if all(figure.limit is None for figure in self.figures):
            return None
        return all(figure.passed for figure in self.figures)


def structure_argument(description: str) -> Any:
    """An argument of a command that is a file, and reaches the check as ase.Atoms."""
    return typer.Argument(parser=_read_structure, metavar="STRUCTURE", help=description)


def check_names() -> list[str]:
    """The names of all checks, from the files in `checks/`, which are not imported for it."""
    # imported late, as everything that the start of another command can do without
    import pkgutil

    return sorted(module.name for module in pkgutil.iter_modules(checks.__path__))


def check_function(name: str) -> Callable[..., CheckResult]:
    """The function `check` of one of `check_names()`."""
    module = importlib.import_module(f".checks.{name}", __package__)
    check: Callable[..., CheckResult] = module.check
    return check


class CheckGroup(TyperGroup):
    """The commands of `evenfield check`, each imported when it is asked for.

    Checks need ASE and SciPy. Importing them all would slow down the start of every other command.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """The names that the help shows."""
        return check_names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a check, made from its function."""
        if cmd_name not in check_names():
            return None
        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(_as_command(cmd_name))
        return typer.main.get_command(single)


def _as_command(name: str) -> Callable[..., None]:
    """The function of a check with the parameters of a command around its own."""
    check = check_function(name)

    def command(
        model: ModelReference,
        level_of_theory: LevelOfTheory = None,
        folder_hub: FolderHub = None,
        json_file: Annotated[
            Path | None, typer.Option("--json", help="file for the figures and the verdict")
        ] = None,
        overwrite: Overwrite = False,
        **settings: Any,
    ) -> None:
        from ..core.destination import check_destination
        from ..model_zoo.hub.load import load

        if json_file is not None:
            check_destination(
                json_file,
                overwrite=overwrite,
                inputs=[model],
                remedy="name another file for --json, or replace it with --overwrite",
            )
        loaded = load(model, folder_hub)
        checked = CheckedModel(loaded, level_of_theory)
        result = check(checked, **settings)
        for line in result.lines:
            say(line)
        if json_file is not None:
            _write_json(json_file, name, model, result)
        if result.passed is False:
            raise typer.Exit(1)

    # typer reads the signature: the check's own parameters come after the model
    own_signature = inspect.signature(check, eval_str=True)
    own_model, *own = own_signature.parameters.values()
    assert own_model.name == "model", f"{name}: the first parameter of a check is the model"

    signature = inspect.signature(command, eval_str=True)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    model, *shared = named

    # required parameters first, as Python demands; the sort keeps the order within both groups
    ordered = sorted(
        [*own, *shared], key=lambda parameter: parameter.default is not parameter.empty
    )
    keyword_only = [p.replace(kind=p.KEYWORD_ONLY) for p in [model, *ordered]]
    command.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    command.__doc__ = check.__doc__
    return command


def _write_json(path: Path, name: str, model: str, result: CheckResult) -> None:
    """The figures and the verdict, for programs."""
    import json

    content = {
        "check": name,
        "model": model,
        "passed": result.passed,
        "figures": [asdict(figure) for figure in result.figures],
    }
    with file_errors(path):
        write_atomically(path, json.dumps(content, indent=1) + "\n")


def _read_structure(path: str) -> Atoms:
    from ..data_pipelines.sources.ase_files import read_one

    return read_one(Path(path))
