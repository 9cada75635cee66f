"""What a check is, and how `evenfield check` finds it.

A check is a file in `checks/` with one function `check`, from a model, structures and settings to a
CheckResult. Its parameters become those of the command, its docstring the help:

    def check(
        model: CheckedModel,
        structure: Annotated[Atoms, structure_argument("crystal to strain")],
        steps: Annotated[int, typer.Option(min=2, help="number of strains")] = 5,
    ) -> CheckResult:

The command adds the options that every check has: --level-of-theory, --folder-hub, --json and
--overwrite. A check of a `CheckedCalculator` also takes --calculator, any calculator of ASE in
place of a model. A parameter `settings` is a settings class: it becomes `key=value` words and
--settings.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..core.command_line import (
    FolderHub,
    LevelOfTheory,
    ModelReference,
    Overrides,
    settings_option,
)
from ..core.errors import EvenfieldError
from ..core.files import file_errors, write_atomically
from ..core.numbers import short_number
from ..core.terminal import say
from . import checks


if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from ..core.settings import Settings
    from ..model_zoo.hub.load import LoadedModel


# Atomic numbers that a calculator of somebody else is asked for.
HEAVIEST = 103
VERDICTS = {True: "passed", False: "FAILED", None: "not judged"}
# Names of what was skipped that one line shows.
MOST_NAMES = 10


class CheckError(EvenfieldError):
    """A check that cannot be made of this model or structure."""


class CheckedCalculator(ABC):
    """What a check looks at: a head of a model, or any calculator of ASE."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the results are about, pinned to a revision where there is one."""

    @property
    def identity(self) -> str:
        """What results that are kept belong to: the name, if it stands for one thing only."""
        return self.name

    @property
    @abstractmethod
    def level(self) -> str:
        """The level of theory, or the name of the calculator."""

    @property
    @abstractmethod
    def symbols(self) -> list[str]:
        """The elements that can be asked for."""

    @property
    @abstractmethod
    def knows_free_atoms(self) -> bool:
        """Whether the energy of a free atom means what it says; see `CheckedModel`."""

    @abstractmethod
    def calculator(self, dtype: str | None = None) -> Calculator:
        """ASE's view, in "float32", "float64", or None for what the calculator works in itself."""


@dataclass(frozen=True)
class CheckedModel(CheckedCalculator):
    """A model with the head that a check looks at; None is the model's default.

    folder: where the model lies, if a folder on this machine was named.
    """

    loaded: LoadedModel
    level_of_theory: str | None = None
    folder: Path | None = None

    @property
    def name(self) -> str:
        """The pinned reference."""
        return self.loaded.reference

    @property
    def level(self) -> str:
        """The head that answers."""
        return self.loaded.level_to_use(self.level_of_theory)

    @property
    def symbols(self) -> list[str]:
        """The elements that the head was trained on."""
        return self.loaded.record.trained_symbols(self.level)

    @property
    def knows_free_atoms(self) -> bool:
        """No: its reference energies come from a regression over structures, not from atoms."""
        return False

    def calculator(self, dtype: str | None = None) -> Calculator:
        """ASE's view of the head, in "float32", "float64", or None for that of the weights."""
        # most checks ask for structures that no training set has
        return self.loaded.calculator(
            level_of_theory=self.level_of_theory, dtype=dtype, warn_outside=False
        )


@dataclass(frozen=True)
class Figure:
    """One number that a check found.

    unit: empty for a ratio.
    limit: the largest value that passes; at_least: the smallest. None where there is no verdict.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    at_least: float | None = None

    @property
    def is_judged(self) -> bool:
        """Whether there is a threshold."""
        return self.limit is not None or self.at_least is not None

    @property
    def passed(self) -> bool:
        """True also without a threshold; false for NaN."""
        is_small = self.limit is None or self.value <= self.limit
        is_large = self.at_least is None or self.value >= self.at_least
        return is_small and is_large

    @property
    def shown_value(self) -> str:
        """The value with its unit."""
        return f"{short_number(self.value)} {self.unit}".strip()

    @property
    def shown_threshold(self) -> str:
        """The bounds, for a reader; empty without any."""
        parts = []
        if self.at_least is not None:
            parts.append(f"at least {short_number(self.at_least)}")
        if self.limit is not None:
            parts.append(f"at most {short_number(self.limit)}")
        return ", ".join(parts)

    def __str__(self) -> str:
        text = f"{self.name}: {self.shown_value}"
        if self.is_judged:
            text += f" ({self.shown_threshold}): {VERDICTS[self.passed]}"
        return text


@dataclass(frozen=True)
class CheckResult:
    """What a check found: figures for programs, lines of text for people.

    skipped: what was not judged, because the calculator does not know an element of it.
    pictures: name -> PNG.
    """

    figures: list[Figure] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """The verdict; None for a check that only measures, where no figure has a threshold."""
        if not any(figure.is_judged for figure in self.figures):
            return None
        return all(figure.passed for figure in self.figures)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, for JSON."""
        return {
            "passed": self.passed,
            "figures": [asdict(figure) for figure in self.figures],
            "lines": self.lines,
            "skipped": self.skipped,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any], pictures: dict[str, bytes]) -> CheckResult:
        """What `as_dict` gave."""
        figures = [Figure(**figure) for figure in content["figures"]]
        return cls(figures, content["lines"], content["skipped"], pictures)


class OtherCalculator(CheckedCalculator):
    """A calculator that is not ours, by the name of its class or of a function that makes one."""

    def __init__(self, address: str, option: str = "--calculator ") -> None:
        """`address` is module:name, and `option` what it was given to, for messages.

        Raises CheckError when nothing can be made of it.
        """
        self.address = address
        self._make = _imported(address, option)

    @property
    def name(self) -> str:
        """The address."""
        return self.address

    @property
    def identity(self) -> str:
        """The address, and a digest of the code behind it."""
        # this module is imported at every start of evenfield
        from ..core.code_identity import code_identity

        return f"{self.address} {code_identity(self.address)}"

    @property
    def level(self) -> str:
        """The name of the class or function."""
        return self.address.partition(":")[2]

    @cached_property
    def symbols(self) -> list[str]:
        """The elements that a close-packed crystal or a free atom of gives an energy."""
        from ase.data import chemical_symbols

        known = chemical_symbols[1 : HEAVIEST + 1]
        return [symbol for symbol in known if _is_known(self.calculator(), symbol)]

    @property
    def knows_free_atoms(self) -> bool:
        """Yes: a potential of somebody else is taken at its word."""
        return True

    def calculator(self, dtype: str | None = None) -> Calculator:
        """A new calculator; `dtype` has no effect."""
        return self._make()


def _imported(address: str, option: str) -> Callable[[], Calculator]:
    remedy = (
        "write module:name of a class or function that needs no arguments, for example "
        "ase.calculators.emt:EMT"
    )
    if ":" not in address:
        raise CheckError(f"{option}{address}: names no class or function", remedy=remedy)
    try:
        found: Callable[[], Calculator] = pkgutil.resolve_name(address)
        found()
    except Exception as error:
        # whatever a foreign module does wrong when it is imported and called
        raise CheckError(f"{option}{address}: {error}", remedy=remedy) from error
    return found


def _is_known(calculator: Calculator, symbol: str) -> bool:
    """Whether a calculator gives an energy for an element."""
    import numpy as np
    from ase import Atoms
    from ase.build import bulk
    from ase.data import atomic_numbers, covalent_radii

    # nearest neighbours at 2.4 covalent radii, the usual spacing in a metal
    edge = 2.4 * np.sqrt(2) * covalent_radii[atomic_numbers[symbol]]
    for atoms in (bulk(symbol, "fcc", a=edge), Atoms(symbol)):
        # ASE gives some elements a magnetic moment, which some calculators refuse
        atoms.set_initial_magnetic_moments(None)
        try:
            # some refuse an unknown element as soon as they get the atoms
            atoms.calc = calculator
            if np.isfinite(atoms.get_potential_energy()):
                return True
        except Exception:
            continue
    return False


def structure_argument(description: str) -> Any:
    """An argument of a command that is a file, and reaches the check as ase.Atoms."""
    return typer.Argument(parser=_read_structure, metavar="STRUCTURE", help=description)


def check_names() -> list[str]:
    """The names of all checks, from the files in `checks/`, which are not imported for it."""
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
        return sorted([*check_names(), *self.commands])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a check, made from its function, or one that is declared as others are."""
        if cmd_name not in check_names():
            return super().get_command(ctx, cmd_name)
        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(_as_command(cmd_name))
        return typer.main.get_command(single)


def _as_command(name: str) -> Callable[..., None]:
    """The function of a check with the parameters of a command around its own."""
    check = check_function(name)
    module = importlib.import_module(check.__module__)
    own_model, *own = inspect.signature(check, eval_str=True).parameters.values()
    assert own_model.name == "model", f"{name}: the first parameter of a check is the model"
    settings_class = _settings_class(own)

    def command(
        model: Annotated[
            # the backslash keeps rich from taking the bracket for markup
            str | None, typer.Argument(help="model folder, zoo name or owner/name\\[@revision]")
        ] = None,
        calculator: Annotated[
            str | None,
            typer.Option(help="calculator of ASE in place of MODEL, as module:name"),
        ] = None,
        level_of_theory: LevelOfTheory = None,
        folder_hub: FolderHub = None,
        json_file: Annotated[
            Path | None, typer.Option("--json", help="file for the figures and the verdict")
        ] = None,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="replace the file of --json")
        ] = False,
        **settings: Any,
    ) -> None:
        from ..core.destination import check_destination, json_kind
        from ..core.freed_memory import keep_freed_memory
        from ..core.settings import load_settings
        from .sanity.config import SanityConfig

        words = settings.pop("overrides", None) or []
        settings.pop("show_settings", None)
        # with --calculator there is no MODEL, and the first word is a setting
        if calculator is not None and model is not None and "=" in model:
            words = [model, *words]
            model = None

        if json_file is not None:
            check_destination(
                json_file,
                overwrite=overwrite,
                file_kind=json_kind(f"figures of `evenfield check {name}`", check=name),
                inputs=[] if model is None else [model],
                elsewhere="name another file for --json",
            )
        if settings_class is not None:
            loaded = load_settings(settings_class, None, words)
            if isinstance(loaded, SanityConfig):
                # `sanity` and `physics` are made of others
                made = getattr(module, "BATTERY", ())
                loaded.refuse_unread([name, *(loaded.checks or made)])
            settings["settings"] = loaded
        looked_at = checked(model, calculator, level_of_theory, folder_hub)
        keep_freed_memory()
        result = check(looked_at, **settings)
        for line in result.lines:
            say(line)
        # the others have tables of their own among the lines
        if settings_class is SanityConfig and not hasattr(module, "BATTERY"):
            _say_figures(name, result)
        if json_file is not None:
            _write_json(json_file, name, model or looked_at.name, result)
        if result.passed is False:
            raise typer.Exit(1)

    # typer reads the signature: the check's own parameters come after the model
    signature = inspect.signature(command, eval_str=True)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    model, by_calculator, *shared = named
    if own_model.annotation is CheckedCalculator:
        shared.append(by_calculator)
    else:
        model = model.replace(default=inspect.Parameter.empty, annotation=ModelReference)
    if settings_class is not None:
        own = [*[p for p in own if p.name != "settings"], *_words_of(settings_class)]

    # required parameters first, as Python demands; the sort keeps the order within both groups
    ordered = sorted(
        [*own, *shared], key=lambda parameter: parameter.default is not parameter.empty
    )
    keyword_only = [p.replace(kind=p.KEYWORD_ONLY) for p in [model, *ordered]]
    command.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    command.__doc__ = check.__doc__
    return command


def _settings_class(parameters: list[inspect.Parameter]) -> type[Settings] | None:
    """The class of the parameter `settings` of a check, if it has one."""
    for parameter in parameters:
        if parameter.name == "settings":
            found: type[Settings] = parameter.annotation
            return found
    return None


def _words_of(settings_class: type[Settings]) -> list[inspect.Parameter]:
    """The parameters of a command that fill a settings class."""
    package = __package__.partition(".")[0]
    module = settings_class.__module__.removeprefix(f"{package}.")
    show = settings_option(f"{module}:{settings_class.__name__}")
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter("overrides", kind, default=None, annotation=Overrides),
        inspect.Parameter("show_settings", kind, default=False, annotation=Annotated[bool, show]),
    ]


def checked(
    model: str | None, calculator: str | None, level_of_theory: str | None, folder_hub: str | None
) -> CheckedCalculator:
    """What a command line names: a model by its reference, or a calculator as module:name.

    Raises CheckError unless exactly one of them is given.
    """
    if (model is None) == (calculator is None):
        raise CheckError(
            "MODEL and --calculator: exactly one of them is needed",
            remedy="name a model, or a calculator as --calculator ase.calculators.emt:EMT",
        )
    if calculator is not None:
        return OtherCalculator(calculator)

    from ..core.addresses import local_path
    from ..model_zoo.hub.load import load

    assert model is not None
    loaded = load(model, folder_hub)
    path = local_path(model)
    return CheckedModel(loaded, level_of_theory, path if path.is_dir() else None)


def _say_figures(name: str, result: CheckResult) -> None:
    """What a check made alone has found, and its verdict."""
    for figure in result.figures:
        say(str(figure))
    if result.skipped:
        shown = ", ".join(result.skipped[:MOST_NAMES])
        more = len(result.skipped) - MOST_NAMES
        say(f"skipped, elements not known: {shown}{f' and {more} more' if more > 0 else ''}")
    say(f"{name}: {VERDICTS[result.passed]}")


def _write_json(path: Path, name: str, model: str, result: CheckResult) -> None:
    """The figures and the verdict, for programs."""
    import json

    content = {"check": name, "model": model, **result.as_dict()}
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=1) + "\n")


def _read_structure(path: str) -> Atoms:
    from ..data_pipelines.sources.ase_files import read_one

    return read_one(Path(path))
