"""A record of any source becomes a canonical structure: units, masks, filters, level of theory."""

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


# letters of a level of theory, which stands in tables, pictures and messages
LONGEST_NAME = 200
# of a value that is no number, in a message
MOST_SHOWN = 40
TRUE = ("true", "t", "1", "1.0")
# levels of mappings in a mapping that are looked into
MOST_NESTED = 3

# columns that look like labels, with their numbers where the reader has them at hand
Unread = list[tuple[LookAlike, np.ndarray | None]]


class DisagreeingLabelsError(BadRecordError):
    """Two columns that claim to be the same label and differ. The config has to name one."""


@dataclass(frozen=True)
class Record:
    """What a reader found: geometry, and values by the names and in the units of the source."""

    atomic_numbers: np.ndarray
    """(N,)"""

    positions: np.ndarray
    """(N, 3)"""

    cell: np.ndarray
    """(3, 3)"""

    pbc: np.ndarray
    """(3,)"""

    info: Mapping[str, Any] = field(default_factory=dict)
    """Values of the structure."""

    arrays: Mapping[str, Any] = field(default_factory=dict)
    """Values of its atoms, (N, ...)."""

    recognised: Mapping[str, Any] = field(default_factory=dict)
    """Labels whose meaning and unit the format itself defines."""

    unread: tuple[LookAlike, ...] | None = None
    """Columns that look like labels and that the reader left where they are, if it can tell; None
    where every column is among the values above."""


def is_wanted(record: Record, config: SourceConfig) -> bool:
    """Whether the record passes the filters; BadRecordError when it lacks a filter's column."""
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
    """The record as a canonical structure; of its numbers only the elements are checked.

    file_split: the split that the name of the file states, for records that state none.
    unread: what `unread_columns` finds, if it was asked already.
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
        # structures of one composition are likely to be frames of one trajectory
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
    """Positions or a cell in float64; BadRecordError for what is no array of numbers."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadRecordError(
            f"has {name} that are no numbers", remedy="correct or remove the record"
        ) from None


def _level(record: Record, config: SourceConfig) -> str | None:
    """The level of theory that the record states, or else the one for records that state none."""
    level = _text(record, config, "level_of_theory")
    if level is None and config.reference_columns:
        stated = record.info.get(REFERENCE_LEVEL)
        level = None if stated is None else str(stated)
    return level or config.unstated_level


def default_group(atomic_numbers: np.ndarray) -> str:
    """The group of a structure whose source states none: its reduced composition."""
    return Symbols(atomic_numbers).get_chemical_formula(empirical=True)


def _split(record: Record, config: SourceConfig, file_split: str | None) -> str | None:
    """The split that the record or its file states, if the config wants to know it."""
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
    """A label in the pipeline's unit and shape, or None; those per atom keep the source's shape."""
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
    """Whether the record's mask removes a label; BadRecordError for a mask of several values."""
    column = config.masks.get(name)
    if column is None:
        return False
    value = record.info.get(column, record.arrays.get(column))
    if np.size(value) != 1:
        # the label of some atoms alone is none
        raise BadRecordError(
            f"has {np.size(value)} values of '{column}' (masks.{name})",
            remedy="give one for the whole structure",
        )
    return _is_true(np.asarray(value).item() if np.ndim(value) else value)


def raw_label(record: Record, label: Label, column: LabelColumn) -> Any:
    """The value of a column as the source has it; None where the record has none.

    A column that the config names is read wherever it lies: programs also keep the forces of all
    atoms among the values of the structure.
    """
    if not column.is_named:
        return record.recognised.get(column.name)
    own, other = record.info, record.arrays
    if label.per == "atom":
        own, other = other, own
    # ASE moves a column with a name that it knows from there to its calculator
    for values in (own, record.recognised, other):
        value = values.get(column.name)
        if value is not None:
            return value
    return None


def _in_own_unit(
    raw: Any, record: Record, config: SourceConfig, label: Label, column: LabelColumn
) -> Any:
    """A value in the pipeline's unit and shape; those per atom keep another number of values."""
    numbers = _as_numbers(raw)
    if numbers is None:
        raise BadRecordError(
            f"has {label.name} {str(raw)[:MOST_SHOWN]!r}, which is not a number",
            remedy="correct or remove it",
        )
    array = numbers * column.factor

    num_atoms = len(record.atomic_numbers)
    if label.per == "atom":
        # One list of all numbers, atom after atom, has one meaning only, and one atom is often
        # written so. Of anything else, check_structure compares the shape.
        shape = label.shape(num_atoms)
        if array.ndim == 1 and array.size == math.prod(shape):
            return array.reshape(shape)
        return array

    if num_atoms > 1 and _is_of_atoms(record, column.name, raw):
        # six atoms with a number each are not the six numbers of a stress
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
        # six numbers are Voigt's
        return full_stress(array)
    if label.rank == 0:
        return float(array.item())
    return array.reshape(label.tensor_shape)


def _is_of_atoms(record: Record, column: str, raw: Any) -> bool:
    """Whether a value was found among those of atoms alone."""
    return column not in record.info and raw is record.arrays.get(column)


def _as_numbers(raw: Any) -> np.ndarray | None:
    """A value as float64; None for one that is no number, or an array of them."""
    try:
        if np.asarray(raw).dtype.kind == "b":
            # numpy reads True as 1.0
            return None
        return np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _volume(record: Record, config: SourceConfig, column: LabelColumn) -> float:
    """A^3; BadRecordError without a cell, where a virial cannot become a stress."""
    cell = np.asarray(record.cell, dtype=np.float64) * LENGTH[config.length_unit]
    volume = float(abs(np.linalg.det(cell)))
    if not volume > 0:
        raise BadRecordError(
            f"has '{column.name}', which is a stress times a volume, and a cell without volume",
            remedy="give the cell, or leave the column out of columns.stress",
        )
    return volume


def flat_columns(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same with what nested mappings hold as well, under names with dots: dft.forces.

    JSON and databases of ASE can hold such mappings. Deeper ones than a file of labels has are left
    alone.
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
    """Columns that look like labels and that the config leaves alone, with values if at hand."""
    if record.unread is not None:
        return [(column, None) for column in record.unread]

    num_atoms = len(record.atomic_numbers)
    named = config.named_label_columns
    # a label of the format itself is read under its own name, unless the config names another one
    own_names = config.own_label_names
    # a database has the same columns in two places
    found: dict[str, tuple[LookAlike, np.ndarray | None]] = {}
    for values, of_atoms, read in (
        (record.info, False, named),
        (record.arrays, True, named),
        (record.recognised, False, own_names),
    ):
        for column, value in values.items():
            # most names are those of no label, and this is asked for every one of every record
            seen = look_alike(column)
            if seen is not None and column not in read:
                stated = numbers_of(value, seen, num_atoms, of_atoms=of_atoms)
                if stated is not None:
                    found.setdefault(stated[0].column, stated)
    return list(found.values())


def _refuse_other_values(
    record: Record, config: SourceConfig, found: dict[str, Any], unread: Unread
) -> None:
    """Raise DisagreeingLabelsError for an unread column that claims to be a label, and differs.

    Nobody has chosen between `energy` and `REF_energy` where the config names neither. They are
    compared as if they had one unit: if they have not, somebody has to say so anyway.
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

    # the place where they differ most, as an example
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
    """A text field; None where there is none, unless the config names its column."""
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
    """A text field that the record has, in the column that the config names or in that name."""
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
