"""The measured coverage of a model's radii on held-out structures, as an attachment of its folder.

`evenfield check trust MODEL DATA --attach` counts and writes it, and the model card shows it. The
counts are valid only for the weights and radii whose digests the file states. Counts for other
weights or radii are ignored.

    trust.json   {"format": 1, "potential": 64 hex digits, "levels": {level of theory: counts}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from ...core.settings import Settings
from ..package.sanity_record import potential_digest
from ..potential.potential import Potential
from .record import LevelUncertainty, level_digest, uncertainties_of


TRUST = "trust.json"

# the unit of the radii for each kind of error
UNITS = {"forces": "eV/A", "energies": "eV/atom", "stress": "eV/A^3"}


class BallCounts(Settings):
    """How many errors lie within their radius, for one stated coverage."""

    coverage: float = Field(gt=0, lt=1, description="stated share")
    number: int = Field(ge=0, description="errors with a finite radius")
    covered: int = Field(ge=0, description="those of them that are no larger than it")
    deviation: float | None = Field(
        description="standard error of the share over groups of structures; null for one group"
    )
    median_radius: float | None = Field(description="eV/A, eV/atom or eV/A^3; null without radii")

    @model_validator(mode="after")
    def _covers_no_more_than_all(self) -> Self:
        if self.covered > self.number:
            raise ValueError(f"{self.covered} of {self.number} are covered")
        return self

    @property
    def share(self) -> float | None:
        """The covered share of errors with a finite radius; None if there are none."""
        return self.covered / self.number if self.number else None


class CoverageRow(Settings):
    """The coverage of one group of errors."""

    what: Literal["forces", "energies", "stress"] = Field(description="whose errors")
    by: Literal["all", "element", "size"] = Field(description="what the group is about")
    name: str = Field(description="elements of the group, or sizes of labels in eV/A")
    number: int = Field(ge=1, description="labelled atoms, or structures")
    groups: int = Field(ge=1, description="groups of structures that they come from")
    balls: list[BallCounts] = Field(description="one entry for each coverage")


class LevelCoverage(Settings):
    """The measured coverage at one level of theory."""

    radii: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of the record of radii")
    data: str = Field(description="name of the data set")
    sha256: str = Field(description="hash that pins its content")
    split: str = Field(description="which of its structures")
    calibrated_on: str = Field(description="split that the radii were calibrated on")
    made: str = Field(description="day and time, in UTC")
    left_out: list[str] = Field(default=[], description="structures that were not judged, and why")
    rows: list[CoverageRow] = Field(description="one entry for each group of errors")


class CoverageRecord(Settings):
    """The content of trust.json: the measured coverage of one potential."""

    format: int = Field(default=1, ge=1, le=1, description="format of the file")
    potential: str = Field(pattern=r"^[0-9a-f]{64}$", description="digest of the potential")
    levels: dict[str, LevelCoverage] = Field(description="level of theory -> counts")


def coverages_of(
    potential: Potential, attachments: Mapping[str, bytes]
) -> dict[str, LevelCoverage]:
    """Map each level of theory to the measured coverage of its current radii.

    Levels without counts are left out. Attachments have no fixed format, so a file that is not a
    valid record, or that belongs to other weights or radii, is ignored.
    """
    content = attachments.get(TRUST)
    if content is None:
        return {}
    try:
        record = CoverageRecord.model_validate_json(content)
    except ValidationError:
        return {}
    if record.potential != potential_digest(potential):
        return {}
    own = uncertainties_of(potential, attachments)
    return {
        level: counted
        for level, counted in record.levels.items()
        if level in own and counted.radii == level_digest(own[level])
    }


def with_coverage(
    potential: Potential,
    attachments: Mapping[str, bytes],
    own: LevelUncertainty,
    counted: LevelCoverage,
) -> dict[str, bytes]:
    """The attachment with the counts of one level added or replaced.

    Counts of other levels are kept if they are still valid.
    """
    assert counted.radii == level_digest(own)
    levels = coverages_of(potential, attachments) | {own.level: counted}
    record = CoverageRecord(potential=potential_digest(potential), levels=levels)
    return {TRUST: (record.model_dump_json(indent=1) + "\n").encode()}
