"""How a source is read: the settings that map its columns to canonical fields."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, model_validator

from ...core.labels import LABELS
from ...core.settings import Settings
from .label_names import REFERENCE_COLUMNS


# named in the config for tables only, because the readers of other formats know where they are
GEOMETRY = ("atomic_numbers", "positions", "cell", "pbc")
TEXTS = ("level_of_theory", "structure_id", "group", "split")

FilterValue = str | int | float | bool


@dataclass(frozen=True)
class LabelColumn:
    """One place where a label may be found."""

    name: str
    factor: float
    """To the pipeline's unit, times A^3 if `times_volume`."""
    times_volume: bool
    """The column has the label times the volume of the cell, as a virial has."""
    is_named: bool
    """By the config; otherwise it is a label that the format itself defines."""


class SourceConfig(Settings):
    """How a source's columns become canonical fields.

    Without `columns`, the labels are those that ASE itself recognises, in ASE's units, which are
    ours. The unit of a label from a named column must be stated in `units`, because no program
    can know it. A dot leads into nested columns (`structure.lattice.matrix`).

    A field may have several columns, `columns.forces=[forces,REF_forces]`. Of these, each record
    is read from the first that it has. Two that a record has must agree.
    """

    columns: dict[str, str | list[str]] = Field(
        default={},
        description="field -> column, info key or array key of the source; of a list, the first "
        "that a record has",
    )
    units: dict[str, str | list[str]] = Field(
        default={},
        description="unit of each label in columns, one for all of its columns or one for each; "
        "-eV for a virial",
    )
    length_unit: Literal["A", "Bohr", "nm"] = Field(
        default="A", description="unit of positions and cell"
    )
    masks: dict[str, str] = Field(
        default={}, description="label -> column; where its value is true the label is dropped"
    )
    filters: dict[str, FilterValue | list[FilterValue]] = Field(
        default={},
        description="column -> value, or list of values; other records are not read",
    )
    level_of_theory: str | None = Field(
        default=None, description="level of theory of all structures of the source"
    )
    unstated_level: str | None = Field(
        default=None, description="level of theory of the structures that state none themselves"
    )
    reference_columns: bool = Field(
        default=False,
        description="read REF_energy, REF_forces, REF_stress and REF_virials too (eV, eV/A, "
        "eV/A^3, eV), MACE's names, where a label has no column of its own",
    )
    split_by: Literal["file", "group", "structure"] = Field(
        default="file",
        description="file: the source's own split, and by group where it states none; group: "
        "always by group; structure: each on its own, so near duplicates may be on both sides",
    )
    split_names: dict[str, Literal["train", "valid", "test"] | None] = Field(
        default={},
        description="what the source calls its splits -> train, valid or test; null for structures "
        "that are split by group",
    )
    hub_config: str | None = Field(
        default=None, description="configuration (subset) of a hub data set"
    )
    trust_units: bool = Field(
        default=False, description="read the source although its units or signs look wrong"
    )

    @model_validator(mode="after")
    def _check(self) -> SourceConfig:
        # labels and texts first in the message: few sources need the geometry named
        known_fields = [*sorted({*LABELS, *TEXTS}), *GEOMETRY]
        for field in self.columns:
            if field not in known_fields:
                known = ", ".join(known_fields)
                raise ValueError(f"columns.{field} is not a field: use one of {known}")
        known = ", ".join(LABELS)
        for key in ("units", "masks"):
            for label in getattr(self, key):
                if label not in LABELS:
                    raise ValueError(f"{key}.{label} is not a label: use one of {known}")
        # a label and its unit belong together
        for label in LABELS:
            self._check_label(label)
        return self

    def _check_label(self, label: str) -> None:
        columns = self.names_of(label)
        units = _as_list(self.units.get(label))
        if columns and not units:
            raise ValueError(
                f"columns.{label}={_written(columns)} has no unit: add units.{label}=... "
                "(for example eV, eV/A, eV/A^3)"
            )
        if units and not columns:
            raise ValueError(
                f"units.{label}={_written(units)} belongs to no column: add columns.{label}=... "
                f"(for example columns.{label}={label})"
            )
        if len(units) not in (1, len(columns)) and columns:
            raise ValueError(
                f"units.{label}={_written(units)} does not fit columns.{label}="
                f"{_written(columns)}: state one unit for all of them, or one for each"
            )
        known_units = LABELS[label].known_units
        for unit in units:
            if unit not in known_units:
                known = ", ".join(known_units)
                raise ValueError(f"units.{label}='{unit}' is not known: use one of {known}")

    def names_of(self, field: str) -> list[str]:
        """The columns that the config names for a field, in the order in which they are tried."""
        return _as_list(self.columns.get(field))

    def units_of(self, label: str) -> list[str]:
        """The unit of each of the columns that the config names for a label."""
        columns = self.names_of(label)
        units = _as_list(self.units.get(label))
        # one for all
        return units * len(columns) if len(units) == 1 else units

    @cached_property
    def label_columns(self) -> dict[str, list[LabelColumn]]:
        """Where each label is looked for, in this order. Asked for with every record."""
        found = {}
        for name in LABELS:
            columns = dict(zip(self.names_of(name), self.units_of(name), strict=True))
            places = []
            if not columns:
                # a label of the format itself, in ASE's unit, which is ours
                places.append(LabelColumn(name, 1.0, times_volume=False, is_named=False))
                if self.reference_columns:
                    # a label that was registered later may have no such name
                    columns = REFERENCE_COLUMNS.get(name, {})
            for column, unit in columns.items():
                places.append(_label_column(name, column, unit))
            found[name] = places
        return found

    @cached_property
    def named_label_columns(self) -> frozenset[str]:
        """All columns that the config names for labels, or that it names by `reference_columns`."""
        names = set()
        for columns in self.label_columns.values():
            names |= {column.name for column in columns if column.is_named}
        return frozenset(names)

    @cached_property
    def own_label_names(self) -> frozenset[str]:
        """Labels that a format defines itself and that the config lets it define."""
        own = {name for name in LABELS if name not in self.columns}
        return self.named_label_columns | own

    def passes(self, values: dict[str, Any]) -> bool:
        """Whether the filters let a record with these values through; 1, 1.0 and "1" are equal."""
        # YAML, extxyz and Arrow disagree about the type of such values, so texts are compared
        for key, wanted in self.filters.items():
            allowed = wanted if isinstance(wanted, list) else [wanted]
            plain = _plain(values[key])
            if plain not in map(_plain, allowed):
                return False
        return True


def _label_column(label: str, column: str, unit: str) -> LabelColumn:
    factors = LABELS[label].unit_factors
    if unit in factors:
        return LabelColumn(column, factors[unit], times_volume=False, is_named=True)
    factors = LABELS[label].times_volume
    return LabelColumn(column, factors[unit], times_volume=True, is_named=True)


def _as_list(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _written(values: list[str]) -> str:
    """As on a command line."""
    if len(values) == 1:
        return values[0]
    return f"[{','.join(values)}]"


def _plain(value: Any) -> str:
    """A value as filters compare it: whole numbers without a point."""
    return str(value).removesuffix(".0")
