"""A record of any source -> a canonical structure: units, masks, filters, level of theory, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.symbols import Symbols

from ...core.labels import LABELS, present, unit_factor
from ...core.units import LENGTH
from ..structure import SPLITS, BadRecordError, Structure, check_elements, full_stress
from .config import SourceConfig


SPLIT_NAMES = {"val": "valid", "validation": "valid"}  # as the hub has them


@dataclass(frozen=True)
class Record:
    """What a reader found: geometry, and values by the names that the source gives them, in the source's units.

    `recognised` holds labels whose meaning and unit the format itself defines.
    """

    atomic_numbers: np.ndarray  # (N,)
    positions: np.ndarray  # (N, 3)
    cell: np.ndarray  # (3, 3)
    pbc: np.ndarray  # (3,)
    info: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Any] = field(default_factory=dict)
    recognised: Mapping[str, Any] = field(default_factory=dict)


def is_wanted(record: Record, config: SourceConfig) -> bool:
    """Whether the record passes the row filters; BadRecordError when it lacks a filter's column."""
    for key in config.filters:
        if key not in record.info:
            raise BadRecordError(
                f"has no column '{key}' (filters.{key}); it has: {', '.join(sorted(record.info))}"
            )
    return config.passes(dict(record.info))


def structure_from_record(
    record: Record, config: SourceConfig, default_id: str, file_split: str | None = None
) -> Structure:
    """The record as a canonical structure; of its numbers only the elements are checked.

    `file_split` is what the file's name says of the split, for records that do not say it themselves.
    """
    check_elements(record.atomic_numbers)
    labels = present({name: _label(record, config, name) for name in LABELS})
    level = config.level_of_theory or _text(record, config, "level_of_theory")
    if level is None:
        raise BadRecordError(
            "states no level of theory: add level_of_theory=NAME (for example PBE), or columns.level_of_theory=KEY"
        )
    split = (_text(record, config, "split") or file_split) if config.split_by == "file" else None
    split = SPLIT_NAMES.get(split or "", split)
    if split is not None and split not in SPLITS:
        raise BadRecordError(
            f"has split '{split}': use one of {', '.join(SPLITS)}, or split_by=group"
        )
    length = LENGTH[config.length_unit]
    return Structure(
        atomic_numbers=record.atomic_numbers.astype(np.int64),
        positions=np.asarray(record.positions, dtype=np.float64) * length,
        cell=np.asarray(record.cell, dtype=np.float64) * length,
        pbc=np.asarray(record.pbc, dtype=bool),
        level_of_theory=level,
        structure_id=_text(record, config, "structure_id") or default_id,
        group=_text(record, config, "group")
        or Symbols(record.atomic_numbers).get_chemical_formula(empirical=True),
        split=split,
        labels=labels,
    )


def _label(record: Record, config: SourceConfig, name: str) -> Any:
    """The label in the pipeline's unit and shape, or None; forces are not yet checked for shape."""
    if name in config.masks and _is_true(record.info.get(config.masks[name])):
        return None
    label = LABELS[name]
    key = config.columns.get(name)
    value = record.recognised.get(key or name)  # ASE moves the columns that it recognises there
    factor = 1.0
    if key is not None:
        own = record.arrays if label.per == "atom" else record.info
        value = own.get(key, value)
        factor = unit_factor(name, config.units[name])
    if value is None:
        return None

    try:
        array = np.asarray(value, dtype=np.float64) * factor
    except (TypeError, ValueError):
        raise BadRecordError(
            f"has {name} {value!r}, which is not a number: correct or remove it"
        ) from None
    if label.per == "atom":
        return array

    sizes = (6, 9) if label.symmetric else (3**label.rank,)
    if array.size not in sizes:
        expected = " or ".join(map(str, sizes))
        raise BadRecordError(f"has {name} of shape {array.shape}: give {expected} numbers")
    if label.symmetric:
        return full_stress(array)
    return float(array.item()) if label.rank == 0 else array.reshape(label.tensor_shape)


def _text(record: Record, config: SourceConfig, name: str) -> str | None:
    key = config.columns.get(name, name)
    value = record.info.get(key)
    if value is None and name in config.columns and key in record.info:
        raise BadRecordError(
            f"has nothing in column '{key}' ({name}): fill it, or leave the record out"
        )
    if value is None and name in config.columns:
        raise BadRecordError(
            f"has no column '{key}' (columns.{name}); it has: {', '.join(sorted(record.info))}"
        )
    return None if value is None else str(value)


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "t", "1", "1.0")
