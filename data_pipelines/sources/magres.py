"""A check that keeps ASE from spending minutes on a malformed magres file.

ASE finds the blocks of a magres file with one regular expression. For each opening tag without a
closing tag, it searches the rest of the file once for every name that the tag could have. A file
with 1,000 tags of 8 bytes took more than half a minute.
"""

from __future__ import annotations

import re
from pathlib import Path

from ase.io.formats import open_with_compression

from .locations import SourceError


# <atoms> and </atoms>, or with square brackets
TAG = re.compile(r"[\[<](/?)([^\[\]<>]*)[\]>]")


def refuse_open_blocks(path: Path) -> None:
    """Raise SourceError unless every block of the file is closed before the next one begins."""
    with open_with_compression(str(path), "rt") as file:
        text = file.read()
    begun = None
    for tag in TAG.finditer(text):
        is_end = tag[1] == "/"
        if begun is None and is_end:
            raise _wrong_tag(text, tag, "no block has begun")
        if begun is not None and not (is_end and tag[2] == begun):
            raise _wrong_tag(text, tag, f"block {begun!r} has not ended")
        begun = None if is_end else tag[2]
    if begun is not None:
        raise SourceError(f"block {begun!r} does not end", remedy="fetch or write the file again")


def _wrong_tag(text: str, tag: re.Match[str], reason: str) -> SourceError:
    line = text.count("\n", 0, tag.start()) + 1
    return SourceError(
        f"line {line}: {tag[0]!r} where {reason}",
        remedy="write the file again: its blocks follow each other",
    )
