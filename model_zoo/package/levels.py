"""Choose the level of theory to use: the requested one, or the default of the model.

Calculator, export, checks, simulation and card all use `level_to_use`. The order of the heads does
not matter, because it follows from the sizes of the training data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ...core.errors import EvenfieldError
from ...core.level_names import likely_meant
from ...data_pipelines.census.domain import LevelDomain
from .domain_record import main_kinds
from .record import ModelRecord


# An ensemble member, which finetune/heads.py makes for uncertainties. It is never the default.
MEMBER = re.compile(r"(?P<level>.+), member \d+")


# limits for the line that describes a level of theory
MAX_SYMBOLS = 10
MAX_DETAIL = 80


class LevelError(EvenfieldError):
    """The model lacks a level of theory, or none was chosen although there are several."""


def own_levels(levels: Sequence[str]) -> list[str]:
    """The levels of theory of a model, without ensemble members."""
    return [level for level in levels if not is_member(level, levels)]


def is_member(level: str, levels: Sequence[str]) -> bool:
    """Whether a level is an ensemble member of another level."""
    return level_of_member(level, levels) != level


def level_of_member(level: str, levels: Sequence[str]) -> str:
    """The level that an ensemble member belongs to. Any other level is returned unchanged."""
    match = MEMBER.fullmatch(level)
    return match["level"] if match is not None and match["level"] in levels else level


def default_level(record: ModelRecord, levels: Sequence[str]) -> str | None:
    """The level of theory that is used if none is requested.

    It is the level that the record states, or else the only level. A model with several levels and
    no statement has no default, and the result is None.
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
    """The requested level of theory, or the default of the model.

    `domains` describes the training structures of the levels, and is used only in error messages.

    Raises LevelError if the model does not have the requested level, or if none is requested and
    the model has several levels and no default.
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
        # lines indented by two are not rewrapped on a terminal
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
    """One line per level of theory: its name, its elements, what it is for, how it was computed."""
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
