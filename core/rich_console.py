"""rich's console, for text from other people: no markup, and nothing that a terminal would obey."""

from __future__ import annotations

from typing import Any

import rich.console
from rich.progress import ProgressColumn, Task
from rich.text import Text

from .terminal import printable


class Console(rich.console.Console):
    """Prints texts, and tables of texts, as they are written.

    `[red]` in the name of a level of theory is a part of the name. Colours are a style of the call:
    `print(text, style="red")`. Nothing is searched for words to colour: the patterns for that take
    seconds on a name of 20 kB, and with its square more on longer ones.
    """

    def __init__(self, **options: Any) -> None:
        plain = {"markup": False, "emoji": False, "highlight": False}
        super().__init__(**(plain | options))

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string passes here, also those in the cells and the title of a table."""
        return super().render_str(printable(text), **options)


class PlainColumn(ProgressColumn):
    """A column of a progress bar with text in the manner of `str.format`, for the name `task`."""

    def __init__(self, template: str) -> None:
        self.template = template
        super().__init__()

    def render(self, task: Task) -> Text:
        """The text as it is written, without markup."""
        return Text(printable(self.template.format(task=task)))
