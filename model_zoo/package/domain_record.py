"""The domains of the levels of theory of a model, as an attachment of its folder.

Pretraining and fine-tuning write it from their training structures. Calculators warn of structures
outside of it, the card and the list of levels say what each level is for. Models whose data were
converted before domains were collected do not have it.

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
    """What the file holds."""

    format: int = Field(default=1, ge=1, le=1, description="format of the file")
    levels: dict[str, LevelDomain] = Field(description="level of theory -> its domain")


def domains_of(attachments: Mapping[str, bytes]) -> dict[str, LevelDomain]:
    """Level of theory -> its domain, for the levels of a model that have one.

    Attachments are free in form: whatever is not such a record is none.
    """
    content = attachments.get(DOMAIN)
    if content is None:
        return {}
    try:
        return DomainRecord.model_validate_json(content).levels
    except ValidationError:
        return {}


def domain_file(domains: Mapping[str, LevelDomain]) -> dict[str, bytes]:
    """The attachment; none without any domain."""
    if not domains:
        return {}
    # thousands of pairs on one line of their level: a line for each would triple the size
    lines = []
    for level, domain in domains.items():
        content = json.dumps(domain.model_dump(mode="json"), separators=(",", ":"))
        lines.append(f"{json.dumps(level)}: {content}")
    text = '{"format": 1, "levels": {\n' + ",\n".join(lines) + "\n}}\n"
    return {DOMAIN: text.encode()}


def summary_of(domain: LevelDomain) -> str:
    """What a domain holds, in one line of words."""
    kinds = ", ".join(f"{count} {_plural(kind, count)}" for kind, count in by_count(domain))
    fewest, most = domain.atoms
    sizes = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f"{kinds} of {sizes} atoms; {len(domain.pairs)} pairs of elements"


def main_kinds(domain: LevelDomain) -> list[str]:
    """The kinds of boundary that a level knows, in the plural."""
    return [_plural(kind, 2) for kind, _ in by_count(domain) if domain.knows(kind)]


def by_count(domain: LevelDomain) -> list[tuple[Boundary, int]]:
    """Kinds of boundary with their numbers of structures, the most frequent first."""
    return sorted(domain.boundaries.items(), key=lambda entry: -entry[1])


def _plural(kind: str, count: int) -> str:
    return kind if count == 1 else f"{kind}s"
