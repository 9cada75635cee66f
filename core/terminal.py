"""The door to the terminal: every line that a command prints passes through `say` or `Console`.

Names of levels of theory, runs, files and models come from other people. A terminal takes some
characters for commands, which can set its title, move the cursor or fake a line of ours.
`Console` is in `rich_console.py`, because importing rich takes time.
"""

from __future__ import annotations

import unicodedata

import typer


# Cc: control characters, among them escape. Cf: invisible marks, which can reverse the direction of
# a line. Cs: halves of characters, which cannot be printed. Zl, Zp: other ends of lines.
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
KEPT = "\n\t"


def printable(text: str) -> str:
    r"""Text with its invisible characters written out, so that they are seen and do nothing.

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
    """Print a line; `err` sends it to stderr."""
    typer.secho(printable(str(text)), err=err, fg=colour)


def _written_out(character: str) -> str:
    """The escape that Python writes for a character."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
