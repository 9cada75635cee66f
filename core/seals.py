"""JSON content that holds a checksum of itself, so that a bit that flipped on a disk is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


SEAL = "checksum"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its seal."""
    return {**content, SEAL: digest_of(content)}


def unsealed(text: str | bytes) -> dict[str, Any] | None:
    """The content of a text that `sealed` made, without its seal.

    None for any other text: what is not a JSON object, has no seal, or does not fit it.
    """
    try:
        content = json.loads(text)
    except ValueError:
        return None
    if not isinstance(content, dict) or content.pop(SEAL, None) != digest_of(content):
        return None
    return content


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content without its seal, however its text is indented or ordered."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    # Through JSON and back: tuples become lists, and numbers as keys become texts, as in the file.
    as_stored = json.loads(json.dumps(rest))
    text = json.dumps(as_stored, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
