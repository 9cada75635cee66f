"""HTML pages. A page has a title and sections, and a section has a heading and blocks.

Blocks are plain data: the caller defines the content, and `templates/page.html.j2` and
`templates/page.css` define the layout, which is the same for all pages. `write_page` writes a page
to a file.
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
    """A paragraph; a warning is highlighted, a remark is less prominent."""

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
    """The key figures that a reader looks for first, in one line."""

    kind: ClassVar[str] = "figures"
    pairs: list[tuple[str, str]]
    """(label, value)"""


@dataclass(frozen=True)
class Progress:
    """A progress bar; `share` is the filled part, from 0 to 1."""

    kind: ClassVar[str] = "progress"
    share: float

    @property
    def percent(self) -> str:
        """The share in percent, as text with one decimal."""
        return f"{100 * self.share:.1f}"


@dataclass(frozen=True)
class Table:
    """Rows below a header; the first column has the names of the rows."""

    kind: ClassVar[str] = "table"
    caption: str
    header: list[str]
    rows: list[list[str]]
    folded: bool = False
    """Show only the caption until the user clicks it."""
    words: bool = False
    """The cells are words and not numbers: align them to the left and wrap lines."""


@dataclass(frozen=True)
class Picture:
    """A PNG that is embedded in the page; `alt` is the alternative text for screen readers."""

    kind: ClassVar[str] = "picture"
    alt: str
    png: bytes
    caption: str = ""

    @property
    def data_uri(self) -> str:
        """The picture as a data URI for an <img> tag."""
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Document:
    """Trusted HTML; if it has a caption, it is folded below it."""

    kind: ClassVar[str] = "document"
    caption: str
    html: Markup


Block = Text | Bullets | Figures | Progress | Table | Picture | Document


@dataclass(frozen=True)
class Section:
    """Blocks below a heading; with an empty heading, they follow the title of the page."""

    heading: str
    blocks: Sequence[Block] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The id of the heading for links."""
        return file_stem(self.heading)


def file_stem(text: str) -> str:
    """Convert a text to a lower-case name that is safe in file names and links."""
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
    """Write a page completely or not at all, and return its path; arguments as in `page_html`.

    Raises FileError if the page cannot be written.
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
    """The HTML text of a page.

    state: a word or two next to the title.
    browser_title: title of the browser tab, by default `title`.
    reload_seconds: time after which the browser reloads the page; None for a final page.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # names of structures and runs come from files, so they must not be read as markup
        autoescape=True,
        # a misspelt name in the template is an error, not an empty string
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # embedded, so that the page can be sent as a single file
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
