"""What other people wrote reaches a terminal as text, and never as a command to it."""

from __future__ import annotations

import ast
import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.table import Table

from evenfield.core.rich_console import Console, PlainColumn
from evenfield.core.terminal import printable, say

from house import ROOMS, files


TITLE = "\x1b]0;owned\x07"  # sets the title of the window


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("PBE0/def2-TZVP, 300 K, \u00c5\n\tnext", "PBE0/def2-TZVP, 300 K, \u00c5\n\tnext"),
        (TITLE, r"\x1b]0;owned\x07"),
        ("EMT\r ok", r"EMT\r ok"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb", r"a\u202eb"),
        ("a\u2028b", r"a\u2028b"),
        ("half \ud800", r"half \ud800"),
    ],
)
def test_hidden_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"level {TITLE}")
    say(f"error: {TITLE}", err=True)
    captured = capsys.readouterr()
    assert captured.out == "level \\x1b]0;owned\\x07\n"
    assert captured.err == "error: \\x1b]0;owned\\x07\n"


@pytest.mark.parametrize("name", ["[/bad]", "[red]x", ":smile:", TITLE, "[link=https://x]y[/link]"])
def test_console_prints_names_as_they_are(name: str) -> None:
    """In a line, in the header, title and cells of a table, and in a bar."""
    console = Console(file=io.StringIO(), width=120)
    console.print(f"level {name}", style="bold")
    table = Table(name, title=name)
    table.add_row(name)
    console.print(table)
    with Progress(PlainColumn("{task.description}"), console=console) as bar:
        bar.add_task(f"loads {name}")

    output = console.file.getvalue()
    assert output.count(printable(name)) >= 5
    assert "\x1b]" not in output


# The doors, and what is no door: a protocol for text that the caller prints.
DOORS = {"core/terminal.py", "core/rich_console.py", "core/figures/style.py"}
PAST_THE_DOORS = {"echo", "secho", "savefig", "print_figure", "print_exc"}


def past_the_doors(path: Path) -> Iterator[str]:
    """Calls that bring text or pictures out of the package by another way."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else None
            if isinstance(function, ast.Name):
                name = function.id
            if name in PAST_THE_DOORS or (isinstance(function, ast.Name) and name == "print"):
                yield f"{name} in line {node.lineno}"
            if name == "TextColumn" and not isinstance(node.args[0], ast.Constant):
                yield f"TextColumn in line {node.lineno}"
            if name == "TextColumn" and "{" in str(getattr(node.args[0], "value", "")):
                yield f"TextColumn with a field in line {node.lineno}"


def test_all_output_passes_a_door() -> None:
    wrong = []
    for path in files(*ROOMS):
        where = path.as_posix()
        if any(where.endswith(door) for door in DOORS) or "/scripts/" in where:
            continue
        wrong += [f"{where}: {found}" for found in past_the_doors(path)]
    assert not wrong, "\n".join(wrong)


def test_a_long_name_is_printed_at_once() -> None:
    """Patterns that look for words to colour would need minutes."""
    console = Console(file=io.StringIO(), width=100)
    before = time.process_time()
    console.print("x" * 50_000)
    assert time.process_time() - before < 5
