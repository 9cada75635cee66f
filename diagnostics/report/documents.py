"""Markdown files as parts of a page that loads nothing and runs no scripts."""

from __future__ import annotations

import re
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

from ...core.files import file_errors
from ...core.pages.page import Document


def markdown(path: Path, caption: str = "") -> Document:
    """Convert a Markdown file to HTML, folded under `caption` if there is one.

    Raw HTML and images are removed, so that the page is safe to open and self-contained. Raises
    FileError if the file cannot be read.
    """
    with file_errors(path):
        # invalid bytes appear as the replacement character
        source = path.read_bytes().decode(errors="replace")

    # a model card begins with metadata for the hub
    source = re.sub(r"\A---\n.*?\n---\n", "", source, flags=re.DOTALL)
    # pictures of the card are in the model folder, and the report draws its own
    source = re.sub(r"!\[[^\]]*\]\((?!\w+:)[^)]*\)", "", source)

    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    # raw HTML is switched off, so the output is safe
    return Document(caption, Markup(reader.render(source)))
