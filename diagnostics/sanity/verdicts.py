"""What the checks share: figures that count failures, lists of names, progress bars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from ase.calculators.calculator import Calculator
from rich.progress import Progress

from ...core.rich_console import Console
from ..check import CheckResult, Figure


# most names of failed systems in a line of text
MAX_NAMES = 12

Item = TypeVar("Item")


def failures(what: str, names: Iterable[str]) -> tuple[Figure, list[str]]:
    """A figure that passes only if `names` is empty, and a line with the names if it is not."""
    listed = list(names)
    lines = [f"{what}: {shortened(listed)}"] if listed else []
    return Figure(what, len(listed), "", limit=0), lines


def shortened(names: list[str]) -> str:
    """The first MAX_NAMES names as text, and how many more there are."""
    shown = ", ".join(names[:MAX_NAMES])
    more = len(names) - MAX_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def progress_bar() -> Progress:
    """A progress bar that disappears at the end; disabled if stderr is not a terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def with_progress(what: str, items: list[Item]) -> Iterator[Item]:
    """Iterate over the items with a progress bar that disappears at the end."""
    with progress_bar() as bar:
        task = bar.add_task(what, total=len(items))
        for item in items:
            yield item
            bar.advance(task)


def refusal_of_energy(calculator: Calculator) -> CheckResult | None:
    """A failed result if a calculator declares that it does not conserve energy; else None.

    No dynamics is needed then, and a short one might not show the drift.
    """
    if getattr(calculator, "conserves_energy", True):
        return None
    figure = Figure("forces that are derivatives of the energy", 0, "", at_least=1.0)
    line = f"{calculator.name}: its forces are not derivatives of its energy, so NVE is no use"
    return CheckResult([figure], [line])
