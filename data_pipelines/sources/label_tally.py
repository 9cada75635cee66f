"""Count the labels of a source: how many were kept, masked, unusable, or left unread.

Every structure that enters a data set is counted. So no label is lost silently, whether it has an
unusual name, appears only in later files, or is the stress of a slab.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.labels import LABELS
from ..structure import Structure
from .config import SourceConfig
from .label_names import INSTEAD, LookAlike, look_alike
from .records import Record, Unread, raw_label, stated_text


Counts = dict[str, int]

# most levels of theory in one line of a report
MOST_LEVELS = 4


@dataclass
class LabelTally:
    """Label counts over structures; the tallies of several parts can be added."""

    structures: Counts = field(default_factory=dict)
    """Level of theory -> number of structures."""
    unlabelled: Counts = field(default_factory=dict)
    """Level of theory -> structures of which no label was read."""
    kept: dict[str, Counts] = field(default_factory=dict)
    """Level of theory -> label -> structures that have it."""
    masked: dict[str, Counts] = field(default_factory=dict)
    """Level of theory -> label -> structures whose label a mask removed."""
    unused: dict[str, Counts] = field(default_factory=dict)
    """Level of theory -> label -> structures whose label is kept but meaningless (slab stress)."""
    unread: Counts = field(default_factory=dict)
    """Column that looks like a label -> structures that have it."""
    unread_only: Counts = field(default_factory=dict)
    """As `unread`, but counting only structures that lack this label."""
    replaced_levels: Counts = field(default_factory=dict)
    """Level of theory in the record -> structures in which the settings replaced it."""
    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    """Label -> column that the settings name for it -> unit of the column."""

    def add(
        self, record: Record, structure: Structure, unread: Unread, config: SourceConfig
    ) -> None:
        """Count one structure with its record; `unread` is the result of `unread_columns`."""
        level = structure.level_of_theory
        labels = structure.labels
        if not self.structures:
            self._add_columns(_named_columns(config))
        _count(self.structures, level)
        if config.level_of_theory:
            stated = stated_text(record, config, "level_of_theory")
            if stated is not None and stated != level:
                _count(self.replaced_levels, stated)
        if not labels:
            _count(self.unlabelled, level)
        for name in labels:
            _count(self.kept.setdefault(level, {}), name)
            if LABELS[name].periodic_only and not structure.pbc.all():
                _count(self.unused.setdefault(level, {}), name)
        for name in config.masks:
            # the label would have been read if it were not masked
            if name not in labels and has_label(record, config, name):
                _count(self.masked.setdefault(level, {}), name)
        for column, _ in unread:
            is_missing = column.label not in labels
            # these differ from the label by definition, and files often contain them too
            is_other = column.column == "free_energy" or column.form in ("per atom", "relative")
            if is_other and not is_missing:
                continue
            _count(self.unread, column.column)
            if is_missing:
                _count(self.unread_only, column.column)

    def __iadd__(self, other: LabelTally) -> LabelTally:
        for own, more in (
            (self.structures, other.structures),
            (self.unlabelled, other.unlabelled),
            (self.unread, other.unread),
            (self.unread_only, other.unread_only),
            (self.replaced_levels, other.replaced_levels),
        ):
            _add(own, more)
        for nested, more_nested in (
            (self.kept, other.kept),
            (self.masked, other.masked),
            (self.unused, other.unused),
        ):
            for level, counts in more_nested.items():
                _add(nested.setdefault(level, {}), counts)
        self._add_columns(other.columns)
        return self

    def _add_columns(self, columns: Mapping[str, Mapping[str, str]]) -> None:
        for label, units in columns.items():
            self.columns[label] = {**self.columns.get(label, {}), **units}

    @property
    def num_labels(self) -> int:
        """Number of labels that a model can be trained on."""
        kept = sum(sum(counts.values()) for counts in self.kept.values())
        unused = sum(sum(counts.values()) for counts in self.unused.values())
        return kept - unused

    def unread_labels(self) -> list[LookAlike]:
        """Unread columns; those whose label is missing in most structures come first."""
        found = []
        for column in self.unread:
            seen = look_alike(column)
            assert seen is not None, "only columns that look like labels are counted"
            found.append(seen)
        return sorted(found, key=lambda seen: -self.unread_only.get(seen.column, 0))


def _named_columns(config: SourceConfig) -> dict[str, dict[str, str]]:
    """Label -> column -> unit, for the labels whose columns the settings name."""
    named = {}
    for label in LABELS:
        units = dict(zip(config.names_of(label), config.units_of(label), strict=True))
        if units:
            named[label] = units
    return named


def has_label(record: Record, config: SourceConfig, name: str) -> bool:
    """Whether a record has a value for a label, in any column that the config reads."""
    label = LABELS[name]
    return any(
        raw_label(record, label, column) is not None for column in config.label_columns[name]
    )


def label_report(tally: LabelTally, prefix: str = "") -> list[str]:
    """Report what was read, one line per level of theory, and what was not, one line per column.

    prefix: put in front of setting names, such as `sources.NAME.` for a corpus.
    """
    lines = []
    for level, total in sorted(tally.structures.items()):
        kept = tally.kept.get(level, {})
        masked = tally.masked.get(level, {})
        unused = tally.unused.get(level, {})
        texts = []
        for name in LABELS:
            text = f"{name} {kept.get(name, 0)}"
            if masked.get(name):
                text += f" (and {masked[name]} masked)"
            if unused.get(name):
                text += f" ({unused[name]} of them not periodic in three directions, unused)"
            texts.append(text)
        line = f"labels of {total} structures at {level}: {', '.join(texts)}"
        without = tally.unlabelled.get(level, 0)
        lines.append(f"{line}; {without} have none of them" if without else line)

    if tally.replaced_levels:
        total = sum(tally.replaced_levels.values())
        names = ", ".join(repr(name) for name in sorted(tally.replaced_levels)[:MOST_LEVELS])
        lines.append(
            f"{prefix}level_of_theory replaces what {total} structures state ({names}); labels of "
            "several levels do not belong under one name"
        )

    for column in tally.unread_labels():
        count = tally.unread[column.column]
        missing = tally.unread_only.get(column.column, 0)
        text = f"not read: '{column.column}' of {count} structures looks like {column.label}"
        if missing:
            text += f", which {missing} of them lack"
        if column.instead is not None:
            lines.append(f"{text}; {column.instead} would be read")
            continue
        setting = setting_to_read(tally, column, prefix)
        lines.append(f"{text}; {setting} would read it, if that is its unit")
    return lines


def setting_to_read(tally: LabelTally, column: LookAlike, prefix: str = "") -> str:
    """The command-line settings that would read a column.

    The settings keep the columns that are already read for this label. They also add its other
    unread columns, if some structures have the label only there.
    """
    label = column.label
    units = {column.column: column.unit}
    if tally.unread_only.get(column.column):
        units = _columns_read(tally, label)
        for other in tally.unread_labels():
            is_needed = other.label == label and tally.unread_only.get(other.column)
            if is_needed and other.instead is None:
                units[other.column] = other.unit

    names = _one_or_list(list(units))
    # one unit is enough if all columns have the same
    different = list(dict.fromkeys(units.values()))
    stated = different[0] if len(different) == 1 else _one_or_list(list(units.values()))
    return f"{prefix}columns.{label}={names} {prefix}units.{label}={stated}"


def _columns_read(tally: LabelTally, label: str) -> dict[str, str]:
    """The columns from which a label is read already, with their units."""
    if not any(counts.get(label) for counts in tally.kept.values()):
        return {}
    # without settings, the format's own label is read
    return dict(tally.columns.get(label, {label: LABELS[label].unit}))


def _one_or_list(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"[{','.join(texts)}]"


def how_to_read_labels(tally: LabelTally, prefix: str = "") -> str:
    """The remedy to show if no label of a source was read."""
    remedy = "name the columns that have them"
    looking_alike = tally.unread_labels()
    unread = [column for column in looking_alike if column.instead is None]
    if looking_alike and not unread:
        form = looking_alike[0].form
        names = ", ".join(column.column for column in looking_alike if column.form == form)
        if form == "component":
            return f"join {names} to {INSTEAD[form]}"
        return f"add {INSTEAD[form]} to {names}"
    if not unread:
        examples = [
            f"{prefix}columns.energy=E {prefix}units.energy=eV",
            f"{prefix}columns.forces=F {prefix}units.forces=eV/A",
        ]
        return f"{remedy}, as in {' '.join(examples)}"
    # one column per label, because a setting can be given only once
    by_label = {column.label: column for column in reversed(unread)}
    settings = [setting_to_read(tally, column, prefix) for column in by_label.values()]
    return f"{remedy}, perhaps {' '.join(settings)}"


def to_json(tally: LabelTally) -> dict[str, Any]:
    """The tally as JSON content, for dataset_info.json and the footers of staged parts."""
    return {name: getattr(tally, name) for name in LabelTally.__dataclass_fields__}


def from_json(content: Mapping[str, Any]) -> LabelTally:
    """The inverse of `to_json`."""
    return LabelTally(**content)


def added(tallies: Iterable[LabelTally]) -> LabelTally:
    """The sum of several tallies."""
    total = LabelTally()
    for tally in tallies:
        total += tally
    return total


def _count(counts: Counts, key: str) -> None:
    counts[key] = counts.get(key, 0) + 1


def _add(own: Counts, more: Mapping[str, int]) -> None:
    for key, count in more.items():
        own[key] = own.get(key, 0) + count
