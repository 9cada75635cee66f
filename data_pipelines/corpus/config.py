"""Settings of a corpus: its sources, and what is known about each of them."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from ...core.settings import Settings
from ..convert.convert import ConvertConfig
from .licences import needs_attribution, refusal


NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class CorpusSource(ConvertConfig):
    """One source of a corpus: where it is, how it is read, and who published it."""

    files: str | None = Field(
        default=None,
        description="file, folder, glob or URL; a relative one is looked for in --sources",
    )
    hub: str | None = Field(default=None, description="hub data set owner/name[@revision] instead")
    licence: str = Field(
        default="not stated",
        description="SPDX identifier of the licence, such as MIT; several that hold together as "
        "MIT AND CC-BY-4.0",
    )
    citation: str | None = Field(
        default=None, description="whom to cite; needed where the licence asks for attribution"
    )
    url: str | None = Field(default=None, description="where the data were published")
    known_faults: str = Field(default="", description="what is known to be wrong with the data")

    @model_validator(mode="after")
    def _check_source(self) -> CorpusSource:
        if (self.files is None) == (self.hub is None):
            raise ValueError("names either files or hub, and not both")
        if needs_attribution(self.licence) and not self.citation:
            raise ValueError(f"{self.licence} asks for attribution: add citation")
        return self


class CorpusConfig(Settings):
    """Several sources that are converted to one data set."""

    name: str = Field(description="name of the corpus, for the card")
    description: str = Field(default="", description="what the corpus is for, for the card")
    level_details: dict[str, str] = Field(
        default={}, description="level of theory -> code, functional, basis, dispersion, spin"
    )
    allow_unpublishable: bool = Field(
        default=False,
        description="take sources whose licence does not allow a published model; a model that is "
        "trained on the corpus cannot be published",
    )
    sources: dict[str, CorpusSource] = Field(description="name of a source -> how it is read")

    @model_validator(mode="after")
    def _check_sources(self) -> CorpusConfig:
        if not self.sources:
            raise ValueError("sources names no source")
        for name in self.sources:
            if not NAME.fullmatch(name):
                raise ValueError(f"sources.{name}: a name has letters, digits, dots and dashes")
        refused = self.refusals()
        if refused and not self.allow_unpublishable:
            reasons = "; ".join(f"sources.{name}: {reason}" for name, reason in refused.items())
            raise ValueError(
                f"{reasons}: leave it out, or set allow_unpublishable=true for a model that is "
                "never published"
            )
        return self

    def refusals(self) -> dict[str, str]:
        """Source -> reason, for sources that keep a trained model from being published."""
        found = {name: refusal(source.licence) for name, source in self.sources.items()}
        return {name: reason for name, reason in found.items() if reason is not None}
