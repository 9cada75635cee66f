"""What a check is, and how `evenfield check` finds it.

A check is a file in `checks/` with a function `check`, which takes a model, structures and settings
and returns a CheckResult. Its parameters become the parameters of the command, and its docstring
becomes the help text:

    def check(
        model: CheckedModel,
        structure: Annotated[Atoms, structure_argument("crystal to strain")],
        steps: Annotated[int, typer.Option(min=2, help="number of strains")] = 5,
    ) -> CheckResult:

The command adds the options that all checks share: --level-of-theory, --folder-hub, --json and
--overwrite. If the first parameter is a `CheckedCalculator`, the command also takes --calculator,
which names an ASE calculator to check in place of a model. If the check has a parameter `settings`,
whose type is a settings class, the command takes `key=value` words and --settings.
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


# Largest atomic number that is tried to find out which elements another calculator knows.
HEAVIEST = 103
VERDICTS = {True: "passed", False: "FAILED", None: "not judged"}
# Most names of skipped items that are shown on one line.
MOST_NAMES = 10


class CheckError(EvenfieldError):
    """The check cannot be made for this model, calculator, structure or data."""


class CheckedCalculator(ABC):
    """The subject of a check: a head of a model, or any ASE calculator."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the subject, with its revision if it has one."""

    @property
    def identity(self) -> str:
        """Key under which results are stored; it must change when the subject changes.

        By default the name.
        """
        return self.name

    @property
    @abstractmethod
    def level(self) -> str:
        """The level of theory, or the name of the calculator."""

    @property
    @abstractmethod
    def symbols(self) -> list[str]:
        """Chemical symbols of the elements that the subject knows."""

    @property
    @abstractmethod
    def knows_free_atoms(self) -> bool:
        """Whether energies of free atoms are physically meaningful; see `CheckedModel`."""

    @abstractmethod
    def calculator(self, dtype: str | None = None) -> Calculator:
        """An ASE calculator.

        dtype: "float32" or "float64"; None for the calculator's own precision.
        """


@dataclass(frozen=True)
class CheckedModel(CheckedCalculator):
    """A model and the head that a check looks at.

    level_of_theory: the level of theory of the head; None for the model's default.
    folder: the model folder if the model was given as a local path, else None.
    """

    loaded: LoadedModel
    level_of_theory: str | None = None
    folder: Path | None = None

    @property
    def name(self) -> str:
        """The reference of the model, pinned to a revision."""
        return self.loaded.reference

    @property
    def level(self) -> str:
        """The level of theory of the head that is used."""
        return self.loaded.level_to_use(self.level_of_theory)

    @property
    def symbols(self) -> list[str]:
        """The elements that the head was trained on."""
        return self.loaded.record.trained_symbols(self.level)

    @property
    def knows_free_atoms(self) -> bool:
        """False: reference energies are fitted to structures, not computed for free atoms."""
        return False

    def calculator(self, dtype: str | None = None) -> Calculator:
        """An ASE calculator of the head.

        dtype: "float32" or "float64"; None for the dtype of the weights.
        """
        # most checks use structures that are outside of any training set, so do not warn
        return self.loaded.calculator(
            level_of_theory=self.level_of_theory, dtype=dtype, warn_outside=False
        )


@dataclass(frozen=True)
class Figure:
    """One number that a check found.

    unit: empty for a number without a unit.
    limit: the largest value that passes; None for no upper bound.
    at_least: the smallest value that passes; None for no lower bound.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    at_least: float | None = None

    @property
    def is_judged(self) -> bool:
        """Whether the figure has a threshold."""
        return self.limit is not None or self.at_least is not None

    @property
    def passed(self) -> bool:
        """Whether the value is within its thresholds.

        True without a threshold. With one, False for NaN.
        """
        is_small = self.limit is None or self.value <= self.limit
        is_large = self.at_least is None or self.value >= self.at_least
        return is_small and is_large

    @property
    def shown_value(self) -> str:
        """The value with its unit."""
        return f"{short_number(self.value)} {self.unit}".strip()

    @property
    def shown_threshold(self) -> str:
        """The thresholds as text; empty if there are none."""
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
    """What a check found.

    figures: numbers, for programs.
    lines: text, for people.
    skipped: names of items that were not judged, because they contain an unknown element.
    pictures: file name -> PNG.
    """

    figures: list[Figure] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """Whether all figures pass; None if no figure has a threshold."""
        if not any(figure.is_judged for figure in self.figures):
            return None
        return all(figure.passed for figure in self.figures)

    def write_pictures(self, folder: Path) -> None:
        """Write the pictures into a folder, which is made if it is not there. Raises FileError."""
        with file_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in self.pictures.items():
                write_atomically(folder / name, content)

    def as_dict(self) -> dict[str, Any]:
        """Everything except the pictures, JSON-ready."""
        return {
            "passed": self.passed,
            "figures": [asdict(figure) for figure in self.figures],
            "lines": self.lines,
            "skipped": self.skipped,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any], pictures: dict[str, bytes]) -> CheckResult:
        """The inverse of `as_dict`."""
        figures = [Figure(**figure) for figure in content["figures"]]
        return cls(figures, content["lines"], content["skipped"], pictures)


class OtherCalculator(CheckedCalculator):
    """Any ASE calculator, named by its class or by a function that makes it."""

    def __init__(self, address: str, option: str = "--calculator ") -> None:
        """Import the class or function, and call it once.

        address: module:name. It is called without arguments.
        option: the option or setting that contained the address, for error messages.

        Raises CheckError if the address cannot be imported or called.
        """
        self.address = address
        self._make = _imported(address, option)

    @property
    def name(self) -> str:
        """The address."""
        return self.address

    @property
    def identity(self) -> str:
        """The address and a digest of the code behind it."""
        # imported here, because every start of evenfield imports this module
        from ..core.code_identity import code_identity

        return f"{self.address} {code_identity(self.address)}"

    @property
    def level(self) -> str:
        """The name of the class or function."""
        return self.address.partition(":")[2]

    @cached_property
    def symbols(self) -> list[str]:
        """The elements for which an fcc crystal or a free atom has a finite energy."""
        from ase.data import chemical_symbols

        known = chemical_symbols[1 : HEAVIEST + 1]
        return [symbol for symbol in known if _is_known(self.calculator(), symbol)]

    @property
    def knows_free_atoms(self) -> bool:
        """True: nothing is known about the reference energies, so they are trusted."""
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
        # foreign code can raise anything when it is imported or called
        raise CheckError(f"{option}{address}: {error}", remedy=remedy) from error
    return found


def _is_known(calculator: Calculator, symbol: str) -> bool:
    """Whether a calculator gives a finite energy for an element."""
    import numpy as np
    from ase import Atoms
    from ase.build import bulk
    from ase.data import atomic_numbers, covalent_radii

    # nearest neighbours are 2.4 covalent radii apart, as is usual in a metal
    edge = 2.4 * np.sqrt(2) * covalent_radii[atomic_numbers[symbol]]
    for atoms in (bulk(symbol, "fcc", a=edge), Atoms(symbol)):
        # ASE's builders set magnetic moments for some elements, which some calculators refuse
        atoms.set_initial_magnetic_moments(None)
        try:
            # in the try block, because some calculators refuse an unknown element right here
            atoms.calc = calculator
            if np.isfinite(atoms.get_potential_energy()):
                return True
        except Exception:
            continue
    return False


def structure_argument(description: str) -> Any:
    """A command-line argument that names a structure file; the check receives ase.Atoms."""
    return typer.Argument(parser=_read_structure, metavar="STRUCTURE", help=description)


def check_names() -> list[str]:
    """The names of all checks: the files in `checks/`, which are not imported."""
    return sorted(module.name for module in pkgutil.iter_modules(checks.__path__))


def check_function(name: str) -> Callable[..., CheckResult]:
    """The function `check` of a check; `name` is one of `check_names()`."""
    module = importlib.import_module(f".checks.{name}", __package__)
    check: Callable[..., CheckResult] = module.check
    return check


class CheckGroup(TyperGroup):
    """The commands of `evenfield check`; each check is imported only when it is needed.

    Checks import ASE and SciPy, which would slow down the start of every other command.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """The names that the help shows."""
        return sorted([*check_names(), *self.commands])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command made from a check's function, or a command that was declared explicitly."""
        if cmd_name not in check_names():
            return super().get_command(ctx, cmd_name)
        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(_as_command(cmd_name))
        return typer.main.get_command(single)


def _as_command(name: str) -> Callable[..., None]:
    """Wrap the function of a check with the parameters that all checks share."""
    check = check_function(name)
    module = importlib.import_module(check.__module__)
    own_model, *own = inspect.signature(check, eval_str=True).parameters.values()
    assert own_model.name == "model", f"{name}: the first parameter of a check is the model"
    settings_class = _settings_class(own)

    def command(
        model: Annotated[
            # the backslash keeps rich from reading the bracket as markup
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
        # with --calculator there is no MODEL, so that the first word is a setting
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
                # `sanity` and `physics` run other checks
                made = getattr(module, "BATTERY", ())
                loaded.refuse_unread([name, *(loaded.checks or made)])
            settings["settings"] = loaded
        looked_at = checked(model, calculator, level_of_theory, folder_hub)
        keep_freed_memory()
        result = check(looked_at, **settings)
        for line in result.lines:
            say(line)
        # other checks already print their figures as lines
        if settings_class is SanityConfig and not hasattr(module, "BATTERY"):
            _say_figures(name, result)
        if json_file is not None:
            _write_json(json_file, name, model or looked_at.name, result)
        if result.passed is False:
            raise typer.Exit(1)

    # typer reads the signature: put the check's own parameters after the model
    signature = inspect.signature(command, eval_str=True)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    model, by_calculator, *shared = named
    if own_model.annotation is CheckedCalculator:
        shared.append(by_calculator)
    else:
        model = model.replace(default=inspect.Parameter.empty, annotation=ModelReference)
    if settings_class is not None:
        own = [*[p for p in own if p.name != "settings"], *_words_of(settings_class)]

    # Python wants required parameters first; the sort is stable within both groups
    ordered = sorted(
        [*own, *shared], key=lambda parameter: parameter.default is not parameter.empty
    )
    keyword_only = [p.replace(kind=p.KEYWORD_ONLY) for p in [model, *ordered]]
    command.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    command.__doc__ = check.__doc__
    return command


def _settings_class(parameters: list[inspect.Parameter]) -> type[Settings] | None:
    """The settings class of a check's parameter `settings`; None if it has no such parameter."""
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
    """The subject that a command line names: a model, or a calculator as module:name.

    model: a model folder or a reference.
    level_of_theory: selects a head of the model; None for its default.

    Raises CheckError unless exactly one of `model` and `calculator` is given, or if the calculator
    cannot be made; and the errors of loading a model.
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
    """Print the figures and the verdict of a check that runs alone."""
    for figure in result.figures:
        say(str(figure))
    if result.skipped:
        shown = ", ".join(result.skipped[:MOST_NAMES])
        more = len(result.skipped) - MOST_NAMES
        say(f"skipped, elements not known: {shown}{f' and {more} more' if more > 0 else ''}")
    say(f"{name}: {VERDICTS[result.passed]}")


def _write_json(path: Path, name: str, model: str, result: CheckResult) -> None:
    """Write the figures and the verdict as a JSON file."""
    import json

    content = {"check": name, "model": model, **result.as_dict()}
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=1) + "\n")


def _read_structure(path: str) -> Atoms:
    from ..data_pipelines.sources.ase_files import read_one

    return read_one(Path(path))
