"""The domains of a model's levels of theory, as an attachment of its folder.

A domain describes the training structures of a level. Pretraining and fine-tuning write it. A
calculator warns about structures outside the domain, and the card and the list of levels use it to
say what each level is for. Models whose data were converted before domains were collected have no
such file.

    domain.json   {"format": 1, "levels": {level of theory: its `LevelDomain`}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import Field, ValidationError

from ...core.settings import Settings
from ...data_pipelines.census.domain import Boundary, LevelDomain


DOMAIN = "domain.json"


class DomainRecord(Settings):
    """The content of domain.json."""

    format: int = Field(default=1, ge=1, le=1, description="format of the file")
    levels: dict[str, LevelDomain] = Field(description="level of theory -> its domain")


def domains_of(attachments: Mapping[str, bytes]) -> dict[str, LevelDomain]:
    """Map levels of theory to their domains. Levels without a domain are left out.

    Attachments have no fixed format, so an invalid file is ignored.
    """
    content = attachments.get(DOMAIN)
    if content is None:
        return {}
    try:
        return DomainRecord.model_validate_json(content).levels
    except ValidationError:
        return {}


def domain_file(domains: Mapping[str, LevelDomain]) -> dict[str, bytes]:
    """The attachment as file name -> content; empty without domains."""
    if not domains:
        return {}
    # one line per level: one line for each of thousands of pairs would triple the size
    lines = []
    for level, domain in domains.items():
        content = json.dumps(domain.model_dump(mode="json"), separators=(",", ":"))
        lines.append(f"{json.dumps(level)}: {content}")
    text = '{"format": 1, "levels": {\n' + ",\n".join(lines) + "\n}}\n"
    return {DOMAIN: text.encode()}


def summary_of(domain: LevelDomain) -> str:
    """A domain in one line of words."""
    kinds = ", ".join(f"{count} {_plural(kind, count)}" for kind, count in by_count(domain))
    fewest, most = domain.atoms
    sizes = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"{kinds} of {sizes} atoms; {len(domain.pairs)} pairs of elements"


def main_kinds(domain: LevelDomain) -> list[str]:
    """The kinds of boundary that a level was trained on, in the plural, the most frequent first."""
    return [_plural(kind, 2) for kind, _ in by_count(domain) if domain.knows(kind)]


def by_count(domain: LevelDomain) -> list[tuple[Boundary, int]]:
    """Kinds of boundary with numbers of structures, the most frequent first."""
    return sorted(domain.boundaries.items(), key=lambda entry: -entry[1])


def _plural(kind: str, count: int) -> str:
    return kind if count == 1 else f"{kind}s"
