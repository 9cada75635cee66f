"""Which head of a model answers: the one that was asked for, or the model's own default.

Calculator, export, checks, simulation and card follow `level_to_use`. The order of the heads
decides nothing: it comes from the sizes of the training data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ...core.errors import EvenfieldError
from ...core.level_names import likely_meant
from ...data_pipelines.census.domain import LevelDomain
from .domain_record import main_kinds
from .record import ModelRecord


# a head of an ensemble, which finetune/heads.py makes for uncertainties: never a default
MEMBER = re.compile(r"(?P<level>.+), member \d+")


# what a line about a level of theory has room for
MAX_SYMBOLS = 10
MAX_DETAIL = 80


class LevelError(EvenfieldError):
    """A level of theory that the model lacks, or none where the model has several."""


def own_levels(levels: Sequence[str]) -> list[str]:
    """The levels of theory of a model without the members of ensembles."""
    return [level for level in levels if not is_member(level, levels)]


def is_member(level: str, levels: Sequence[str]) -> bool:
    """Whether a head belongs to the ensemble of another one."""
    return level_of_member(level, levels) != level


def level_of_member(level: str, levels: Sequence[str]) -> str:
    """The head that a member of an ensemble belongs to; any other level itself."""
    match = MEMBER.fullmatch(level)
    return match["level"] if match is not None and match["level"] in levels else level


def default_level(record: ModelRecord, levels: Sequence[str]) -> str | None:
    """The level of theory that is used when none is asked for.

    It is the one that the record states, or the only one. A model of several levels that states
    none has no default.
    """
    if record.default_level is not None:
        return record.default_level
    own = own_levels(levels)
    return own[0] if len(own) == 1 else None


def level_to_use(
    record: ModelRecord,
    levels: Sequence[str],
    asked: str | None = None,
    domains: Mapping[str, LevelDomain] | None = None,
) -> str:
    """The level of theory that was asked for, or the default of the model.

    domains: what is known about the training structures of the levels, for the text of an error.

    Raises LevelError when the model does not have it, or when there is nothing to decide by.
    """
    if asked is not None:
        if asked not in levels:
            meant = likely_meant(asked, levels)
            question = f"did you mean {meant!r}? " if meant else ""
            raise LevelError(
                f"level_of_theory={asked!r}",
                remedy=f"{question}the model has {', '.join(levels)}",
            )
        return asked

    level = default_level(record, levels)
    if level is None:
        # lines that are indented by two stay lines on a terminal
        listed = "\n  ".join(described_levels(record, levels, domains))
        raise LevelError(
            f"{record.name} has several levels of theory and no default",
            remedy=f"choose one with --level-of-theory, or level_of_theory= in Python:\n  {listed}",
        )
    return level


def described_levels(
    record: ModelRecord,
    levels: Sequence[str],
    domains: Mapping[str, LevelDomain] | None = None,
) -> list[str]:
    """A line about each level of theory: its name, what it is for, and how it was computed."""
    domains = domains or {}
    lines = []
    for level in own_levels(levels):
        symbols = record.elements.get(level, [])
        line = f"{level} for {len(symbols)} elements"
        if len(symbols) <= MAX_SYMBOLS:
            line = f"{level} for {' '.join(symbols)}"
        if level in domains:
            line += f", {' and '.join(main_kinds(domains[level]))}"
        if level in record.level_details:
            line += f" ({record.level_details[level][:MAX_DETAIL]})"
        lines.append(line)
    return lines
