"""Output to the terminal: every line that a command prints goes through `say` or `Console`.

Names of levels of theory, runs, files and models may come from untrusted sources. A terminal
interprets some characters as commands, which can set its title, move the cursor or fake a line of
output. Such characters are escaped. `Console` is in `rich_console.py`, because importing rich is
slow.
"""

from __future__ import annotations

import unicodedata

import typer


# Unicode categories that are escaped. Cc: control characters, including escape. Cf: invisible
# format characters, which can reverse the direction of a line. Cs: surrogates, which cannot be
# printed. Zl, Zp: line and paragraph separators.
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
KEPT = "\n\t"


def printable(text: str) -> str:
    r"""Escape the invisible characters of a text, so that they are visible and have no effect.

    >>> printable("EMT\x1b]0;owned\x07")
    'EMT\\x1b]0;owned\\x07'
    """
    if text.isprintable():
        return text
    shown = []
    for character in text:
        is_hidden = unicodedata.category(character) in HIDDEN and character not in KEPT
        shown.append(_written_out(character) if is_hidden else character)
    return "".join(shown)


def say(text: object = "", *, err: bool = False, colour: str | None = None) -> None:
    """Print a line with invisible characters escaped; `err` sends it to stderr."""
    typer.secho(printable(str(text)), err=err, fg=colour)


def _written_out(character: str) -> str:
    """Python's escape sequence for a character."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
