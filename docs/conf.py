"""Sphinx: the Markdown files of the repository and the docstrings of the package as one site.

`make docs` runs it from the root of the repository, so README.md, CONTRIBUTING.md and the pages in
docs/ are pages of one site and their links to each other work as they do in a file browser.
docs/decisions/0016 says why Sphinx.
"""

from __future__ import annotations

import contextlib
import re
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any


# metatomic must be imported before torch-geometric (docs/models.md says why); autodoc imports in
# its own order.
with contextlib.suppress(ImportError):
    import metatomic.torch  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]

# From here on, the names are Sphinx's.
project = "evenfield"
author = "The evenfield founders"
release = installed_version("evenfield")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "docs/index"
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "benchmarks/README.md",
    "slurm/README.md",
    "docs/**",
]
exclude_patterns: list[str] = []

# Headings get the anchors that GitHub gives them.
myst_heading_anchors = 4

# Two classes may have one name in different modules; a type in a signature then links to one of
# them.
suppress_warnings = ["myst.header", "ref.python"]

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch's docstrings use markup of their own
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"evenfield {release}"
html_copy_source = False

# Fields and methods that pydantic adds to every class of settings, and that say nothing about the
# class.
PYDANTIC = {"model_config", "model_fields", "model_computed_fields", "model_post_init"}


def write_api_pages(app: Any) -> None:
    """Write a page for every package: its docstring and those of its modules."""
    folder = ROOT / "docs" / "api"
    folder.mkdir(exist_ok=True)
    rooms = sorted(path.parent for path in ROOT.glob("*/py.typed"))
    pages: dict[str, str] = {}
    for room in rooms:
        for init in sorted(room.rglob("__init__.py")):
            package = ".".join(("evenfield", *init.parent.relative_to(ROOT).parts))
            pages[package] = api_page(package, init.parent)

    # The table of contents lists the rooms in the order in which data pass through them.
    order = ["core", "data_pipelines", "model_zoo", "pretrain", "finetune", "simulation"]
    order += ["diagnostics", "cli", "testing"]
    listed = sorted(pages, key=lambda name: (order.index(name.split(".")[1]), name))
    entries = "\n".join(f"   {name}" for name in listed)
    title = "API reference"
    pages["index"] = f"{title}\n{'=' * len(title)}\n\n.. toctree::\n   :maxdepth: 1\n\n{entries}\n"

    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text() != text:  # an unchanged page is not built again
            path.write_text(text)
    for path in folder.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()


def api_page(package: str, folder: Path) -> str:
    """reStructuredText that shows a package and its modules."""
    lines = [package, "=" * len(package), "", f".. automodule:: {package}", ""]
    if package == "evenfield.model_zoo":
        lines[-1:] = ["   :no-members:", ""]  # its names are documented where they are defined
    for module in sorted(folder.glob("*.py")):
        if module.stem in ("__init__", "__main__"):
            continue
        title = module.stem
        name = f"{package}.{module.stem}"
        lines += [title, "-" * len(title), "", f".. automodule:: {name}", ""]
    return "\n".join(lines)


def from_markdown(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring, plain text with a little Markdown, into reStructuredText.

    Backquotes mark code, an indented block is shown as it is, a line that starts with a hyphen is
    an item of a list. Everything else is a paragraph, in which no character has a meaning of its
    own.
    """
    text = "\n".join(lines).expandtabs()
    text = re.sub(r"^ *```\w*\n(.*?)^ *```", indented, text, flags=re.MULTILINE | re.DOTALL)
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    lines[:] = []
    for block in blocks:
        lines += [*block_lines(block), ""]


def indented(match: re.Match[str]) -> str:
    """A fenced block, indented instead of fenced."""
    body = "".join(f"    {line}\n" for line in match[1].splitlines())
    return f"\n{body}\n"


def block_lines(block: str) -> list[str]:
    """One paragraph, list, example or literal block of a docstring."""
    rows = block.splitlines()
    if not block.strip():
        return []
    if rows[0].lstrip().startswith(">>>"):
        return rows
    start = next((k for k, row in enumerate(rows) if row.startswith("  ")), len(rows))
    if rows[0].lstrip().startswith("- "):
        return list_lines(rows)
    if start == len(rows):
        return [escaped(" ".join(row.strip() for row in rows))]

    # Text up to the first indented row, the indented rows as they are, and what follows them.
    end = next((k for k in range(start, len(rows)) if not rows[k].startswith(" ")), len(rows))
    before = [escaped(" ".join(rows[:start])), ""] if start else []
    literal = ["::", "", *(f"   {row}" for row in rows[start:end]), ""]
    after = block_lines("\n".join(rows[end:])) if end < len(rows) else []
    return [*before, *literal, *after]


def list_lines(rows: list[str]) -> list[str]:
    """Items of a list, each on one line."""
    items: list[str] = []
    for row in rows:
        if row.lstrip().startswith("- "):
            items.append(row.strip().removeprefix("- "))
        else:
            items[-1] += " " + row.strip()
    return [f"- {escaped(item)}" for item in items]


def escaped(text: str) -> str:
    """Plain text with code in backquotes, where nothing else is markup."""
    parts = re.split(r"(`+[^`]+`+)", text)
    for k, part in enumerate(parts):
        if k % 2:
            parts[k] = "``" + part.strip("`").replace("\\", "\\\\") + "``"
        else:
            parts[k] = re.sub(r"([*_|`\\])", r"\\\1", part)

    # Code must not touch a letter in reStructuredText; an escaped space separates them without a
    # trace.
    joined = "".join(parts)
    return re.sub(r"(``[^`]+``)(?=\w)", r"\1\\ ", joined)


def skip_pydantic(
    app: Any, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out what pydantic adds to a class."""
    return True if name in PYDANTIC else None


def setup(app: Any) -> None:
    """Connect the functions above to the steps of a build."""
    app.connect("builder-inited", write_api_pages)
    app.connect("autodoc-process-docstring", from_markdown)
    app.connect("autodoc-skip-member", skip_pydantic)
