"""JSON content with a checksum of itself, which reveals bits that flipped on a disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


SEAL = "checksum"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the content with its checksum added (the seal)."""
    return {**content, SEAL: digest_of(content)}


def unsealed(text: str | bytes) -> dict[str, Any] | None:
    """Parse sealed JSON and return its content without the seal.

    Returns None if the text is not a JSON object, has no seal, or does not match its seal.
    """
    try:
        content = json.loads(text)
    except ValueError:
        return None
    if not isinstance(content, dict) or content.pop(SEAL, None) != digest_of(content):
        return None
    return content


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content without its seal, independent of indentation and key order."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    # a round trip through JSON turns tuples into lists and number keys into strings, as in the file
    as_stored = json.loads(json.dumps(rest))
    text = json.dumps(as_stored, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
