"""A rich console for untrusted text: no markup, and no control characters."""

from __future__ import annotations

from typing import Any

import rich.console
from rich.progress import ProgressColumn, Task
from rich.text import Text

from .terminal import printable


class Console(rich.console.Console):
    """Prints text and tables literally, without interpreting markup.

    `[red]` in the name of a level of theory is part of the name. To use colours, set a style in the
    call: `print(text, style="red")`. Automatic highlighting is off, because rich's patterns take
    seconds for a name of 20 kB, and their time grows with the square of its length.
    """

    def __init__(self, **options: Any) -> None:
        plain = {"markup": False, "emoji": False, "highlight": False}
        super().__init__(**(plain | options))

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape control characters; all strings pass here, including table cells and titles."""
        return super().render_str(printable(text), **options)


class PlainColumn(ProgressColumn):
    """A text column of a progress bar; the template is a format string with the name `task`."""

    def __init__(self, template: str) -> None:
        self.template = template
        super().__init__()

    def render(self, task: Task) -> Text:
        """The formatted text, without markup and control characters."""
        return Text(printable(self.template.format(task=task)))
