"""Figures that the checks have in common: how many were judged, how many failed, which ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from ase.calculators.calculator import Calculator
from rich.progress import Progress

from ...core.rich_console import Console
from ..check import CheckResult, Figure


# names of failed systems in a line of text
MAX_NAMES = 12

Item = TypeVar("Item")


def failures(what: str, names: Iterable[str]) -> tuple[Figure, list[str]]:
    """A figure that passes only when nothing failed, and a line with the names."""
    listed = list(names)
    lines = [f"{what}: {shortened(listed)}"] if listed else []
    return Figure(what, len(listed), "", limit=0), lines


def shortened(names: list[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(names[:MAX_NAMES])
    more = len(names) - MAX_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def progress_bar() -> Progress:
    """A bar that vanishes at the end; none where nobody looks at the terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def with_progress(what: str, items: list[Item]) -> Iterator[Item]:
    """The items, with a bar on the terminal that vanishes at the end."""
    with progress_bar() as bar:
        task = bar.add_task(what, total=len(items))
        for item in items:
            yield item
            bar.advance(task)


def refusal_of_energy(calculator: Calculator) -> CheckResult | None:
    """The verdict on a calculator that says itself that it does not conserve energy; else None.

    No dynamics is needed to know it, and a short one might not show it.
    """
    if getattr(calculator, "conserves_energy", True):
        return None
    figure = Figure("forces that are derivatives of the energy", 0, "", at_least=1.0)
    line = f"{calculator.name}: its forces are not derivatives of its energy, so NVE is no use"
    return CheckResult([figure], [line])
