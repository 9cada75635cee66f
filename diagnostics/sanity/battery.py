"""Several checks as one command, which runs them, stores, shows, writes and attaches the results.

`evenfield check sanity` and `evenfield check physics` are batteries. Each check of a battery is a
file in `../checks/`, and can also be run alone as a command.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ...core.destination import FileKind, check_destination
from ...core.errors import MissingPackageError
from ...core.files import file_errors, write_atomically, write_together
from ...core.pages.page import Block, Bullets, Picture, Section, Text, page_html
from ...core.pages.page import Table as PageTable
from ...core.rich_console import Console
from ...core.seals import sealed
from ...core.settings import SettingsError
from ..check import (
    VERDICTS,
    CheckedCalculator,
    CheckedModel,
    CheckError,
    CheckResult,
    check_function,
)
from .config import SanityConfig
from .memory import Memory
from .own_structures import digest_of_file, systems_of_file


ANOTHER_OUT = "choose another --out"
# options that the commands of all batteries share
OutFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="folder for the results as JSON and as a page; what is finished is kept there, and "
        "the same command goes on after a stop",
    ),
]
Attach = Annotated[
    bool, typer.Option("--attach", help="put the verdict into the model's folder and its card")
]
# Key in the results, next to the settings: the digest tells whether the `structures=` file changed.
STRUCTURES_DIGEST = "structures_sha256"


@dataclass(frozen=True)
class Battery:
    """Several checks that run as one command.

    name: name of the command, and stem of the files that it writes.
    checks: names of the checks, in the order in which they run.
    slow: checks that the quick suite leaves out, unless `checks=` names them.
    """

    name: str
    checks: tuple[str, ...]
    slow: tuple[str, ...] = ()

    def file(self, ending: str) -> str:
        """Name of the results file with the ending "json" or "html"."""
        return f"{self.name}.{ending}"

    def run(
        self,
        model: CheckedCalculator,
        settings: SanityConfig,
        out: Path | None = None,
        attach: bool = False,
    ) -> CheckResult:
        """Run the checks and print the verdicts.

        out: folder for the results as JSON and HTML. Finished checks are stored there, and a later
            call with the same model and settings continues after them.
        attach: put the verdict into the model folder and its card.

        Returns the figures of all checks in one result. Raises SettingsError for an unknown check,
        CheckError if a verdict cannot be attached, and DestinationError if `out` must not be
        written, all before any check runs.
        """
        names = _chosen(self, settings)
        if settings.structures is not None:
            systems_of_file(settings.structures)
        if attach:
            _check_attachable(self, model, settings)
        if out is not None:
            _check_out(self, out)

        memory = Memory.of(out, model, settings)
        results = {}
        for name in names:
            results[name] = _result(name, model, settings, out, memory)
            _print_verdict(name, results[name])

        _print_table(f"{model.name}, {model.level}, suite {settings.suite}", results)
        if out is not None:
            page = page_html(
                f"{self.name.capitalize()} of {model.name}, {model.level}",
                _sections(settings, results),
                state=VERDICTS[_verdict(results)],
            )
            content = sealed(_content(model, settings, results))
            # both or none: a full disk must not leave the page of one model with figures of another
            write_together(
                {
                    out / self.file("json"): json.dumps(content, indent=1) + "\n",
                    out / self.file("html"): page,
                }
            )
        if attach:
            assert isinstance(model, CheckedModel)
            _attach(self, model, settings, results)
        return _joined(results)


def _holds_verdict(path: Path) -> bool:
    content = json.loads(path.read_bytes())
    return isinstance(content, dict) and {"model", "passed", "checks"} <= content.keys()


def _check_attachable(battery: Battery, model: CheckedCalculator, settings: SanityConfig) -> None:
    """Raise CheckError unless the verdict is complete and the model is in a local folder."""
    # imported here, because it imports torch, which the help of the command does not need
    from ...model_zoo.package.folder import refuse_files_of_others

    if not isinstance(model, CheckedModel) or model.folder is None:
        raise CheckError(
            f"--attach: {model.name} is not a model folder",
            remedy="name the folder of the model, or leave out --attach",
        )
    if settings.checks is not None or settings.elements is not None:
        raise CheckError(
            "--attach: some checks or elements are left out",
            remedy="leave out checks= and elements=, so that the verdict is about the whole model",
        )
    if settings.structures is not None:
        raise CheckError(
            "--attach: the verdict would be about structures of yours",
            remedy="leave out structures=, or --attach",
        )
    refuse_files_of_others(model.folder, [battery.file("json")])


def _attach(
    battery: Battery,
    model: CheckedModel,
    settings: SanityConfig,
    results: dict[str, CheckResult],
) -> None:
    # imported here, because they import torch, which the help of the command does not need
    from ...model_zoo.package.folder import attach, read_model_folder
    from ...model_zoo.package.sanity_record import CheckVerdict, LevelVerdict, with_verdict

    checks = {}
    for name, result in results.items():
        checks[name] = CheckVerdict(
            passed=result.passed,
            failed=[figure.name for figure in result.figures if not figure.passed],
            skipped=len(result.skipped),
        )
    made = datetime.now(UTC).isoformat(timespec="seconds")
    verdict = LevelVerdict(suite=settings.suite, made=made, checks=checks)

    assert model.folder is not None
    folder = read_model_folder(model.folder)
    potential = model.loaded.potential
    # the verdict belongs to the weights that were checked; the folder may hold others by now
    record = with_verdict(
        potential, folder.attachments, model.level, verdict, file=battery.file("json")
    )
    attach(model.folder, record)
    Console(soft_wrap=True).print(f"attached to {model.folder}")


def _chosen(battery: Battery, settings: SanityConfig) -> list[str]:
    unknown = sorted(set(settings.checks or []) - set(battery.checks))
    if unknown:
        raise SettingsError(
            f"checks: there is no {unknown[0]!r}",
            remedy=f"choose among {', '.join(battery.checks)}",
        )
    if settings.checks is not None:
        return [name for name in battery.checks if name in settings.checks]
    left_out = battery.slow if settings.suite == "quick" else ()
    return [name for name in battery.checks if name not in left_out]


def _check_out(battery: Battery, out: Path) -> None:
    """Raise DestinationError if `out` has any content except that of an earlier run."""
    is_earlier = (out / ".sanity").is_dir()
    if not is_earlier:
        check_destination(out, elsewhere=ANOTHER_OUT, remedy=ANOTHER_OUT)
        return
    kind = FileKind(f"a verdict of `evenfield check {battery.name}`", _holds_verdict)
    # `evenfield check dynamics --folder` may have left its memory in any folder
    verdict, page = out / battery.file("json"), out / battery.file("html")
    check_destination(verdict, overwrite=True, file_kind=kind, elsewhere=ANOTHER_OUT)
    if not verdict.exists():
        # the page is written after the verdict, so a page without a verdict is not ours
        check_destination(page, file_kind=kind, elsewhere=ANOTHER_OUT)


def _result(
    name: str, model: CheckedCalculator, settings: SanityConfig, out: Path | None, memory: Memory
) -> CheckResult:
    """The result of one check, read from memory if an earlier run has finished it."""
    stored = memory.read(name)
    if stored is not None:
        pictures = {}
        for file_name in stored.pop("pictures"):
            assert memory.folder is not None
            with file_errors(memory.folder / file_name):
                pictures[file_name] = (memory.folder / file_name).read_bytes()
        return CheckResult.from_dict(stored, pictures)

    check = check_function(name)
    options: dict[str, Any] = {}
    if "folder" in inspect.signature(check).parameters:
        options["folder"] = out
    try:
        result = check(model, settings, **options)
    except MissingPackageError as error:
        # the other checks still run; nothing is stored, so that a later run makes this check
        return CheckResult(lines=[f"not made: {error.message}; {error.remedy}"])

    if memory.folder is not None:
        for file_name, data in result.pictures.items():
            with file_errors(memory.folder / file_name):
                write_atomically(memory.folder / file_name, data)
        # written last: a check with a record is finished
        memory.write(name, result.as_dict() | {"pictures": sorted(result.pictures)})
    return result


def _verdict(results: dict[str, CheckResult]) -> bool | None:
    """Whether all checks pass; None if no check has a verdict."""
    verdicts = [result.passed for result in results.values() if result.passed is not None]
    return all(verdicts) if verdicts else None


def _joined(results: dict[str, CheckResult]) -> CheckResult:
    """All figures and skipped items in one result, without the lines, which were printed."""
    figures = []
    skipped = []
    for name, result in results.items():
        figures += [replace(each, name=f"{name}: {each.name}") for each in result.figures]
        skipped += [f"{name}: {what}" for what in result.skipped]
    return CheckResult(figures, skipped=skipped)


# --- output for people


def _print_verdict(name: str, result: CheckResult) -> None:
    console = Console(soft_wrap=True)
    colour = {True: "green", False: "red", None: ""}[result.passed]
    console.print(f"{name}: {VERDICTS[result.passed]}", style=colour)
    for line in result.lines:
        console.print(f"  {line}")
    if result.skipped:
        console.print(f"  skipped, elements not known: {len(result.skipped)}")


def _print_table(title: str, results: dict[str, CheckResult]) -> None:
    table = Table("check", "figure", "value", "threshold", "verdict", title=title)
    for name, result in results.items():
        shown = name
        # figures without a threshold are only on the page and in the JSON file
        for figure in result.figures:
            if figure.is_judged:
                verdict = VERDICTS[figure.passed]
                table.add_row(
                    shown, figure.name, figure.shown_value, figure.shown_threshold, verdict
                )
                shown = ""
        if shown:
            table.add_row(name, "", "", "", VERDICTS[result.passed])
    Console().print(table)


def _sections(settings: SanityConfig, results: dict[str, CheckResult]) -> list[Section]:
    """Content of the page: a table of verdicts, then one section for each check."""
    rows = []
    for name, result in results.items():
        failed = [figure.name for figure in result.figures if not figure.passed]
        rows.append([name, VERDICTS[result.passed], "; ".join(failed), str(len(result.skipped))])
    header = ["check", "verdict", "what failed", "skipped"]
    summary: list[Block] = [
        Text(f"Suite {settings.suite}. Skipped are systems with elements that are not known."),
        PageTable("Verdicts", header, rows, words=True),
    ]
    sections = [Section("", summary)]
    for name, result in results.items():
        sections.append(Section(name, _blocks(result)))
    return sections


def _blocks(result: CheckResult) -> list[Block]:
    rows = []
    for figure in result.figures:
        verdict = VERDICTS[figure.passed] if figure.is_judged else ""
        rows.append([figure.name, figure.shown_value, figure.shown_threshold, verdict])
    blocks: list[Block] = [PageTable("", ["figure", "value", "threshold", "verdict"], rows)]
    if result.lines:
        blocks.append(Bullets(result.lines))
    if result.skipped:
        blocks.append(Text(f"Skipped: {', '.join(result.skipped)}.", style="remark"))
    for name, png in result.pictures.items():
        blocks.append(Picture(name, png))
    return blocks


# --- output for programs


def _content(
    model: CheckedCalculator, settings: SanityConfig, results: dict[str, CheckResult]
) -> dict[str, Any]:
    written = settings.model_dump(mode="json")
    if settings.structures is not None:
        written[STRUCTURES_DIGEST] = digest_of_file(settings.structures)
    return {
        "model": model.name,
        "level_of_theory": model.level,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": written,
        "passed": _verdict(results),
        "checks": {name: result.as_dict() for name, result in results.items()},
    }
