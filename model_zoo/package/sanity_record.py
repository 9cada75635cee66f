"""The results of physical checks, as an attachment of a model folder.

`evenfield check sanity MODEL --attach` writes the record, publishing requires it, the card shows
it, and loading a model warns about failed checks. The record is valid only for the weights whose
digest it states. A record for other weights is ignored.

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
# written by `evenfield check physics` in the same format; it is shown, but prevents nothing
PHYSICS = "physics.json"
REMEDY = "make the checks with `evenfield check sanity MODEL --attach`"

# digests of models that this process has already warned about
_warned: set[str] = set()


class SanityWarning(EvenfieldWarning):
    """A model has failed physical checks."""


class CheckVerdict(Settings):
    """The result of one check."""

    passed: bool | None = Field(description="null where it had nothing to judge")
    failed: list[str] = Field(default=[], description="figures beyond their threshold")
    skipped: int = Field(default=0, ge=0, description="systems with elements that are not known")


class LevelVerdict(Settings):
    """The results of all checks for one level of theory."""

    suite: str = Field(description="quick, standard or full")
    made: str = Field(description="day and time, in UTC")
    checks: dict[str, CheckVerdict] = Field(description="name of the check -> verdict")

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [name for name, check in self.checks.items() if check.passed is False]


class SanityRecord(Settings):
    """The content of the file: check results for one potential."""

    format: int = Field(default=1, ge=1, le=1, description="format of the file")
    potential: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of the potential")
    levels: dict[str, LevelVerdict] = Field(description="level of theory -> verdict")

    @property
    def failures(self) -> list[str]:
        """One line for each level of theory with failed checks."""
        found = []
        for level, verdict in self.levels.items():
            if verdict.failed:
                found.append(f"{level}: {', '.join(verdict.failed)}")
        return found


def potential_digest(potential: Potential) -> str:
    """The sha256 of the architecture and all tensors. It does not depend on the shards."""
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
    """The check record in the attachment `file`, or None.

    Attachments have no fixed format, so an invalid record, or a record for other weights, is
    ignored.
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
    """The attachment with the verdict for one level added or replaced.

    Verdicts for other levels are kept if they belong to the same weights.
    """
    before = sanity_record(potential, attachments, file)
    levels = dict(before.levels) if before else {}
    levels[level] = verdict
    record = SanityRecord(potential=potential_digest(potential), levels=levels)
    return {file: (record.model_dump_json(indent=1) + "\n").encode()}


def unsound(
    potential: Potential, record: ModelRecord, attachments: Mapping[str, bytes]
) -> list[str]:
    """Reasons why a model is not known to be sound, one line each; empty if it is.

    The checks must cover the default level of theory, or any level if there is no default.
    """
    found = sanity_record(potential, attachments)
    levels = potential.config.levels_of_theory
    default = default_level(record, levels)
    needed = [default] if default is not None else own_levels(levels)
    if found is None or not set(needed) & set(found.levels):
        return [f"the physical checks were not made of these weights at {' or '.join(needed)}"]
    return [f"physical checks failed at {failure}" for failure in found.failures]


def warn_if_failed(reference: str, potential: Potential, attachments: Mapping[str, bytes]) -> None:
    """Warn about a model that failed checks, in one line and once per process."""
    record = sanity_record(potential, attachments)
    if record is None or not record.failures or record.potential in _warned:
        return
    _warned.add(record.potential)
    text = f"{reference} failed physical checks ({'; '.join(record.failures)}); see its card"
    warnings.warn(text, SanityWarning, stacklevel=3)
