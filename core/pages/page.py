"""A page is a title and sections; a section is a heading and blocks; `write_page` makes it a file.

The blocks are plain data, so that a caller says what it shows and never how it looks. How they look
is in `templates/page.html.j2` and `templates/page.css`, the one layout of all pages.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..files import file_errors, write_atomically


TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Text:
    """A paragraph; a warning stands out, a remark steps back."""

    kind: ClassVar[str] = "text"
    text: str
    style: str = ""
    """"" for a plain paragraph, "warning" or "remark"."""


@dataclass(frozen=True)
class Bullets:
    """A list of short texts."""

    kind: ClassVar[str] = "bullets"
    texts: list[str]


@dataclass(frozen=True)
class Figures:
    """Key figures in one line: what a reader looks for first."""

    kind: ClassVar[str] = "figures"
    pairs: list[tuple[str, str]]
    """Label and value."""


@dataclass(frozen=True)
class Progress:
    """A bar that is filled to a share from 0 to 1."""

    kind: ClassVar[str] = "progress"
    share: float

    @property
    def percent(self) -> str:
        """The share as text with one digit."""
        return f"{100 * self.share:.1f}"


@dataclass(frozen=True)
class Table:
    """Rows below a header; the first column names the row."""

    kind: ClassVar[str] = "table"
    caption: str
    header: list[str]
    rows: list[list[str]]
    folded: bool = False
    """Show the caption alone, and the rows on a click."""
    words: bool = False
    """The cells are words rather than numbers: set them to the left, and break their lines."""


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page. `alt` says what it shows to a reader who cannot see it."""

    kind: ClassVar[str] = "picture"
    alt: str
    png: bytes
    caption: str = ""

    @property
    def data_uri(self) -> str:
        """The picture as the address of an image."""
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Document:
    """HTML that is known to be safe, folded under its caption if it has one."""

    kind: ClassVar[str] = "document"
    caption: str
    html: Markup


Block = Text | Bullets | Figures | Progress | Table | Picture | Document


@dataclass(frozen=True)
class Section:
    """Blocks below a heading; without a heading they follow the title of the page."""

    heading: str
    blocks: Sequence[Block] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The heading as the target of a link."""
        return file_stem(self.heading)


def file_stem(text: str) -> str:
    """Text as a lower-case name that is safe in file names and links."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write_page(
    path: Path,
    title: str,
    sections: Sequence[Section],
    *,
    state: str = "",
    browser_title: str = "",
    reload_seconds: float | None = None,
) -> Path:
    """Write a page whole or not at all, and return its path; arguments as for `page_html`.

    Raises FileError where the page cannot be written.
    """
    html = page_html(
        title,
        sections,
        state=state,
        browser_title=browser_title,
        reload_seconds=reload_seconds,
    )
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, html)
    return path


def page_html(
    title: str,
    sections: Sequence[Section],
    *,
    state: str = "",
    browser_title: str = "",
    reload_seconds: float | None = None,
) -> str:
    """The text of a page.

    state: a word or two next to the title.
    browser_title: name of the browser's tab, by default the title.
    reload_seconds: the browser reads the page again after this time; None for a page that is final.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # names of structures and runs come from files: they are text and never markup
        autoescape=True,
        # a name that the template misspells is an error, not an empty place
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # inside the page, since a page that is sent by mail has no folder next to it
    stylesheet = (TEMPLATES / "page.css").read_text()
    return environment.get_template("page.html.j2").render(
        title=title,
        state=state,
        browser_title=browser_title or title,
        reload_seconds=None if reload_seconds is None else f"{reload_seconds:g}",
        sections=sections,
        headed=[section for section in sections if section.heading],
        stylesheet=Markup(stylesheet),
    )
