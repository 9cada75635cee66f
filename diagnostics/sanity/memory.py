"""Stored results of a long check, so that it can continue after an interruption.

They are stored in a folder for each model and set of settings; results of others are not read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.code_identity import code_identity
from ...core.files import file_errors, write_atomically
from ...core.seals import sealed, unsealed
from ...core.terminal import say
from ..check import CheckedCalculator
from .config import SanityConfig
from .own_structures import digest_of_file


@dataclass(frozen=True)
class Memory:
    """Stored results by name. Without a folder, nothing is stored."""

    folder: Path | None

    @classmethod
    def of(cls, folder: Path | None, model: CheckedCalculator, settings: SanityConfig) -> Memory:
        """The memory of one model and its settings, in a subfolder of `folder`."""
        if folder is None:
            return cls(None)
        # the result of a check does not depend on which other checks run
        chosen = settings.model_dump(mode="json", exclude={"checks", "structures"})
        if settings.structures is not None:
            # the content of the file counts, because it may change between calls
            chosen["structures"] = digest_of_file(settings.structures)
        if settings.oracle is not None:
            chosen["oracle"] = f"{settings.oracle} {code_identity(settings.oracle)}"
        key = json.dumps([model.identity, model.level, chosen], sort_keys=True)
        inner = folder / ".sanity" / hashlib.sha256(key.encode()).hexdigest()[:16]
        with file_errors(inner):
            inner.mkdir(parents=True, exist_ok=True)
        return cls(inner)

    def path(self, name: str) -> Path | None:
        """The file of a result; None without a folder."""
        if self.folder is None:
            return None
        # names of systems can have commas and brackets
        plain = "".join(letter if letter.isalnum() else "-" for letter in name)
        return self.folder / f"{plain}.json"

    def read(self, name: str) -> dict[str, Any] | None:
        """The stored result, or None. For a damaged file, prints a warning and returns None."""
        path = self.path(name)
        if path is None or not path.is_file():
            return None
        with file_errors(path):
            content = unsealed(path.read_bytes())
        if content is None:
            say(f"warning: {path} does not match its checksum: {name} is made again", err=True)
        return content

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Store a result atomically."""
        path = self.path(name)
        if path is not None:
            with file_errors(path):
                write_atomically(path, json.dumps(sealed(content)))
