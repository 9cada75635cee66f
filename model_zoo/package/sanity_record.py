"""The verdict of the physical checks, as an attachment of a model folder.

`evenfield check sanity MODEL --attach` writes it, publishing asks for it, the card shows it, and
loading warns of what failed. It holds for exactly these weights: the record names their digest, and
a record of others counts as none.

    sanity.json   {"format": 1, "potential": 64 hex digits, "levels": {level of theory: verdict}}
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping

from pydantic import Field, ValidationError

from ...core.errors import EvenfieldWarning
from ...core.settings import Settings
from ..potential.potential import Potential
from .levels import default_level, own_levels
from .record import ModelRecord


SANITY = "sanity.json"
# of `evenfield check physics`, in the same form; it is shown and forbids nothing
PHYSICS = "physics.json"
REMEDY = "make the checks with `evenfield check sanity MODEL --attach`"

# digests of models that a user of this process was warned of
_warned: set[str] = set()


class SanityWarning(EvenfieldWarning):
    """A model that failed physical checks."""


class CheckVerdict(Settings):
    """What one check said."""

    passed: bool | None = Field(description="null where it had nothing to judge")
    failed: list[str] = Field(default=[], description="figures beyond their threshold")
    skipped: int = Field(default=0, ge=0, description="systems with elements that are not known")


class LevelVerdict(Settings):
    """What all checks said about one level of theory."""

    suite: str = Field(description="quick, standard or full")
    made: str = Field(description="day and time, in UTC")
    checks: dict[str, CheckVerdict] = Field(description="name of the check -> verdict")

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [name for name, check in self.checks.items() if check.passed is False]


class SanityRecord(Settings):
    """The verdicts about one potential."""

    format: int = Field(default=1, ge=1, le=1, description="format of the file")
    potential: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of the potential")
    levels: dict[str, LevelVerdict] = Field(description="level of theory -> verdict")

    @property
    def failures(self) -> list[str]:
        """A text for each level of theory that failed."""
        found = []
        for level, verdict in self.levels.items():
            if verdict.failed:
                found.append(f"{level}: {', '.join(verdict.failed)}")
        return found


def potential_digest(potential: Potential) -> str:
    """sha256 of the architecture and of every tensor, however the weights are cut into files."""
    digest = hashlib.sha256()
    architecture = potential.config.model_dump(mode="json")
    digest.update(json.dumps(architecture, sort_keys=True).encode())
    for name, tensor in sorted(potential.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def sanity_record(
    potential: Potential, attachments: Mapping[str, bytes], file: str = SANITY
) -> SanityRecord | None:
    """The record of a model in `file`; None if it has none, or one of other weights.

    Attachments are free in form: whatever is not such a record is none.
    """
    content = attachments.get(file)
    if content is None:
        return None
    try:
        record = SanityRecord.model_validate_json(content)
    except ValidationError:
        return None
    return record if record.potential == potential_digest(potential) else None


def with_verdict(
    potential: Potential,
    attachments: Mapping[str, bytes],
    level: str,
    verdict: LevelVerdict,
    file: str = SANITY,
) -> dict[str, bytes]:
    """The attachment with one more verdict; it keeps those of other levels of the same weights."""
    before = sanity_record(potential, attachments, file)
    levels = dict(before.levels) if before else {}
    levels[level] = verdict
    record = SanityRecord(potential=potential_digest(potential), levels=levels)
    return {file: (record.model_dump_json(indent=1) + "\n").encode()}


def unsound(
    potential: Potential, record: ModelRecord, attachments: Mapping[str, bytes]
) -> list[str]:
    """Why a model is not known to be sound, a text for each reason; empty if it is.

    The checks must have been made of the default level of theory, or of one if there is none.
    """
    found = sanity_record(potential, attachments)
    levels = potential.config.levels_of_theory
    default = default_level(record, levels)
    needed = [default] if default is not None else own_levels(levels)
    if found is None or not set(needed) & set(found.levels):
        return [f"the physical checks were not made of these weights at {' or '.join(needed)}"]
    return [f"physical checks failed at {failure}" for failure in found.failures]


def warn_if_failed(reference: str, potential: Potential, attachments: Mapping[str, bytes]) -> None:
    """Warn in one line, once in a process, of a model that failed."""
    record = sanity_record(potential, attachments)
    if record is None or not record.failures or record.potential in _warned:
        return
    _warned.add(record.potential)
    text = f"{reference} failed physical checks ({'; '.join(record.failures)}); see its card"
    warnings.warn(text, SanityWarning, stacklevel=3)
