"""One row of metrics.jsonl as a line: JSON whose last value is a checksum of the others."""

from __future__ import annotations

import json
import zlib
from typing import Any

from ...core.errors import EvenfieldError


CHECKSUM = "crc32"


class BadRowError(EvenfieldError):
    """A line that is not a row as it was written."""


def lines_of(content: bytes) -> list[str]:
    """The whole lines of a file. One that is being written, or was cut off by a kill, is left out.

    Bytes that are no text become a character that no row has.
    """
    *lines, _ = content.decode(errors="replace").split("\n")
    return lines


def line_of(row: dict[str, Any]) -> str:
    """A row as a line of the file."""
    # last, so that a reader of the file sees the figures first
    return json.dumps(row | {CHECKSUM: _checksum(row)}) + "\n"


def row_of(line: str) -> dict[str, Any]:
    """A line as a row. One without a checksum is from a version that wrote none.

    Raises BadRowError for a line that is no JSON object, or not the one that was written.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRowError(str(error)) from None
    if not isinstance(row, dict):
        raise BadRowError("not an object")
    stated = row.pop(CHECKSUM, None)
    if stated is not None and stated != _checksum(row):
        raise BadRowError("not as it was written")
    return row


def _checksum(row: dict[str, Any]) -> int:
    # Python writes a number that it has read with the same digits
    return zlib.crc32(json.dumps(row).encode())
