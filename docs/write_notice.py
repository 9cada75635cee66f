"""Write NOTICE: whose data the package and its models were made from, from the shipped recipes.

python docs/write_notice.py            write the file
python docs/write_notice.py --check    exit code 1 if the file is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import fill

from evenfield.core.settings import load_settings, recipes_of
from evenfield.data_pipelines.corpus.config import CorpusConfig, CorpusSource
from evenfield.data_pipelines.corpus.licences import together


FILE = Path(__file__).parents[1] / "NOTICE"
WIDTH = 100
INTRODUCTION = """\
evenfield
Copyright 2026 The evenfield founders

This product is licensed under the Apache License, Version 2.0; see LICENSE.

Its data come from others, who are named here. None of them endorses it. The file is written by
docs/write_notice.py from the recipes of the training data; change those instead. The text of each
licence is at https://spdx.org/licenses/NAME.html, that of CC-BY-4.0 also at
https://creativecommons.org/licenses/by/4.0/."""
# of the package itself; the tables say the same in diagnostics/sanity/reference
REFERENCE = """\
Reference tables in diagnostics/sanity/reference
------------------------------------------------

- elements.csv was fitted to data of E. Bosoni et al., Nat. Rev. Phys. 6, 45 (2024), MIT,
  https://github.com/aiidateam/acwf-verification-scripts
- lattices.csv has numbers of J. Harl, L. Schimka, G. Kresse, Phys. Rev. B 81, 115126 (2010).
- dimers.csv has numbers of K. P. Huber, G. Herzberg, Constants of Diatomic Molecules (1979)."""


def notice() -> str:
    """The content of NOTICE."""
    sections = [INTRODUCTION]
    for recipe in sorted(recipes_of(CorpusConfig).glob("*.yaml")):
        sections.append(_section(load_settings(CorpusConfig, recipe, [])))
    return "\n\n".join([*sections, REFERENCE]) + "\n"


def _section(corpus: CorpusConfig) -> str:
    """The sources of one corpus."""
    title = f"Models trained on {corpus.name}"
    licences = together([source.licence for source in corpus.sources.values()])
    about = (
        "The weights were made from these data, which were selected, converted to other units and "
        f"formats, and split. Their licences: {licences}."
    )
    lines = [title, "-" * len(title), "", fill(about, WIDTH), ""]
    for name, source in corpus.sources.items():
        lines.append(_entry(name, source))
    return "\n".join(lines)


def _entry(name: str, source: CorpusSource) -> str:
    """Whose data they are, where they were published, and under which licence."""
    parts = [f"{name}:"]
    if source.description:
        parts.append(f"{' '.join(source.description.split())}.")
    if source.citation:
        parts.append(f"{' '.join(source.citation.split())}.")
    parts.append(f"Licence: {source.licence}.")
    if source.url:
        parts.append(source.url)
    # an address that is broken in two cannot be copied
    return fill(
        " ".join(parts),
        WIDTH,
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def main() -> None:
    """Write the file, or check it."""
    if sys.argv[1:] == ["--check"]:
        up_to_date = FILE.is_file() and FILE.read_text() == notice()
        print("NOTICE is up to date" if up_to_date else "run: python docs/write_notice.py")
        sys.exit(not up_to_date)
    FILE.write_text(notice())


if __name__ == "__main__":
    main()
