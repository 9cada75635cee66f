"""The rows of metrics.jsonl: JSON lines whose last value is a checksum of the others."""

from __future__ import annotations

import json
import zlib
from typing import Any

from ...core.errors import EvenfieldError


CHECKSUM = "crc32"


class BadRowError(EvenfieldError):
    """A line is damaged, or is not a row of metrics."""


def lines_of(content: bytes) -> list[str]:
    """The complete lines of a file.

    A last line that is being written, or was cut off by a kill, is left out. Bytes that are not
    valid text are replaced by a character that does not occur in rows.
    """
    *lines, _ = content.decode(errors="replace").split("\n")
    return lines


def line_of(row: dict[str, Any]) -> str:
    """Format a row as a line of the file, including the newline."""
    # the checksum comes last, so that a reader of the file sees the numbers first
    return json.dumps(row | {CHECKSUM: _checksum(row)}) + "\n"


def row_of(line: str) -> dict[str, Any]:
    """Parse a line. Lines without a checksum come from older versions and are accepted.

    Raises BadRowError for a line that is not a JSON object, or does not match its checksum.
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
    # Python writes numbers that it has read with the same digits
    return zlib.crc32(json.dumps(row).encode())
