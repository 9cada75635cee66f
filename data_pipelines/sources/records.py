"""A record of any source becomes a canonical structure: units, masks, filters, level of theory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.symbols import Symbols

from ...core.labels import LABELS, present
from ...core.units import LENGTH
from ..structure import SPLITS, BadRecordError, Structure, check_elements, full_stress
from .config import SourceConfig


SPLIT_NAMES = {"val": "valid", "validation": "valid"}  # as data sets of the hub call them
TRUE = ("true", "t", "1", "1.0")


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


def is_wanted(record: Record, config: SourceConfig) -> bool:
    """Whether the record passes the filters; BadRecordError when it lacks a filter's column."""
    for column in config.filters:
        if column not in record.info:
            raise _missing_column(column, f"filters.{column}", record)
    return config.passes(dict(record.info))


def structure_from_record(
    record: Record, config: SourceConfig, default_id: str, file_split: str | None = None
) -> Structure:
    """The record as a canonical structure; of its numbers only the elements are checked.

    file_split: the split that the name of the file states, for records that state none.
    """
    check_elements(record.atomic_numbers)
    found = {name: _label(record, config, name) for name in LABELS}
    level = config.level_of_theory or _text(record, config, "level_of_theory")
    if level is None:
        raise BadRecordError(
            "states no level of theory",
            remedy="add level_of_theory=NAME (for example PBE), or columns.level_of_theory=COLUMN",
        )

    group = _text(record, config, "group")
    if not group:
        # structures of one composition are likely to be frames of one trajectory
        group = Symbols(record.atomic_numbers).get_chemical_formula(empirical=True)
    length = LENGTH[config.length_unit]
    return Structure(
        atomic_numbers=record.atomic_numbers.astype(np.int64),
        positions=np.asarray(record.positions, dtype=np.float64) * length,
        cell=np.asarray(record.cell, dtype=np.float64) * length,
        pbc=np.asarray(record.pbc, dtype=bool),
        level_of_theory=level,
        structure_id=_text(record, config, "structure_id") or default_id,
        group=group,
        labels=present(found),
        split=_split(record, config, file_split),
    )


def _split(record: Record, config: SourceConfig, file_split: str | None) -> str | None:
    """The split that the record or its file states, if the config wants to know it."""
    if config.split_by != "file":
        return None
    split = _text(record, config, "split") or file_split
    if split is None:
        return None
    split = SPLIT_NAMES.get(split, split)
    if split not in SPLITS:
        raise BadRecordError(
            f"has split '{split}'", remedy=f"use one of {', '.join(SPLITS)}, or split_by=group"
        )
    return split


def _label(record: Record, config: SourceConfig, name: str) -> Any:
    """A label in the pipeline's unit and shape, or None; those per atom keep the source's shape."""
    mask = config.masks.get(name)
    if mask is not None and _is_true(record.info.get(mask)):
        return None

    label = LABELS[name]
    column = config.columns.get(name)
    factor = 1.0
    if column is None:
        value = record.recognised.get(name)
    else:
        own = record.arrays if label.per == "atom" else record.info
        # ASE moves a column with a name that it knows from there to its calculator
        value = own.get(column, record.recognised.get(column))
        factor = label.unit_factors[config.units[name]]
    if value is None:
        return None

    try:
        array = np.asarray(value, dtype=np.float64) * factor
    except (TypeError, ValueError):
        raise BadRecordError(
            f"has {name} {value!r}, which is not a number", remedy="correct or remove it"
        ) from None
    if label.per == "atom":
        # check_structure compares the shape with the number of atoms
        return array

    # six numbers are Voigt's
    sizes = (6, 9) if label.symmetric else (3**label.rank,)
    if array.size not in sizes:
        expected = " or ".join(map(str, sizes))
        raise BadRecordError(
            f"has {name} of shape {array.shape}", remedy=f"give {expected} numbers"
        )
    if label.symmetric:
        return full_stress(array)
    if label.rank == 0:
        return float(array.item())
    return array.reshape(label.tensor_shape)


def _text(record: Record, config: SourceConfig, name: str) -> str | None:
    """A text field; None where there is none, unless the config names its column."""
    is_named = name in config.columns
    column = config.columns.get(name, name)
    value = record.info.get(column)
    if value is not None:
        return str(value)
    if not is_named:
        return None
    if column in record.info:
        raise BadRecordError(
            f"has no value in column '{column}' ({name})",
            remedy="fill it, or leave the record out",
        )
    raise _missing_column(column, f"columns.{name}", record)


def _missing_column(column: str, setting: str, record: Record) -> BadRecordError:
    known = ", ".join(sorted(record.info))
    return BadRecordError(f"has no column '{column}' ({setting}); it has: {known}")


def _is_true(value: Any) -> bool:
    return str(value).lower() in TRUE
