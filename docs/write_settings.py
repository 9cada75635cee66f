"""Write docs/settings.md: every setting of every command, from the classes that own them.

python docs/write_settings.py            write the page
python docs/write_settings.py --check    exit code 1 if the page is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from evenfield.cli import app
from evenfield.core.command_line import settings_class
from evenfield.core.settings import recipes_of
from evenfield.core.settings_table import as_markdown


PAGE = Path(__file__).parent / "settings.md"
INTRODUCTION = """\
# Settings

<!-- written by docs/write_settings.py; change the descriptions in the classes instead -->

A command takes settings as words `key=value`, with a dot for nested keys:
`optimizer.learning_rate=0.001`. Values are YAML: `elements=[H, O]`, `licence=null`. Where a command
has `--recipe`, a YAML file can hold the same keys as a tree, and the words are laid over it. A key
that does not exist is an error. In the tables, `NAME` stands for a key that you choose.

`--settings` prints the same list on the terminal, for example `evenfield pretrain --settings`."""


def page() -> str:
    """The content of docs/settings.md."""
    sections = [INTRODUCTION]
    shown: dict[str, str] = {}
    for words, class_path in sorted(commands_with_settings()):
        cls = settings_class(class_path)
        if class_path in shown:
            sections.append(f"## {words}\n\nThe settings of `{shown[class_path]}`, which see.")
            continue
        shown[class_path] = words
        lines = [f"## {words}", "", f"`{cls.__name__}` in `{_source_file(class_path)}`."]
        recipes = sorted(recipe.stem for recipe in recipes_of(cls).glob("*.yaml"))
        if recipes:
            lines[-1] += f" Shipped recipes: {', '.join(f'`{name}`' for name in recipes)}."
        sections.append("\n".join([*lines, "", as_markdown(cls)]))
    return "\n\n".join(sections) + "\n"


def commands_with_settings() -> Iterator[tuple[str, str]]:
    """Each command that has `--settings`, as it is typed, with the path of its class."""
    for words, command in all_commands():
        for parameter in command.params:
            class_path = getattr(parameter.callback, "class_path", None)
            if class_path is not None:
                yield words, class_path


def all_commands() -> Iterator[tuple[str, Any]]:
    """Every command of the command line as it is typed, without the name of a default command."""
    yield from _commands("evenfield", typer.main.get_command(app))


def _commands(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "list_commands"):
        yield words, command
        return
    context = command.make_context(words, [], resilient_parsing=True)
    default = getattr(command, "default_command", None)
    for name in command.list_commands(context):
        below = words if name == default else f"{words} {name}"
        yield from _commands(below, command.get_command(context, name))


def _source_file(class_path: str) -> str:
    module = class_path.partition(":")[0]
    return f"{module.replace('.', '/')}.py"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        up_to_date = PAGE.read_text() == page()
        print("settings.md is up to date" if up_to_date else "run: python docs/write_settings.py")
        sys.exit(not up_to_date)
    PAGE.write_text(page())
