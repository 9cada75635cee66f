"""One self-contained HTML page from sections of text, tables and pictures; it loads nothing from anywhere."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from matplotlib.figure import Figure

from ...core.figures.periodic_table import short_number
from .plot_style import save_picture


TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Text:
    """A paragraph; a warning stands out."""

    text: str
    warning: bool = False
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first column names the row. Folded tables open on a click."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    folded: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page, which is also on disk as pictures/<name>.png and .svg."""

    name: str
    alt: str
    png: bytes
    kind: str = "picture"

    @property
    def data_uri(self) -> str:
        """The picture as text."""
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Document:
    """A Markdown file, folded under its caption if it has one."""

    caption: str
    html: Markup
    kind: str = "document"


Block = Text | Table | Picture | Document


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """The heading as a name in a link."""
        return file_stem(self.heading)


def cell(value: float | None, factor: float = 1.0) -> str:
    """A number times factor with three digits, a dash where there is none."""
    if value is None or not isfinite(value):
        return "-"
    value = factor * value
    return f"{value:#.3g}".rstrip(".") if 1e-4 <= abs(value) < 999.5 else short_number(value)


def file_stem(text: str) -> str:
    """Text as a lower-case name that is safe for files and links."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def draw(figure: Figure, out_dir: Path, name: str, alt: str) -> Picture:
    """Save a figure beside the page and hold it for the page; alt says what it shows to who cannot see it."""
    return Picture(name, alt, save_picture(figure, out_dir / "pictures", name))


def markdown(path: Path, caption: str = "") -> Document:
    """A Markdown file as HTML without raw HTML and images, so that it can load and run nothing."""
    source = re.sub(
        r"\A---\n.*?\n---\n", "", path.read_text(), flags=re.DOTALL
    )  # metadata of a model card
    source = re.sub(
        r"!\[[^\]]*\]\((?!\w+:)[^)]*\)", "", source
    )  # its pictures lie elsewhere, and the page has its own
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    return Document(caption, Markup(reader.render(source)))  # safe: raw HTML is off


def write_page(path: Path, title: str, sections: list[Section]) -> Path:
    """Render the template; the file appears only when it is complete."""
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(title=title, sections=sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(page, encoding="utf-8")
    return unfinished.replace(path)
