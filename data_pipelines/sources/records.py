"""Convert a record of any source to a canonical structure.

This applies the config's units, masks, filters and level of theory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.symbols import Symbols

from ...core.labels import LABELS, Label, present
from ...core.units import LENGTH
from ..structure import (
    SPLITS,
    BadRecordError,
    Structure,
    check_elements,
    check_symmetric,
    full_stress,
)
from .config import LabelColumn, SourceConfig
from .label_names import INSTEAD, REFERENCE_LEVEL, LookAlike, look_alike, numbers_of
from .naming import SPLIT_WORDS


# characters of a level of theory, which appears in tables, pictures and messages
LONGEST_NAME = 200
# characters of an invalid value in a message
MOST_SHOWN = 40
TRUE = ("true", "t", "1", "1.0")
# depth to which nested mappings are flattened
MOST_NESTED = 3

# unread columns that look like labels, with their values if the reader has loaded them
Unread = list[tuple[LookAlike, np.ndarray | None]]


class DisagreeingLabelsError(BadRecordError):
    """Two columns look like the same label but differ; the config must name the right one."""


@dataclass(frozen=True)
class Record:
    """One record as read: geometry and values, with the names and units of the source."""

    atomic_numbers: np.ndarray
    """(N,)"""

    positions: np.ndarray
    """(N, 3), in the source's length unit"""

    cell: np.ndarray
    """(3, 3), in the source's length unit; rows are lattice vectors"""

    pbc: np.ndarray
    """(3,)"""

    info: Mapping[str, Any] = field(default_factory=dict)
    """Per-structure values, by column."""

    arrays: Mapping[str, Any] = field(default_factory=dict)
    """Per-atom values (N, ...), by column."""

    recognised: Mapping[str, Any] = field(default_factory=dict)
    """Labels whose meaning and unit the format itself defines."""

    unread: tuple[LookAlike, ...] | None = None
    """Columns that look like labels but were not loaded; None if the reader loaded all columns."""


def is_wanted(record: Record, config: SourceConfig) -> bool:
    """Whether the record passes the filters.

    Raises BadRecordError if it lacks a column that a filter names.
    """
    for column in config.filters:
        if column not in record.info:
            raise _missing_column(column, f"filters.{column}", record)
    return config.passes(dict(record.info))


def structure_from_record(
    record: Record,
    config: SourceConfig,
    default_id: str,
    file_split: str | None = None,
    unread: Unread | None = None,
) -> Structure:
    """Convert a record to a canonical structure, in the pipeline's units.

    Elements and labels are checked here, but not the geometry; `check_structure` does that.

    default_id: used if the record states no id.
    file_split: the split that the file's name states, used if the record states none.
    unread: result of `unread_columns`, if the caller has it already.

    Raises BadRecordError.
    """
    check_elements(record.atomic_numbers)
    found = {name: _label(record, config, name) for name in LABELS}
    if unread is None:
        unread = unread_columns(record, config)
    if unread:
        _refuse_other_values(record, config, found, unread)
    level = config.level_of_theory or _level(record, config)
    if level is None:
        raise BadRecordError(
            "states no level of theory",
            remedy="add level_of_theory=NAME (for example PBE), or columns.level_of_theory=COLUMN",
        )

    if len(level) > LONGEST_NAME:
        raise BadRecordError(
            f"states a level of theory with a name of {len(level)} letters",
            remedy=f"give a name of at most {LONGEST_NAME}, or level_of_theory=NAME",
        )

    group = _text(record, config, "group")
    if not group:
        # structures with the same composition are likely to be frames of one trajectory
        group = default_group(record.atomic_numbers)
    length = LENGTH[config.length_unit]
    return Structure(
        atomic_numbers=record.atomic_numbers.astype(np.int64),
        positions=_geometry(record.positions, "positions") * length,
        cell=_geometry(record.cell, "cell") * length,
        pbc=np.asarray(record.pbc, dtype=bool),
        level_of_theory=level,
        structure_id=_text(record, config, "structure_id") or default_id,
        group=group,
        labels=present(found),
        split=_split(record, config, file_split),
    )


def _geometry(values: Any, name: str) -> np.ndarray:
    """Positions or a cell as float64; raises BadRecordError if they are not numeric."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadRecordError(
            f"has {name} that are no numbers", remedy="correct or remove the record"
        ) from None


def _level(record: Record, config: SourceConfig) -> str | None:
    """The level of theory that the record states, or `unstated_level`."""
    level = _text(record, config, "level_of_theory")
    if level is None and config.reference_columns:
        stated = record.info.get(REFERENCE_LEVEL)
        level = None if stated is None else str(stated)
    return level or config.unstated_level


def default_group(atomic_numbers: np.ndarray) -> str:
    """The group of a structure whose source states none: its reduced formula."""
    return Symbols(atomic_numbers).get_chemical_formula(empirical=True)


def _split(record: Record, config: SourceConfig, file_split: str | None) -> str | None:
    """The split that the record or its file states; None if the config ignores it."""
    if config.split_by != "file":
        return None
    split = _text(record, config, "split") or file_split
    if split is None:
        return None
    if split in config.split_names:
        return config.split_names[split]
    split = SPLIT_WORDS.get(split, split)
    if split not in SPLITS:
        raise BadRecordError(
            f"has split '{split}'",
            remedy=f"use one of {', '.join(SPLITS)}, say which one it is with split_names.{split}"
            "=train, or add split_by=group",
        )
    return split


def _label(record: Record, config: SourceConfig, name: str) -> Any:
    """A label in the pipeline's unit and shape; None if it is missing or masked.

    A per-atom label with the wrong number of values keeps the source's shape.
    """
    if _is_masked(record, config, name):
        return None

    label = LABELS[name]
    found = None
    found_in = ""
    for column in config.label_columns[name]:
        raw = raw_label(record, label, column)
        if raw is None:
            continue
        value = _in_own_unit(raw, record, config, label, column)
        if found is None:
            found = value
            found_in = column.name
        else:
            _refuse_difference(record, label, (found_in, found), (column.name, value))
    return found


def _is_masked(record: Record, config: SourceConfig, name: str) -> bool:
    """Whether the record's mask removes a label; raises BadRecordError for a per-atom mask."""
    column = config.masks.get(name)
    if column is None:
        return False
    value = record.info.get(column, record.arrays.get(column))
    if np.size(value) != 1:
        # a label must be known for all atoms or for none
        raise BadRecordError(
            f"has {np.size(value)} values of '{column}' (masks.{name})",
            remedy="give one for the whole structure",
        )
    return _is_true(np.asarray(value).item() if np.ndim(value) else value)


def raw_label(record: Record, label: Label, column: LabelColumn) -> Any:
    """The value of a label column, as stored in the source; None if the record has none.

    A column that the config names may be among the per-structure or the per-atom values: some
    programs store the forces of all atoms as a per-structure value.
    """
    if not column.is_named:
        return record.recognised.get(column.name)
    own, other = record.info, record.arrays
    if label.per == "atom":
        own, other = other, own
    # ASE moves columns whose names it knows to its calculator, here `recognised`
    for values in (own, record.recognised, other):
        value = values.get(column.name)
        if value is not None:
            return value
    return None


def _in_own_unit(
    raw: Any, record: Record, config: SourceConfig, label: Label, column: LabelColumn
) -> Any:
    """Convert a raw value to the pipeline's unit and shape.

    A per-atom label with the wrong number of values keeps its shape, and `check_structure` refuses
    it. Any other mismatch raises BadRecordError.
    """
    numbers = _as_numbers(raw)
    if numbers is None:
        raise BadRecordError(
            f"has {label.name} {str(raw)[:MOST_SHOWN]!r}, which is not a number",
            remedy="correct or remove it",
        )
    array = numbers * column.factor

    num_atoms = len(record.atomic_numbers)
    if label.per == "atom":
        # A flat list of all numbers, atom after atom, is unambiguous, and files often write a
        # single atom this way.
        shape = label.shape(num_atoms)
        if array.ndim == 1 and array.size == math.prod(shape):
            return array.reshape(shape)
        return array

    if num_atoms > 1 and _is_of_atoms(record, column.name, raw):
        # one number for each of six atoms is not a stress in Voigt form
        raise BadRecordError(
            f"has {label.name} of shape {array.shape}, of each of its atoms, in '{column.name}'",
            remedy=f"name {INSTEAD['per atom']}",
        )
    sizes = label.sizes(num_atoms)
    if array.size not in sizes:
        expected = " or ".join(map(str, sizes))
        raise BadRecordError(
            f"has {label.name} of shape {array.shape}", remedy=f"give {expected} numbers"
        )
    if column.times_volume:
        array = array / _volume(record, config, column)
    if label.symmetric:
        if array.size == 9:
            check_symmetric(array, f"a {label.name}")
        # six numbers are in Voigt order
        return full_stress(array)
    if label.rank == 0:
        return float(array.item())
    return array.reshape(label.tensor_shape)


def _is_of_atoms(record: Record, column: str, raw: Any) -> bool:
    """Whether a value is present only among the per-atom values."""
    return column not in record.info and raw is record.arrays.get(column)


def _as_numbers(raw: Any) -> np.ndarray | None:
    """A value as a float64 array; None if it is not numeric."""
    try:
        if np.asarray(raw).dtype.kind == "b":
            # numpy would convert True to 1.0
            return None
        return np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _volume(record: Record, config: SourceConfig, column: LabelColumn) -> float:
    """Cell volume in A^3; raises BadRecordError without one, because a virial needs it."""
    cell = np.asarray(record.cell, dtype=np.float64) * LENGTH[config.length_unit]
    volume = float(abs(np.linalg.det(cell)))
    if not volume > 0:
        raise BadRecordError(
            f"has '{column.name}', which is a stress times a volume, and a cell without volume",
            remedy="give the cell, or leave the column out of columns.stress",
        )
    return volume


def flat_columns(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the content of nested mappings under dotted names, such as `dft.forces`.

    JSON files and ASE databases can contain nested mappings. They are followed to MOST_NESTED
    levels, which is deeper than labels are stored.
    """
    if not any(isinstance(value, dict) for value in info.values()):
        return info
    flat = dict(info)
    inner = info
    for _ in range(MOST_NESTED):
        inner = {
            f"{outer}.{name}": value
            for outer, values in inner.items()
            if isinstance(values, dict)
            for name, value in values.items()
        }
        flat |= inner
    return flat


def unread_columns(record: Record, config: SourceConfig) -> Unread:
    """Columns that look like labels but are not read, with their values if they are loaded."""
    if record.unread is not None:
        return [(column, None) for column in record.unread]

    num_atoms = len(record.atomic_numbers)
    named = config.named_label_columns
    # a label defined by the format is read under its own name unless the config names a column
    own_names = config.own_label_names
    # by column name, because a database has the same columns in `info` and `arrays`
    found: dict[str, tuple[LookAlike, np.ndarray | None]] = {}
    for values, of_atoms, read in (
        (record.info, False, named),
        (record.arrays, True, named),
        (record.recognised, False, own_names),
    ):
        for column, value in values.items():
            # the cheap test by name comes first: this runs for every column of every record
            seen = look_alike(column)
            if seen is not None and column not in read:
                stated = numbers_of(value, seen, num_atoms, of_atoms=of_atoms)
                if stated is not None:
                    found.setdefault(stated[0].column, stated)
    return list(found.values())


def _refuse_other_values(
    record: Record, config: SourceConfig, found: dict[str, Any], unread: Unread
) -> None:
    """Raise DisagreeingLabelsError if an unread column claims to be a label but differs from it.

    If a record has both `energy` and `REF_energy`, and the config names neither, it is unclear
    which one to use. Their values are compared as if they had the same unit. If their units
    differ, the user has to choose a column anyway.
    """
    for other, values in unread:
        own = found[other.label]
        if values is None or own is None or not other.is_same or other.label in config.columns:
            continue
        value = values.astype(np.float64)
        label = LABELS[other.label]
        if label.symmetric:
            value = full_stress(value)
        _refuse_difference(record, label, (other.label, own), (other.column, value))


def _refuse_difference(
    record: Record, label: Label, one: tuple[str, Any], other: tuple[str, Any]
) -> None:
    absolute = label.same_absolute
    if label.extensive:
        absolute *= len(record.atomic_numbers)
    first = np.ravel(one[1])
    second = np.ravel(other[1])
    if first.size == second.size and np.allclose(
        first, second, label.same_relative, absolute, equal_nan=True
    ):
        return

    # show the pair of values that differs most
    shown = f"of shapes {np.shape(one[1])} and {np.shape(other[1])}"
    if first.size == second.size:
        worst = int(np.argmax(np.abs(first - second)))
        shown = f"{first[worst]:.6g} and {second[worst]:.6g}"
    name = label.name
    raise DisagreeingLabelsError(
        f"has {name} twice, in '{one[0]}' and in '{other[0]}', which differ ({shown})",
        remedy=f"name the right one, as in columns.{name}={one[0]} units.{name}={label.unit}",
    )


def _text(record: Record, config: SourceConfig, name: str) -> str | None:
    """A text field, or None if the record has none.

    Raises BadRecordError if the config names a column that the record lacks or leaves empty.
    """
    text = stated_text(record, config, name)
    if text is not None or name not in config.columns:
        return text

    column = (config.names_of(name) or [name])[0]
    if column in record.info:
        raise BadRecordError(
            f"has no value in column '{column}' ({name})",
            remedy="fill it, or leave the record out",
        )
    raise _missing_column(column, f"columns.{name}", record)


def stated_text(record: Record, config: SourceConfig, name: str) -> str | None:
    """A text field from the columns that the config names, by default the one called `name`.

    None if the record has no such value.
    """
    for column in config.names_of(name) or [name]:
        value = record.info.get(column)
        if value is not None:
            return str(value)
    return None


def _missing_column(column: str, setting: str, record: Record) -> BadRecordError:
    known = ", ".join(sorted(record.info))
    return BadRecordError(f"has no column '{column}' ({setting}); it has: {known}")


def _is_true(value: Any) -> bool:
    return str(value).lower() in TRUE
