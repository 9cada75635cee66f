"""Markdown files as parts of a page that neither load nor run anything."""

from __future__ import annotations

import re
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

from ...core.files import file_errors
from ...core.pages.page import Document


def markdown(path: Path, caption: str = "") -> Document:
    """A Markdown file as HTML, folded under `caption` if there is one.

    Raw HTML and images are left out, so that the page stays safe to open and complete by itself.
    Raises FileError where the file cannot be read.
    """
    with file_errors(path):
        # a byte that is no text shows as such
        source = path.read_bytes().decode(errors="replace")

    # a model card begins with metadata for the hub
    source = re.sub(r"\A---\n.*?\n---\n", "", source, flags=re.DOTALL)
    # its pictures are in the model folder, and the report draws its own
    source = re.sub(r"!\[[^\]]*\]\((?!\w+:)[^)]*\)", "", source)

    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    # raw HTML is off, so what the reader returns is safe
    return Document(caption, Markup(reader.render(source)))
